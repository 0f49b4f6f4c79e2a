"""MMD: match the distributions of the features across domains by their kernel means."""

from collections.abc import Sequence
from typing import Any

import torch
from torch.autograd.function import once_differentiable

from domainbed.algorithms.base import register_algorithm
from domainbed.algorithms.coral import FeatureMatching
from domainbed.algorithms.erm import in_full_precision

# The inverse widths of DomainBed's Gaussian kernel, which is a sum of one term for each.
GAMMAS = (1e-3, 1e-2, 1e-1, 1.0, 1e1, 1e2, 1e3)


def averages(sizes: Sequence[int], like: torch.Tensor) -> torch.Tensor:
    """(E, N) weights: row e averages over domain e, whose samples come after those before it."""
    return torch.block_diag(*[like.new_full((1, size), 1 / size) for size in sizes])


def kernel_sum(
    z: torch.Tensor, weights: torch.Tensor, gammas: Sequence[float] = GAMMAS
) -> torch.Tensor:
    """Σ_nm W_nm k(z_n, z_m), k(a, b) = Σ_γ exp(−γ ‖a − b‖²).

    The squared maximum mean discrepancy of two sets is that with W = c cᵀ, c = 1/n_i in the one
    set and −1/n_j in the other (Gretton et al. 2012, equation 5).

    Args:
        z: (N, d).
        weights: W, (N, N), symmetric and constant.
        gammas: inverse widths.

    Returns:
        a scalar, which can be differentiated once.
    """
    return _KernelSum.apply(z, weights, gammas)


class _KernelSum(torch.autograd.Function):
    """`kernel_sum` with its gradient from the same exponentials.

    ∂/∂z_n = −4 Σ_m W_nm Σ_γ γ exp(−γ ‖z_n − z_m‖²) (z_n − z_m). Autograd would keep an (N, N)
    matrix for each γ, and DomainBed's ‖a‖² + ‖b‖² − 2 a·b is rounding where a and b are near.
    """

    @staticmethod
    def forward(
        ctx: Any, z: torch.Tensor, weights: torch.Tensor, gammas: Sequence[float]
    ) -> torch.Tensor:
        z = z - z.mean(dim=0)  # for small products below: nothing depends on a common shift
        squares = torch.cdist(z, z, compute_mode="donot_use_mm_for_euclid_dist").square()
        kernel, slope = torch.zeros_like(squares), torch.zeros_like(squares)
        for gamma in gammas:
            term = torch.exp(-gamma * squares)
            kernel += term
            slope += gamma * term
        pull = (weights * slope).fill_diagonal_(0)  # a sample does not pull at itself
        ctx.save_for_backward(4 * (pull @ z - pull.sum(dim=1, keepdim=True) * z))
        return (weights * kernel).sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        (of_z,) = ctx.saved_tensors
        return gradient * of_z, None, None


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
