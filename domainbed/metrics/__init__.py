"""What is measured of predictions. A new metric: a function here, or registered from outside.

Each is a function of logits (B, C) and labels (B,) that returns a value per image, (B,); the mean
over all images of a split is recorded. A single logit (C = 1) is a binary decision at 0.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.nn import functional as F

from domainbed.core.registry import Registry

Metric = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]

METRICS: Registry[Metric] = Registry("metric", entry_point_group="domainbed.metrics")


@METRICS.register
def accuracy(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Whether each prediction is right; none is where a logit is infinite or no number."""
    predicted = logits.squeeze(1) > 0 if logits.size(1) == 1 else logits.argmax(dim=1)
    return (predicted == labels) & logits.isfinite().all(dim=1)


@METRICS.register
def loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The cross-entropy in nats."""
    if logits.size(1) == 1:
        return F.binary_cross_entropy_with_logits(
            logits.squeeze(1).float(), labels.float(), reduction="none"
        )
    return F.cross_entropy(logits.float(), labels, reduction="none")
