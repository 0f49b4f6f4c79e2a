"""Convolutions by Winograd's method, for predictions on the CPU."""

from __future__ import annotations

from functools import cache

import torch
from torch import nn


def convolve(layer: nn.Conv2d, x: torch.Tensor) -> torch.Tensor:
    """What a 3×3 convolution of stride 1 and padding 1 gives, (B, C, H, W) to (B, K, H, W).

    In a network that predicts with float32 on the CPU, NNPACK does it by Winograd's method (Lavin
    and Gray 2015, arXiv 1509.09308) in two thirds of the time: the same up to float32's rounding.
    What is trained does not go through it: NNPACK knows no gradients. Nor do small images, which
    take it longer, and what several threads do, of which it uses one.
    """
    is_learning = layer.training or torch.is_grad_enabled()
    pays = min(x.shape[2:]) >= _LEAST_SIZE and torch.get_num_threads() == 1
    if is_learning or not pays or not _is_known(x.dtype, x.device.type):
        return layer(x)
    weight = layer.weight.contiguous()
    return torch._nnpack_spatial_convolution(x.contiguous(), weight, layer.bias, 1, 1)


_LEAST_SIZE = 12


def _is_known(dtype: torch.dtype, device: str) -> bool:
    as_it_is = dtype == torch.float32 and not torch.is_autocast_enabled(device)
    return as_it_is and device == "cpu" and _has_nnpack()


@cache
def _has_nnpack() -> bool:
    """Whether PyTorch was built with NNPACK and the processor can do what it needs; sets it up."""
    return hasattr(torch, "_nnpack_spatial_convolution") and torch._nnpack_available()
