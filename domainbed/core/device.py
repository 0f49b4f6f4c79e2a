"""What a GPU needs: copies that nothing waits for, and float32 products in TF32 or not.

TF32 keeps 10 of the 23 bits of a number that is multiplied; sums stay float32. PyTorch uses it
for convolutions by default, and not for matrix products. Only NVIDIA GPUs from Ampere on have it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def tf32_products(enabled: bool = True) -> Iterator[None]:
    """Computes matrix products on a GPU in TF32, or not; convolutions as before."""
    before = products_in_tf32()
    if before != enabled:
        torch.backends.cuda.matmul.allow_tf32 = enabled
    try:
        yield
    finally:
        if before != enabled:
            torch.backends.cuda.matmul.allow_tf32 = before


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Computes float32 as such: neither autocast nor TF32 rounds it.

    What autograd computes of it later is not covered: there TF32 may round each product once.
    """
    with torch.autocast(device.type, enabled=False), tf32_products(False):
        yield


def products_in_tf32() -> bool:
    """Whether matrix products on a GPU are."""
    return _in_tf32(torch.backends.cuda.matmul, torch.backends.cuda.matmul)


def convolutions_in_tf32() -> bool:
    """Whether convolutions on a GPU are."""
    return _in_tf32(getattr(torch.backends.cudnn, "conv", None), torch.backends.cudnn)


def _in_tf32(settings: Any, older: Any) -> bool:
    # From PyTorch 2.9 on; where code has used this name, reading the older one is an error.
    named = getattr(settings, "fp32_precision", None)
    return bool(older.allow_tf32) if named is None else named == "tf32"


def sent(x: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Copies a tensor from the CPU to the device, in turn with its other work.

    The tensor is first copied to memory that the system cannot move ("pinned"): from other memory,
    CUDA copies only when all earlier work is done. PyTorch keeps it until it has been read.
    """
    pinned = x.pin_memory() if device.type == "cuda" else x
    return pinned.to(device, non_blocking=True)
