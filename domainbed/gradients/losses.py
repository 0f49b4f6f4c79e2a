"""Losses that keep the samples apart."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.nn import functional as F

PerSampleLoss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def per_sample_cross_entropy(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The cross-entropy of every sample: (B, C) logits and (B,) labels to (B,) losses."""
    return F.cross_entropy(logits, labels, reduction="none")


def per_sample_binary_cross_entropy(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The binary cross-entropy of every sample, a mean over its outputs if there are several.

    Logits (B,) or (B, C), and as many labels of 0 or 1 in any shape, to (B,) losses.
    """
    targets = labels.reshape(logits.shape).to(logits.dtype)
    losses = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    return losses.reshape(len(logits), -1).mean(dim=1)


def summed(losses: torch.Tensor, samples: int) -> torch.Tensor:
    """The sum of (B,) losses, whose gradient holds the gradient of every sample.

    Raises:
        ValueError: they are not one number a sample.
    """
    if losses.shape != (samples,):
        raise ValueError(
            f"the loss has the shape {tuple(losses.shape)} for {samples} sample(s): it must give "
            "one number a sample"
        )
    return losses.sum()


_LOSSES: dict[str, PerSampleLoss] = {
    "cross_entropy": per_sample_cross_entropy,
    "bce_with_logits": per_sample_binary_cross_entropy,
}


def resolve_loss(loss: str | PerSampleLoss) -> PerSampleLoss:
    """The function that a name stands for; a function stays what it is.

    Raises:
        ValueError: no such name.
    """
    if callable(loss):
        return loss
    if loss not in _LOSSES:
        raise ValueError(f"loss is {loss!r}: expected {', '.join(_LOSSES)}, or a function")
    return _LOSSES[loss]
