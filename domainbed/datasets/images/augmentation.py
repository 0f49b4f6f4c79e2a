"""The published augmentation for whole minibatches: parameters first, then the pixels.

The law of the parameters is that of `transforms.training_transform`. They are drawn on the CPU
from one generator for a whole minibatch, so every device, and any number of threads, gets the
same ones.
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields

import torch

from domainbed.core.transfer import sent
from domainbed.datasets.images import colour
from domainbed.datasets.images.resize import IMAGE_SIZE, resize, resize_boxes
from domainbed.datasets.images.transforms import (
    CROP_AREA,
    CROP_RATIO,
    GREY,
    HUE,
    JITTER,
    JITTER_OPERATIONS,
    Crop,
)

_ATTEMPTS = 10  # of torchvision, before it crops centrally


@dataclass(frozen=True)
class Augmentation:
    """What is done to each of B images.

    Attributes:
        boxes: (B, 4) the crop: top, left, height, width, in pixels of the image.
        flip: (B,) whether left and right change places.
        order: (B, 4) the operations of the colour jitter, one after the other.
        factors: (B, 4) of brightness, contrast, saturation; and the shift of the hue, of 256.
        grey: (B,) whether all colour goes.
    """

    boxes: torch.Tensor
    flip: torch.Tensor
    order: torch.Tensor
    factors: torch.Tensor
    grey: torch.Tensor

    @classmethod
    def draw(
        cls,
        sizes: torch.Tensor,
        stored: tuple[int, int],
        generator: torch.Generator,
        crop: Crop = "image",
    ) -> Augmentation:
        """Random parameters.

        Args:
            sizes: (B, 2) heights and widths of the original images, whose crops are drawn.
            stored: height and width to which the images were squeezed.
            generator: a source on the CPU.
            crop: what the crops are cut out of.
        """
        count = len(sizes)
        boxes = _boxes(sizes, stored, generator, crop)
        flip = torch.rand(count, generator=generator) < 0.5
        order = torch.rand((count, 4), generator=generator).argsort(dim=1)
        factors = torch.empty((count, 4))
        factors[:, :3].uniform_(*JITTER, generator=generator)
        factors[:, 3].uniform_(*HUE, generator=generator).mul_(255).trunc_().remainder_(256)
        grey = torch.rand(count, generator=generator) < GREY
        return cls(boxes, flip, order, factors, grey)

    def at(self, chosen: torch.Tensor) -> Augmentation:
        """Those of some images, by their positions."""
        return Augmentation(*(getattr(self, field.name)[chosen] for field in fields(self)))


def _boxes(
    sizes: torch.Tensor, stored: tuple[int, int], generator: torch.Generator, crop: Crop
) -> torch.Tensor:
    """(B, 4) the crops, in images of the size `stored`."""
    if crop == "none":
        return torch.tensor([[0, 0, *stored]]).repeat(len(sizes), 1)
    cut = sizes if crop == "image" else torch.full_like(sizes, IMAGE_SIZE)
    return scale_boxes(draw_crops(cut, generator), cut, stored)


def draw_crops(sizes: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """(B, 4) top, left, height, width; the law of torchvision's RandomResizedCrop.

    Area and aspect ratio (the latter log-uniform) are drawn until the crop fits, ten times at
    most; then it is the largest central one with an allowed ratio.
    """
    height, width = sizes.double().unbind(1)
    shape = (_ATTEMPTS, len(sizes))
    area = height * width * _uniform(shape, *CROP_AREA, generator)
    narrowest, widest = map(math.log, CROP_RATIO)
    ratio = _uniform(shape, narrowest, widest, generator).exp()
    widths, heights = (area * ratio).sqrt().round(), (area / ratio).sqrt().round()
    fits = (widths >= 1) & (widths <= width) & (heights >= 1) & (heights <= height)
    first = fits.byte().argmax(dim=0, keepdim=True)
    found = fits.any(dim=0)
    central_height = torch.minimum(height, (width / CROP_RATIO[0]).round())
    central_width = torch.minimum(width, (height * CROP_RATIO[1]).round())
    cut_height = torch.where(found, heights.gather(0, first)[0], central_height)
    cut_width = torch.where(found, widths.gather(0, first)[0], central_width)
    # Anywhere, or in the middle.
    places = _uniform((2, len(sizes)), 0, 1, generator)
    top = torch.where(found, places[0] * (height - cut_height + 1), (height - cut_height) / 2)
    left = torch.where(found, places[1] * (width - cut_width + 1), (width - cut_width) / 2)
    return torch.stack([top.floor(), left.floor(), cut_height, cut_width], dim=1).long()


def _uniform(
    shape: tuple[int, int], low: float, high: float, generator: torch.Generator
) -> torch.Tensor:
    return torch.empty(shape, dtype=torch.float64).uniform_(low, high, generator=generator)


def scale_boxes(boxes: torch.Tensor, sizes: torch.Tensor, stored: tuple[int, int]) -> torch.Tensor:
    """(B, 4) boxes in images of `sizes`, as boxes in the same images squeezed to `stored`.

    Each edge goes to the nearest border between two stored pixels.
    """
    last = torch.tensor(stored)
    scale = last / sizes.double()
    start = torch.minimum((boxes[:, :2] * scale).round(), last - 1)
    # A very thin image's crop may be less than a stored pixel.
    end = torch.maximum(((boxes[:, :2] + boxes[:, 2:]) * scale).round(), start + 1)
    return torch.cat([start, end - start], dim=1).long()


def preprocess_each(images: Sequence[torch.Tensor]) -> torch.Tensor:
    """B × (H, W, 3) uint8 to (B, 3, 224, 224) float32: resized, normalised; on the CPU."""
    finished, x = _planes(len(images)), torch.empty((3, IMAGE_SIZE, IMAGE_SIZE))
    for done, image in zip(finished, images):
        done.copy_(colour.normalised(x.copy_(resize(image.permute(2, 0, 1)))))
    return finished


def preprocess(images: torch.Tensor) -> torch.Tensor:
    """As `preprocess_each`, (B, H, W, 3) uint8 at once: for GPUs."""
    boxes = torch.tensor([[0, 0, images.size(1), images.size(2)]])
    return _finished(resize_boxes(images, sent(boxes, images.device)))


def augment_each(images: Sequence[torch.Tensor], augmentation: Augmentation) -> torch.Tensor:
    """B × (H, W, 3) uint8 to (B, 3, 224, 224) float32: augmented, normalised; on the CPU.

    One image after the other, in the same piece of memory, which stays in the cache.
    """
    finished, x = _planes(len(images)), torch.empty((3, IMAGE_SIZE, IMAGE_SIZE))
    for number, (done, image) in enumerate(zip(finished, images)):
        augment_one(image, augmentation, number, x)
        done.copy_(colour.normalised(x))
    return finished


def augment_one(
    image: torch.Tensor, augmentation: Augmentation, number: int, x: torch.Tensor
) -> None:
    """(H, W, 3) uint8 into x, (3, h, w) float32 of whole numbers from 0 to 255: augmented.

    `number` says which of the parameters are the image's.
    """
    parameters = (getattr(augmentation, f.name)[number].tolist() for f in fields(augmentation))
    (top, left, height, width), flip, order, factors, grey = parameters
    cut = image[top : top + height, left : left + width]
    resized = resize(cut.permute(2, 0, 1), *x.shape[1:])
    x.copy_(resized.flip(-1) if flip else resized)
    for operation in order:
        JITTER_OPERATIONS[operation](x, factors[operation])
    if grey:
        x[:] = colour.grey(x)


def _planes(count: int) -> torch.Tensor:
    """(count, 3, 224, 224), in large pages of memory where the system has them.

    A minibatch is too large for memory that was freed before to be at hand, and fetching small
    pages anew would cost a fifth of the time.
    """
    shape = (count, 3, IMAGE_SIZE, IMAGE_SIZE)
    if not hasattr(mmap, "MADV_HUGEPAGE"):  # not Linux
        return torch.empty(shape)
    memory = mmap.mmap(-1, 4 * math.prod(shape), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with suppress(OSError):  # a kernel without them
        memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=torch.float32).view(shape)


def augment(images: torch.Tensor, augmentation: Augmentation) -> torch.Tensor:
    """As `augment_each`, (B, H, W, 3) uint8 at once: for GPUs. Both agree up to rounding."""
    device = images.device
    x = resize_boxes(images, sent(augmentation.boxes, device))
    x = torch.where(_per_image(augmentation.flip, device), x.flip(-1), x)
    factors = sent(augmentation.factors, device)[:, :, None, None, None]
    for rows_of_operation in _turns(augmentation.order, device):
        for number, rows in enumerate(rows_of_operation):
            part = JITTER_OPERATIONS[number](x[rows], factors[rows, number])
            x.index_copy_(0, rows, part)
    x = torch.where(_per_image(augmentation.grey, device), colour.grey(x), x)
    return _finished(x)


def _turns(order: torch.Tensor, device: torch.device) -> Iterator[tuple[torch.Tensor, ...]]:
    """For each of the four turns, and for each operation, the images that have it then."""
    rows = sent(order.argsort(dim=0), device)
    for turn in range(order.size(1)):
        counts = order[:, turn].bincount(minlength=len(JITTER_OPERATIONS)).tolist()
        yield rows[:, turn].split(counts)


def _per_image(flags: torch.Tensor, device: torch.device) -> torch.Tensor:
    return sent(flags, device)[:, None, None, None]


def _finished(x: torch.Tensor) -> torch.Tensor:
    return colour.normalised(x).contiguous(memory_format=torch.channels_last)
