"""MMD: match the distributions of the features across domains by their kernel means."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from domainbed.algorithms.base import register_algorithm
from domainbed.algorithms.distances import averages, in_full_precision, kernel_sum
from domainbed.algorithms.matching import FeatureMatching


@in_full_precision
def mmd_penalty(features: Sequence[torch.Tensor]) -> torch.Tensor:
    """The mean over pairs of domains of K̄_ii + K̄_jj − 2 K̄_ij; 0 with a single domain.

    K̄_ij is the mean of the kernel, see `kernel_sum`, over all pairs of a sample of i and one of
    j, so that K̄_ii counts each sample with itself as well. Features (B, d) of each domain.
    """
    count = len(features)
    if count == 1:
        return features[0].new_zeros(())
    means = averages([len(z) for z in features], features[0])
    total = means.sum(dim=0)
    # Σ_{i<j} (m_i − m_j)(m_i − m_j)ᵀ = E Σ_i m_i m_iᵀ − (Σ_i m_i)(Σ_i m_i)ᵀ
    weights = (count * means.T @ means - torch.outer(total, total)) * 2 / (count * (count - 1))
    return kernel_sum(torch.cat(list(features)), weights)


@register_algorithm
class MMD(FeatureMatching):
    """Maximum mean discrepancy of the features.

        loss = mean_e CE_e + mmd_gamma · mean_{i<j} MMD²(φ(x_i), φ(x_j))

    φ(x_e): (B, d). MMD² is the biased estimate with a sum of seven Gaussian kernels. As in
    DomainBed this is the paper's penalty alone, without its autoencoder and adversary.
    """

    paper = "Li, Pan, Wang, Kot, Domain Generalization with Adversarial Feature Learning, CVPR 2018"

    def penalty_of(self, features: Sequence[torch.Tensor]) -> torch.Tensor:
        return mmd_penalty(features)
