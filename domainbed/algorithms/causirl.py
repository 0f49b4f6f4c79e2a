"""CausIRL: features whose distribution does not change with the mixture of domains."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch

from domainbed.algorithms.base import register_algorithm
from domainbed.algorithms.coral import FeatureMatching, coral_penalty
from domainbed.algorithms.mmd import mmd_penalty


def two_mixtures(
    features: Sequence[torch.Tensor], cuts: Sequence[int]
) -> tuple[torch.Tensor, torch.Tensor]:
    """The first k_e features of every domain, and the rest: (Σ k, d) and (N − Σ k, d)."""
    pairs = list(zip(features, cuts))
    return torch.cat([z[:k] for z, k in pairs]), torch.cat([z[k:] for z, k in pairs])


class CausIRL(FeatureMatching):
    """Matches two random mixtures of the domains.

        k_e uniform in {0, …, B_e − 1},  A = ∪_e φ(x_e)[:k_e],  B = ∪_e φ(x_e)[k_e:]
        loss = mean_e CE_e + mmd_gamma · distance(A, B)

    φ(x_e): (B_e, d). The penalty is 0 where A or B has fewer than two samples. As in DomainBed a
    distance that overflows is the largest number, and one that is none is 0.

    Attributes:
        distance: of A and B, a scalar.
        draws: source of the k_e.
    """

    paper = (
        "Chevalley, Bunne, Krause, Bauer, Invariant Causal Mechanisms through Distribution "
        "Matching, arXiv 2206.11646"
    )

    distance: ClassVar[staticmethod[[Sequence[torch.Tensor]], torch.Tensor]]

    def penalty_of(self, features: Sequence[torch.Tensor]) -> torch.Tensor:
        mixtures = two_mixtures(features, [self.draws.integer(len(z)) for z in features])
        if min(map(len, mixtures)) < 2:
            return features[0].new_zeros(())
        return self.distance(mixtures).nan_to_num()


@register_algorithm
class CausIRL_CORAL(CausIRL):
    """CausIRL with CORAL's distance, of means and covariances; see `CausIRL`."""

    distance = staticmethod(coral_penalty)


@register_algorithm
class CausIRL_MMD(CausIRL):
    """CausIRL with MMD's distance, of kernel means; see `CausIRL`."""

    distance = staticmethod(mmd_penalty)
