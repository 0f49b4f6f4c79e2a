"""Deep CORAL: match means and covariances of the features across domains."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import torch

from domainbed.algorithms.base import Metrics, register_algorithm
from domainbed.algorithms.erm import ERM
from domainbed.algorithms.pooled import ForwardPass
from domainbed.dimensions import LogUniform


def coral_distance(z_i: torch.Tensor, z_j: torch.Tensor) -> torch.Tensor:
    """d(z_i, z_j) = mean((μ_i − μ_j)²) + mean((C_i − C_j)²).

    Args:
        z_i, z_j: (n_i, d) and (n_j, d) features, with at least two samples each.

    Returns:
        a scalar; μ: (d,) means, C: (d, d) covariances with divisor n − 1.
    """
    mean_difference = z_i.mean(0) - z_j.mean(0)
    covariance_difference = _covariance(z_i) - _covariance(z_j)
    return mean_difference.square().mean() + covariance_difference.square().mean()


def coral_penalty(features: Sequence[torch.Tensor]) -> torch.Tensor:
    """The mean of `coral_distance` over all pairs of domains; 0 with a single domain."""
    # In full precision: covariances of bfloat16 numbers hardly differ by anything but rounding.
    with torch.autocast(features[0].device.type, enabled=False):
        full = [z.to(torch.promote_types(z.dtype, torch.float32)) for z in features]
        distances = [coral_distance(z_i, z_j) for z_i, z_j in combinations(full, 2)]
    return torch.stack(distances).mean() if distances else full[0].new_zeros(())


def _covariance(z: torch.Tensor) -> torch.Tensor:
    centred = z - z.mean(0)
    return centred.T @ centred / (len(z) - 1)


@register_algorithm
class CORAL(ERM):
    """Correlation alignment of the features.

        loss = mean_e CE_e + mmd_gamma · mean_{i<j} d(φ(x_i), φ(x_j))

    φ(x_e): (B, d). As in DomainBed, not only the covariances of the paper's equation 1 are
    matched but the means as well, and the distance is a mean over entries.
    """

    paper = "Sun and Saenko, Deep CORAL, ECCV Workshops 2016, arXiv 1607.01719"
    search_space = {"mmd_gamma": LogUniform(1.0, -1, 1, "weight of the CORAL penalty")}
    least_samples = 2
    passes_by_domain = True

    def objective_of(self, forward: ForwardPass) -> tuple[torch.Tensor, Metrics]:
        nll = forward.domain_risks().mean()
        penalty = coral_penalty(forward.by_domain(forward.features))
        return nll + self.hparams["mmd_gamma"] * penalty, {"nll": nll, "penalty": penalty}
