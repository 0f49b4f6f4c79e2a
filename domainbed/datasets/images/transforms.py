"""The published preprocessing of natural images, one at a time.

What is random is drawn by torchvision's own functions, in the order of the published pipeline
(`torchvision.transforms` over PIL images), so the same state of PyTorch's global source gives
the same augmentation; pixels agree with PIL's up to rounding.
"""

from __future__ import annotations

from typing import Literal

import torch

from domainbed.datasets.images import colour
from domainbed.datasets.images.resize import resize

Crop = Literal["image", "resized", "none"]
"""What the training augmentation cuts a part out of: the image, as it is or after it was squeezed
to 224×224; or nothing: the whole image is squeezed."""

CROP_AREA, CROP_RATIO = (0.7, 1.0), (3 / 4, 4 / 3)
JITTER, HUE, GREY = (0.7, 1.3), (-0.3, 0.3), 0.1

# Numbered as in torchvision's ColorJitter.
JITTER_OPERATIONS = (
    colour.brightness_,
    colour.contrast_,
    colour.saturation_,
    colour.hue_,
)


def evaluation_transform(image: torch.Tensor) -> torch.Tensor:
    """(3, H, W) uint8 to (3, 224, 224) float32: resized, normalised."""
    return colour.normalised(_planes(resize(image)))


def training_transform(image: torch.Tensor, crop: Crop = "image") -> torch.Tensor:
    """(3, H, W) uint8 to (3, 224, 224) float32: augmented, normalised."""
    whole = image if crop == "image" else resize(image)
    resized = whole if crop == "none" else _cropped(whole)
    if torch.rand(1) < 0.5:
        resized = resized.flip(-1)
    x = _jitter_(_planes(resized))
    if torch.rand(1) < GREY:
        x[:] = colour.grey(x)
    return colour.normalised(x)


def _cropped(image: torch.Tensor) -> torch.Tensor:
    from torchvision.transforms import RandomResizedCrop

    top, left, height, width = RandomResizedCrop.get_params(image, CROP_AREA, CROP_RATIO)
    return resize(image[:, top : top + height, left : left + width])


def _jitter_(x: torch.Tensor) -> torch.Tensor:
    from torchvision.transforms import ColorJitter

    order, *factors = ColorJitter.get_params(JITTER, JITTER, JITTER, HUE)
    factors[3] = int(factors[3] * 255) % 256  # as torchvision does for PIL's 256 hues
    for number in order.tolist():
        JITTER_OPERATIONS[number](x, factors[number])
    return x


def _planes(image: torch.Tensor) -> torch.Tensor:
    """As float32, one channel after the other, as the colour operations are fast on."""
    return image.to(torch.float32, memory_format=torch.contiguous_format)
