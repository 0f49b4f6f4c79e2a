"""Copies from the CPU to a GPU that nothing waits for."""

from __future__ import annotations

import torch


def sent(x: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A tensor of the CPU on the device, which copies it in turn with its other work.

    Memory that the system may move is first copied to memory that stays ("pinned"): of the other,
    CUDA may copy only once all work before is done. PyTorch keeps it until it has been read.
    """
    pinned = x.pin_memory() if device.type == "cuda" else x
    return pinned.to(device, non_blocking=True)
