"""The published preprocessing of natural images, drawn one at a time or for whole minibatches.

One at a time, what is random is drawn by torchvision's own functions, in the order of the published
pipeline (`torchvision.transforms` over PIL images), so the same state of PyTorch's global source
gives the same augmentation; pixels agree with PIL's up to rounding.

For whole minibatches the law of the parameters is the same. They are drawn on the CPU from one
generator, so that every device, and any number of threads, gets the same ones.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Literal

import torch
from torch.nn import functional as F

from domainbed.networks.pretrained import scale_and_offset

IMAGE_SIZE = 224

# What the training augmentation crops: the image as it is, the image resized to 224×224, or
# nothing: the whole image is resized.
Crop = Literal["image", "resized", "none"]

CROP_AREA, CROP_RATIO = (0.7, 1.0), (3 / 4, 4 / 3)
JITTER, HUE, GREY = (0.7, 1.3), (-0.3, 0.3), 0.1

_ATTEMPTS = 10  # as in torchvision, before it crops centrally
_RED, _GREEN, _BLUE = 19595 / 65536, 38470 / 65536, 7471 / 65536  # luma of ITU-R 601, in PIL


def resize(
    image: torch.Tensor,
    height: int = IMAGE_SIZE,
    width: int = IMAGE_SIZE,
    mode: str = "bilinear",
) -> torch.Tensor:
    """(3, H, W) uint8 to (3, height, width) with antialiasing, within ±1 of PIL's `resize`."""
    # PyTorch takes its fast path only if pixels, not channels, lie together without gaps.
    dense = image[None].contiguous(memory_format=torch.channels_last)
    return F.interpolate(dense, (height, width), mode=mode, antialias=True)[0]


def evaluation_transform(image: torch.Tensor, size: int = IMAGE_SIZE) -> torch.Tensor:
    """(3, H, W) uint8 to (3, size, size) float32: resized, normalised."""
    return normalised(_planes(resize(image, size, size)))


def training_transform(
    image: torch.Tensor, crop: Crop = "image", size: int = IMAGE_SIZE
) -> torch.Tensor:
    """(3, H, W) uint8 to (3, size, size) float32: augmented, normalised."""
    from torchvision.transforms import ColorJitter, RandomResizedCrop

    if crop == "resized":
        image = resize(image, size, size)
    box: Sequence[int] = (0, 0, *image.shape[1:])
    if crop != "none":
        box = RandomResizedCrop.get_params(image, [*CROP_AREA], [*CROP_RATIO])
    flip = bool(torch.rand(1) < 0.5)
    order, *factors = ColorJitter.get_params(JITTER, JITTER, JITTER, HUE)
    factors[3] = int(factors[3] * 255) % 256  # as torchvision does for PIL's 256 hues
    grey = bool(torch.rand(1) < GREY)
    return normalised(augmented(image, box, flip, order.tolist(), factors, grey, size))


def augmented(
    image: torch.Tensor,
    box: Sequence[int],
    flip: bool,
    order: Sequence[int],
    factors: Sequence[float],
    grey: bool,
    size: int = IMAGE_SIZE,
) -> torch.Tensor:
    """(3, H, W) uint8 to (3, size, size) float32 that holds whole numbers from 0 to 255.

    Args:
        image: the pixels.
        box: the crop: top, left, height, width.
        flip: whether left and right change places.
        order: positions in `JITTER_OPERATIONS`, the first one first.
        factors: of each of these operations.
        grey: whether to remove all colour.
        size: height and width of the result.
    """
    top, left, height, width = box
    resized = resize(image[:, top : top + height, left : left + width], size, size)
    x = _planes(resized.flip(-1) if flip else resized)
    for operation in order:
        JITTER_OPERATIONS[operation](x, factors[operation])
    if grey:
        x[:] = luma(x)
    return x


def _planes(image: torch.Tensor) -> torch.Tensor:
    """As float32, one channel after the other, on which the colour operations are fast."""
    return image.to(torch.float32, memory_format=torch.contiguous_format)


# ---- colour operations ----
#
# With the arithmetic of PIL on whole numbers from 0 to 255. All take x of shape (…, 3, H, W),
# float32 that holds whole numbers, and change it in place. A factor is a number, or a tensor that
# broadcasts over (…, 1, 1, 1). Every result is a whole number again, truncated or rounded where PIL
# does so. Two differences to PIL remain: the hue, by one of PIL's 255 steps, in the rare pixel that
# lies on the border between two; and the contrast, by one grey level, in the rare image whose mean
# luma does.


