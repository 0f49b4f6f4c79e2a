"""The published augmentation for whole minibatches: parameters first, then the pixels.

The law of the parameters is that of `transforms.training_transform`. They are drawn on the CPU
from one generator for a whole minibatch, so that every device, and any number of threads, gets
the same ones.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields

import torch

from domainbed.core.precision import full_precision
from domainbed.core.transfer import sent
from domainbed.datasets.images.transforms import (
    CROP_AREA,
    CROP_RATIO,
    GREY,
    HUE,
    IMAGE_SIZE,
    JITTER,
    JITTER_OPERATIONS,
    Crop,
    augmented,
    evaluation_transform,
    luma,
    normalised,
)

_ATTEMPTS = 10  # as in torchvision, before it crops centrally


@dataclass(frozen=True)
class Augmentation:
    """What is done to each of B images.

    Attributes:
        boxes: (B, 4) the crop: top, left, height, width, in pixels of the image.
        flip: (B,) whether left and right change places.
        order: (B, 4) the operations of the colour jitter, the first one first.
        factors: (B, 4) of brightness, contrast, saturation; and the shift of the hue, in 256ths.
        grey: (B,) whether all colour is removed.
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
            stored: height and width to which the images were resized.
            generator: on the CPU.
            crop: what the training augmentation crops.
        """
        count = len(sizes)
        if crop == "none":
            boxes = torch.tensor([[0, 0, *stored]]).repeat(count, 1)
        else:
            cut = sizes if crop == "image" else torch.full_like(sizes, IMAGE_SIZE)
            boxes = scale_boxes(draw_crops(cut, generator), cut, stored)
        flip = torch.rand(count, generator=generator) < 0.5
        order = torch.rand((count, 4), generator=generator).argsort(dim=1)
        factors = torch.empty((count, 4))
        factors[:, :3].uniform_(*JITTER, generator=generator)
        factors[:, 3].uniform_(*HUE, generator=generator).mul_(255).trunc_().remainder_(256)
        grey = torch.rand(count, generator=generator) < GREY
        return cls(boxes, flip, order, factors, grey)

    def applied(self, image: torch.Tensor, number: int, size: int = IMAGE_SIZE) -> torch.Tensor:
        """Augments one image with the parameters of image `number`.

        Args:
            image: (3, H, W) uint8.
            number: which of the B.
            size: height and width of the result.

        Returns:
            (3, size, size) float32 that holds whole numbers from 0 to 255.
        """
        box, flip, order, factors, grey = (
            getattr(self, field.name)[number].tolist() for field in fields(self)
        )
        return augmented(image, box, flip, order, factors, grey, size)


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
    """(B, 4) boxes in images of `sizes`, as boxes in the same images resized to `stored`.

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
    return torch.stack([evaluation_transform(image.permute(2, 0, 1)) for image in images])


def augment_each(images: Sequence[torch.Tensor], augmentation: Augmentation) -> torch.Tensor:
    """B × (H, W, 3) uint8 to (B, 3, 224, 224) float32: augmented, normalised; on the CPU."""
    return torch.stack(
        [
            normalised(augmentation.applied(image.permute(2, 0, 1), number))
            for number, image in enumerate(images)
        ]
    )


def preprocess(images: torch.Tensor) -> torch.Tensor:
    """As `preprocess_each`, for (B, H, W, 3) uint8 at once: for GPUs."""
    boxes = torch.tensor([[0, 0, images.size(1), images.size(2)]])
    return _finished(resize_boxes(images, sent(boxes, images.device)))


def augment(images: torch.Tensor, augmentation: Augmentation) -> torch.Tensor:
    """As `augment_each`, for (B, H, W, 3) uint8 at once: for GPUs. Both agree up to rounding."""
    device = images.device
    x = resize_boxes(images, sent(augmentation.boxes, device))
    x = torch.where(_per_image(augmentation.flip, device), x.flip(-1), x)
    factors = sent(augmentation.factors, device)[:, :, None, None, None]
    for rows_of_operation in _turns(augmentation.order, device):
        for number, rows in enumerate(rows_of_operation):
            part = JITTER_OPERATIONS[number](x[rows], factors[rows, number])
            x.index_copy_(0, rows, part)
    x = torch.where(_per_image(augmentation.grey, device), luma(x), x)
    return _finished(x)


def _turns(order: torch.Tensor, device: torch.device) -> Iterator[tuple[torch.Tensor, ...]]:
    """For each of the four turns, the images that each operation is applied to."""
    rows = sent(order.argsort(dim=0), device)
    for turn in range(order.size(1)):
        counts = order[:, turn].bincount(minlength=len(JITTER_OPERATIONS)).tolist()
        yield rows[:, turn].split(counts)


def _per_image(flags: torch.Tensor, device: torch.device) -> torch.Tensor:
    return sent(flags, device)[:, None, None, None]


def _finished(x: torch.Tensor) -> torch.Tensor:
    return normalised(x).contiguous(memory_format=torch.channels_last)


def resize_boxes(images: torch.Tensor, boxes: torch.Tensor) -> torch.Tensor:
    """Cuts a box out of each image and resizes it, for all images at once.

    Resizing is linear, and the same for all rows and for all columns: two batched matrix
    products, which GPUs are made for. Rounds between them, as PIL does.

    Args:
        images: (B, H, W, 3) uint8.
        boxes: (B, 4) top, left, height, width, in pixels, on the same device.

    Returns:
        (B, 3, 224, 224) float32 with whole numbers, within ±1 of `resize` of the crops.
    """
    x = images.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format)
    top, left, height, width = boxes.unbind(1)
    rows = _weights(top, height, images.size(1)).unsqueeze(1)  # (B, 1, 224, H)
    columns = _weights(left, width, images.size(2)).unsqueeze(1)
    with full_precision(images.device):  # an evaluation may read images under autocast
        x = (x @ columns.transpose(-1, -2)).round_()
        return (rows @ x).round_()


def _weights(start: torch.Tensor, length: torch.Tensor, stored: int) -> torch.Tensor:
    """(B, 224, stored): the share of each stored pixel in each new one.

    A triangle around the new pixel's centre, as wide as the pixel or as two of the stored ones,
    whichever is more, and cut off at the ends of the box.
    """
    start, length = (v[:, None, None].float() for v in (start, length))
    new = torch.arange(IMAGE_SIZE, device=start.device)[:, None] + 0.5
    old = torch.arange(stored, device=start.device) + 0.5
    scale = length / IMAGE_SIZE
    distance = (old - (start + new * scale)).abs() / scale.clamp(min=1)
    weights = (1 - distance).clamp_(min=0) * ((old > start) & (old < start + length))
    return weights / weights.sum(dim=-1, keepdim=True)
