"""How far apart sets of features lie, as pure functions that several methods share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any, TypeVar

import torch
from torch.autograd.function import once_differentiable

from domainbed.core.precision import full_precision

T = TypeVar("T")

GAMMAS = (1e-3, 1e-2, 1e-1, 1.0, 1e1, 1e2, 1e3)
"""The inverse widths of DomainBed's Gaussian kernel, which is a sum of one term for each."""


def in_full_precision(
    function: Callable[[Sequence[torch.Tensor]], T],
) -> Callable[[Sequence[torch.Tensor]], T]:
    """The same function of one tensor per domain, computed in float32 or better.

    Statistics of bfloat16 numbers hardly differ by anything but rounding.
    """

    @wraps(function)
    def computed(values: Sequence[torch.Tensor]) -> T:
        with full_precision(values[0].device):
            return function([z.to(torch.promote_types(z.dtype, torch.float32)) for z in values])

    return computed


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


def _covariance(z: torch.Tensor) -> torch.Tensor:
    centred = z - z.mean(0)
    return centred.T @ centred / (len(z) - 1)


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