def luma(x: torch.Tensor) -> torch.Tensor:
    """(…, 1, H, W): the luma."""
    red, green, blue = x.split(1, dim=-3)
    weighted = red * _RED
    return weighted.add_(green, alpha=_GREEN).add_(blue, alpha=_BLUE).add_(0.5).floor_()


def brightness_(x: torch.Tensor, factor: float) -> torch.Tensor:
    """Away from black for a factor above 1, towards it below."""
    return x.mul_(factor).clamp_(0, 255).floor_()


def contrast_(x: torch.Tensor, factor: float) -> torch.Tensor:
    """Away from, or towards, the image's mean luma."""
    red, green, blue = x.mean((-2, -1), keepdim=True).split(1, dim=-3)
    mean = (red * _RED + green * _GREEN + blue * _BLUE).add_(0.5).floor_()
    return _blend_(x, mean, factor)


def saturation_(x: torch.Tensor, factor: float) -> torch.Tensor:
    """Away from, or towards, each pixel's luma."""
    return _blend_(x, luma(x), factor)


def _blend_(x: torch.Tensor, other: torch.Tensor, factor: float) -> torch.Tensor:
    torch.lerp(other.expand_as(x), x, factor, out=x)
    return x.clamp_(0, 255).floor_()


def hue_(x: torch.Tensor, shift: float) -> torch.Tensor:
    """Turns the hue by `shift` of 256 steps, a whole number from 0 to 255.

    A colour is value V = max, chroma C = max − min and hue. With h ∈ [0, 6) the hue in sixths of
    the circle, (R, G, B) = V − C · (clamp(2 − |h − 3|), clamp(|h − 2| − 1), clamp(|h − 4| − 1)),
    clamped to [0, 1].
    """
    red, green, blue = x.split(1, dim=-3)
    value = torch.maximum(torch.maximum(red, green), blue)
    least = torch.minimum(torch.minimum(red, green), blue)
    chroma = value - least
    hue = green + blue
    hue.sub_(red).sub_(least)
    # For G ≥ B the hue is 1 + (G + B − R − min) / C sixths; else it is 6 minus that.
    hue.div_(chroma.clamp(min=1)).sub_(2)
    hue.copysign_(green - blue)
    hue.mul_(-42.5).add_(127.5).floor_().add_(shift)  # whole steps of 256
    hue.sub_((hue * (1 / 256)).floor_(), alpha=256)
    # PIL keeps 255 steps of saturation: C = V · ⌊255 (max − min) / V⌋ / 255.
    chroma.div_(value.clamp(min=1)).mul_(255).floor_().mul_(value)
    above = torch.add(value, chroma, alpha=1 / 255)
    below = value.sub_(chroma, alpha=2 / 255)
    for channel, base, centre, sign in (
        (red, below, 127.5, 1),  # 3 sixths
        (green, above, 85, -1),
        (blue, above, 170, -1),
    ):
        distance = torch.sub(hue, centre, out=channel).abs_().clamp_(42.5, 85)  # 1 to 2 sixths
        torch.addcmul(base, distance, chroma, value=sign * 6 / 255**2, out=channel).round_()
    return x


# Numbered as in torchvision's ColorJitter.
JITTER_OPERATIONS = (
    brightness_,
    contrast_,
    saturation_,
    hue_,
)


def normalised(x: torch.Tensor) -> torch.Tensor:
    """From 0 … 255 to ImageNet's mean 0 and standard deviation 1, per channel; in place."""
    scale, offset = scale_and_offset(x.device)
    return x.mul_(scale).add_(offset)


# ---- whole minibatches ----


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
        size: int = IMAGE_SIZE,
    ) -> Augmentation:
        """Random parameters.

        Args:
            sizes: (B, 2) heights and widths of the original images, whose crops are drawn.
            stored: height and width to which the images were resized.
            generator: on the CPU.
            crop: what the training augmentation crops.
            size: height and width of inputs.
        """
        count = len(sizes)
        if crop == "none":
            boxes = torch.tensor([[0, 0, *stored]]).repeat(count, 1)
        else:
            cut = sizes if crop == "image" else torch.full_like(sizes, size)
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
