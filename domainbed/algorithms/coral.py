"""Deep CORAL: match means and covariances of the features across domains."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import torch

from domainbed.algorithms.base import register_algorithm
from domainbed.algorithms.distances import coral_distance, in_full_precision
from domainbed.algorithms.matching import FeatureMatching


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
