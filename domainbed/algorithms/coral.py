"""Deep CORAL: match means and covariances of the features across domains."""

from collections.abc import Sequence
from itertools import combinations

import torch

from domainbed.algorithms.base import Metrics, register_algorithm
from domainbed.algorithms.erm import ERM, ForwardPass, in_full_precision
from domainbed.config.dimensions import LogUniform


class FeatureMatching(ERM):
    """loss = mean_e CE_e + mmd_gamma · penalty(φ(x_1), …, φ(x_E)).

    DomainBed reports the loss without the penalty; here it is with it, and both parts stand
    beside it.
    """

    search_space = {"mmd_gamma": LogUniform(1.0, -1, 1, "weight of the penalty on the features")}
    passes_by_domain = True

    def penalty_of(self, features: Sequence[torch.Tensor]) -> torch.Tensor:
        """A scalar of the features, (B, d) for each domain."""
        raise NotImplementedError

    def objective_of(self, forward: ForwardPass) -> tuple[torch.Tensor, Metrics]:
        nll = forward.domain_risks().mean()
        penalty = self.penalty_of(forward.by_domain(forward.features))
        return nll + self.hparams["mmd_gamma"] * penalty, {"nll": nll, "penalty": penalty}


def coral_distance(z_i: torch.Tensor, z_j: torch.Tensor) -> torch.Tensor:
    """d(z_i, z_j) = mean((μ_i − μ_j)²) + mean((C_i − C_j)²).

    Args:
        z_i, z_j: (n_i, d) and (n_j, d) features, with at least two samples each.

    Returns:
        a scalar; μ: (d,) means, C: (d, d) covariances with divisor n − 1.
    """
    mean_difference = z_i.mean(0) - z_j.mean(0)
    c_i, c_j = (z.T @ z / (len(z) - 1) for z in (z_i - z_i.mean(0), z_j - z_j.mean(0)))
    return mean_difference.square().mean() + (c_i - c_j).square().mean()


@in_full_precision
def coral_penalty(features: Sequence[torch.Tensor]) -> torch.Tensor:
    """The mean of `coral_distance` over all pairs of domains; 0 with a single domain."""
    distances = [coral_distance(z_i, z_j) for z_i, z_j in combinations(features, 2)]
    return torch.stack(distances).mean() if distances else features[0].new_zeros(())


@register_algorithm
class CORAL(FeatureMatching):
    """Correlation alignment of the features.

        loss = mean_e CE_e + mmd_gamma · mean_{i<j} d(φ(x_i), φ(x_j))

    φ(x_e): (B, d). As in DomainBed, not only the covariances of the paper's equation 1 are
    matched but the means as well, and the distance is a mean over entries.
    """

    paper = "Sun and Saenko, Deep CORAL, ECCV Workshops 2016, arXiv 1607.01719"
    least_samples = 2

    def penalty_of(self, features: Sequence[torch.Tensor]) -> torch.Tensor:
        return coral_penalty(features)
