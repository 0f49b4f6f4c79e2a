"""Matrix products of float32 numbers: in float32, or on a GPU in TF32, and where they must not be.

TF32 keeps 10 of the 23 bits of a number that is multiplied; sums stay float32. PyTorch leaves it
to convolutions by default, and not to matrix products. Only NVIDIA GPUs from Ampere on have it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def tf32_products(enabled: bool = True) -> Iterator[None]:
    """Where matrix products on a GPU are computed in TF32, or are not; convolutions as before."""
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
    """Where float32 is computed as such: neither autocast nor TF32 rounds it.

    What autograd computes of it later is not covered: there TF32 may round products, once each.
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
