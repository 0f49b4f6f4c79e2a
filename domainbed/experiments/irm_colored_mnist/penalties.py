"""The penalties of the algorithms, for one logit per image and two domains, full batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from domainbed.algorithms.fishr import fishr_penalty
from domainbed.algorithms.irm import scale_gradient
from domainbed.algorithms.vrex import vrex_penalty
from domainbed.core.registry import Registry
from domainbed.gradients import (
    gradient_covariances,
    gradient_second_moments,
    gradient_variances,
)

PENALTIES: Registry[Callable[[ForwardPass], torch.Tensor | None]] = Registry("algorithm")
"""By algorithm: a function of a `ForwardPass` to a scalar, or to None where there is none."""


@dataclass(frozen=True)
class ForwardPass:
    """What the network made of all training images, one domain after the other.

    Attributes:
        features: (B, d) in all, what the last layer reads, in blocks.
        logits: (B, 1).
        labels: (B, 1), 0 or 1, in the type of the logits.
        domain_sizes: images per domain, which sum to B.
        classifier: the last layer.
    """

    features: Sequence[torch.Tensor]
    logits: torch.Tensor
    labels: torch.Tensor
    domain_sizes: list[int]
    classifier: nn.Module

    def per_domain(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Logits and labels of each domain."""
        sizes = self.domain_sizes
        return list(zip(self.logits.split(sizes), self.labels.split(sizes), strict=True))

    def risks(self) -> torch.Tensor:
        """(E,) mean binary cross-entropies."""
        pairs = self.per_domain()
        return torch.stack([F.binary_cross_entropy_with_logits(*pair) for pair in pairs])


@PENALTIES.register(name="ERM")
def no_penalty(forward: ForwardPass) -> None:
    """ERM minimises the mean risk alone."""


@PENALTIES.register(name="IRM")
def irm(forward: ForwardPass) -> torch.Tensor:
    """mean_e g_e², g_e the derivative of L_e with respect to a scale of the logits.

    Arjovsky et al. 2019, equation IRMv1. One logit l is the two logits (0, l).
    """
    gradients = [
        scale_gradient(F.pad(logits, (1, 0)), labels.squeeze(1).long())
        for logits, labels in forward.per_domain()
    ]
    return torch.stack(gradients).square().mean()


@PENALTIES.register(name="VREx")
def vrex(forward: ForwardPass) -> torch.Tensor:
    """(L_0 − L_1)²: four times the variance of two risks (Krueger et al. 2021, equation 8)."""
    return 4 * vrex_penalty(forward.risks())


@PENALTIES.register(name="Fishr")
def fishr(forward: ForwardPass) -> torch.Tensor:
    """Σ_e ‖v_e − v̄‖², v_e the variances of the last layer's gradients (Ramé et al. 2022, eq. 4)."""
    return _summed_deviation(forward, gradient_variances)


@PENALTIES.register(name="Fishr-offdiagonal")
def fishr_offdiagonal(forward: ForwardPass) -> torch.Tensor:
    """Σ_e ‖C_e − C̄‖², Frobenius norm, C_e the covariances of the last layer's gradients."""
    return _summed_deviation(forward, gradient_covariances)


@PENALTIES.register(name="Fishr-uncentred")
def fishr_uncentred(forward: ForwardPass) -> torch.Tensor:
    """As Fishr, with the mean squares of the gradients in place of their variances."""
    return _summed_deviation(forward, gradient_second_moments)


def _summed_deviation(
    forward: ForwardPass, statistics: Callable[..., torch.Tensor]
) -> torch.Tensor:
    values = statistics(
        forward.classifier,
        torch.cat(list(forward.features)),
        forward.labels,
        forward.domain_sizes,
        loss="bce_with_logits",
    )
    return fishr_penalty(values, "sum") * len(values)  # a sum over the domains as well
