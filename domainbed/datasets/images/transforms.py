"""The published preprocessing of natural images, one at a time.

What is random is drawn by torchvision's own functions, in the order of the published pipeline
(`torchvision.transforms` over PIL images), so the same state of PyTorch's global source gives
the same augmentation; pixels agree with PIL's up to rounding.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch.nn import functional as F

from domainbed.datasets.images import colour

IMAGE_SIZE = 224

Crop = Literal["image", "resized", "none"]
"""What the training augmentation crops: the image as it is, the image resized to 224×224, or
nothing: the whole image is resized."""

CROP_AREA, CROP_RATIO = (0.7, 1.0), (3 / 4, 4 / 3)
JITTER, HUE, GREY = (0.7, 1.3), (-0.3, 0.3), 0.1

# Numbered as in torchvision's ColorJitter.
JITTER_OPERATIONS = (
    colour.brightness_,
    colour.contrast_,
    colour.saturation_,
    colour.hue_,
)


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


def evaluation_transform(image: torch.Tensor) -> torch.Tensor:
    """(3, H, W) uint8 to (3, 224, 224) float32: resized, normalised."""
    return colour.normalised(_planes(resize(image)))


def training_transform(image: torch.Tensor, crop: Crop = "image") -> torch.Tensor:
    """(3, H, W) uint8 to (3, 224, 224) float32: augmented, normalised."""
    from torchvision.transforms import ColorJitter, RandomResizedCrop

    if crop == "resized":
        image = resize(image)
    box: Sequence[int] = (0, 0, *image.shape[1:])
    if crop != "none":
        box = RandomResizedCrop.get_params(image, [*CROP_AREA], [*CROP_RATIO])
    flip = bool(torch.rand(1) < 0.5)
    order, *factors = ColorJitter.get_params(JITTER, JITTER, JITTER, HUE)
    factors[3] = int(factors[3] * 255) % 256  # as torchvision does for PIL's 256 hues
    grey = bool(torch.rand(1) < GREY)
    return colour.normalised(augmented(image, box, flip, order.tolist(), factors, grey))


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
        x[:] = colour.grey(x)
    return x


def _planes(image: torch.Tensor) -> torch.Tensor:
    """As float32, one channel after the other, on which the colour operations are fast."""
    return image.to(torch.float32, memory_format=torch.contiguous_format)
