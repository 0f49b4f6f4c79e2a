"""Losses over the pairs of samples in an update: softmaxes over those pairs that count."""

from __future__ import annotations

import math

import torch
from torch.nn import functional as F

from domainbed.core.precision import full_precision


def similarities(z: torch.Tensor, temperature: float, is_normalized: bool = False) -> torch.Tensor:
    """(N, N) z_i · z_j / τ of features z (N, d), scaled to length 1 before if that is asked for."""
    # In full precision: they are exponents.
    with full_precision(z.device):
        full = z.to(torch.promote_types(z.dtype, torch.float32))
        full = F.normalize(full, dim=1) if is_normalized else full
        return full @ full.T / temperature


def masked_log_softmax(
    scores: torch.Tensor, support: torch.Tensor, floor: float = 0.0
) -> torch.Tensor:
    """log p, p_i· the softmax of row i over the entries that `support` holds.

    Args:
        scores: (N, M).
        support: (N, M) of truth values.
        floor: added to the sums that the p are shares of.

    Returns:
        (N, M); outside the support the lowest finite number, without a gradient, so that a row
        without support has no NaN.
    """
    kept = outside(scores, support)
    total = kept.logsumexp(dim=1, keepdim=True)
    if floor:
        total = torch.logaddexp(total, total.new_full((), math.log(floor)))
    return kept - total


def log_probability(
    scores: torch.Tensor, support: torch.Tensor, event: torch.Tensor
) -> torch.Tensor:
    """(N,) log Σ_{j in event_i} p_ij, with p of `masked_log_softmax`; event is in support.

    A row with an empty event has a finite number without meaning, and no gradient.
    """
    return outside(masked_log_softmax(scores, support), event).logsumexp(dim=1)


def outside(values: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
    """`values` with the lowest finite number wherever `kept` does not hold."""
    return values.masked_fill(~kept, torch.finfo(values.dtype).min)


def mean_over(values: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
    """The mean of the values (N,) where `kept` (N,) holds; 0 where it holds nowhere."""
    return values.where(kept, 0.0).sum() / kept.sum().clamp(min=1)


def same(labels: torch.Tensor) -> torch.Tensor:
    """(N, N) whether two samples have the same of `labels` (N,)."""
    return labels.unsqueeze(0) == labels.unsqueeze(1)


def others(size: int, device: torch.device) -> torch.Tensor:
    """(N, N) whether two samples are not one and the same."""
    return ~torch.eye(size, dtype=torch.bool, device=device)
