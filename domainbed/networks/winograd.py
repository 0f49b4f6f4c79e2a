"""Convolutions by Winograd's method, for predictions on the CPU."""

from __future__ import annotations

from functools import cache

import torch
from torch import nn


def convolve(layer: nn.Conv2d, x: torch.Tensor) -> torch.Tensor:
    """What a 3×3 convolution of stride 1 and padding 1 gives, (B, C, H, W) to (B, K, H, W).

    In a network that predicts with float32 on the CPU, NNPACK does it by Winograd's method (Lavin
    and Gray 2015, arXiv 1509.09308) in two thirds of the time: the same up to float32's rounding.
    Updates do not go through it: NNPACK knows no gradients. Nor do maps smaller than 12 × 12, which
    take it longer, and what several threads do, of which it uses one. Hooks of the layer are not
    called.
    """
    is_learning = layer.training or torch.is_grad_enabled()
    pays = min(x.shape[2:]) >= _LEAST_SIZE and torch.get_num_threads() == 1
    if is_learning or not pays or not _is_known(x):
        return layer(x)
    weight = layer.weight.contiguous()
    return torch._nnpack_spatial_convolution(x.contiguous(), weight, layer.bias, 1, 1)


_LEAST_SIZE = 12


def _is_known(x: torch.Tensor) -> bool:
    if x.device.type != "cpu" or x.dtype != torch.float32:
        return False
    return not torch.is_autocast_enabled("cpu") and _has_nnpack()


@cache
def _has_nnpack() -> bool:
    """Whether PyTorch was built with NNPACK and the processor can do what it needs; sets it up."""
    return hasattr(torch, "_nnpack_spatial_convolution") and torch._nnpack_available()
