"""Resizing with antialiasing, of 8-bit images to the size that networks take."""

from __future__ import annotations

from typing import Literal

import torch
from torch.nn import functional as F

from domainbed.core.precision import full_precision

IMAGE_SIZE = 224

Interpolation = Literal["bilinear", "bicubic"]


def resize(
    image: torch.Tensor,
    height: int = IMAGE_SIZE,
    width: int = IMAGE_SIZE,
    mode: Interpolation = "bilinear",
) -> torch.Tensor:
    """(3, H, W) uint8 to (3, height, width), within ±1 of PIL's `resize`."""
    # PyTorch takes its quick way only if pixels, not channels, lie together without gaps.
    dense = image[None].contiguous(memory_format=torch.channels_last)
    return F.interpolate(dense, (height, width), mode=mode, antialias=True)[0]


def resize_boxes(images: torch.Tensor, boxes: torch.Tensor) -> torch.Tensor:
    """Cuts a box out of each image and resizes it, for all images at once.

    Resizing is linear, and the same for all rows and for all columns: two batched matrix
    products, which GPUs are made for. Rounds between them, as PIL does.

    Args:
        images: (B, H, W, 3) uint8.
        boxes: (B, 4) top, left, height, width, in pixels, on the same device.

    Returns:
        (B, 3, 224, 224) float32 with whole numbers, within ±1 of `resize` of the cuts.
    """
    x = images.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format)
    top, left, height, width = boxes.unbind(1)
    rows = _weights(top, height, images.size(1)).unsqueeze(1)  # (B, 1, 224, H)
    columns = _weights(left, width, images.size(2)).unsqueeze(1)
    with full_precision(images.device):  # an evaluation reads images in the run's precision
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
