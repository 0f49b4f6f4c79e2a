"""The device of a run: which one, copies that nothing waits for, and products in TF32 or not.

TF32 keeps 10 of the 23 bits of a number that is multiplied; sums stay float32. PyTorch uses it
for convolutions by default, and not for matrix products. Only NVIDIA GPUs from Ampere on have it.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from domainbed.errors import UserError


def choose_device(name: str | None) -> torch.device:
    """The named device; None means CUDA, else MPS, else the CPU.

    Raises:
        UserError: the machine has no such device.
    """
    if name is None:
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    kinds = ("cpu", "cuda", "mps")
    if name.partition(":")[0] not in kinds:
        raise UserError(f"device {name!r}: expected one of {', '.join(kinds)}", "device")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        # Of a device that it was built without, PyTorch says paragraphs about its internals.
        reason = str(error).splitlines()[0].partition(". ")[0]
        said = f" ({reason})" if len(reason) < 80 else ""
        raise UserError(
            f"device {name!r} cannot be used on this machine{said}: try --device cpu", "device"
        ) from error
    return device


def require_precision(precision: str, device: torch.device) -> None:
    """Refuses a precision that the device does not have.

    Raises:
        UserError: it has no TF32.
    """
    on_gpu = device.type == "cuda"
    if precision == "tf32" and not (on_gpu and torch.cuda.get_device_capability(device) >= (8, 0)):
        here = torch.cuda.get_device_name(device) if on_gpu else device.type
        raise UserError(
            f"precision is 'tf32', which NVIDIA GPUs have from Ampere on, and the device is {here}:"
            " choose float32 or bf16",
            "precision",
        )


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
