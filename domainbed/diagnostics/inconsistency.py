"""The inconsistency between domains at given weights (Parascandolo et al. 2021; Ramé et al. 2022).

    I(A, B) = R_B − R_A + max over ½ θᵀH_Aθ ≤ ε of ½ θᵀH_Bθ

How much higher B's risk may be at weights that A hardly distinguishes: the first term is the
difference of the risks, and the second is how much B's risk rises over weights at which A's risk
(a quadratic with Hessian H_A) rises by at most ε. The inner maximum is ε times the
largest generalised eigenvalue of (H_B, H_A), for diagonal Hessians ε · max_i h_B,i / h_A,i.

Damping: curvatures below 0 count as 0, and `damping` times the mean curvature of all domains is
added to every one, as if each risk had the same small quadratic penalty on the weights. So a
direction that neither risk depends on has the ratio 1.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import permutations

import torch


@dataclass(frozen=True)
class Pair:
    """I(A, B) and its parts, in nats.

    Attributes:
        a: the domain whose risk bounds the weights.
        b: the domain whose risk rises.
        risk_difference: R_B − R_A.
        curvature_ratio: the largest ratio of H_B to H_A in any direction; without unit.
        curvature_term: ε times that.
        total: I(A, B).
    """

    a: int
    b: int
    risk_difference: float
    curvature_ratio: float
    curvature_term: float
    total: float


@dataclass(frozen=True)
class Inconsistency:
    """The score under one kind of curvature.

    Attributes:
        score: over pairs of training domains, which the theory speaks of; None if there is one.
        score_with_test: over pairs of all domains.
        pairs: all ordered pairs.
        damped: how many curvatures of each domain lie below the damping.
    """

    score: float | None
    score_with_test: float | None
    pairs: list[Pair]
    damped: list[int]


def inconsistency(
    risks: torch.Tensor,
    ratios: torch.Tensor,
    damped: torch.Tensor,
    training: Collection[int],
    epsilon: float,
) -> Inconsistency:
    """The score of E domains.

    Args:
        risks: (E,).
        ratios: (E, E), at (A, B) the largest ratio of H_B to H_A.
        damped: (E,), see `diagonal_ratios`.
        training: the numbers of the training domains.
        epsilon: ε, in nats.
    """
    found = pairs(risks, ratios, epsilon)
    both = score(found, training), score(found, range(len(risks)))
    return Inconsistency(*both, found, damped.tolist())


def pairs(risks: torch.Tensor, ratios: torch.Tensor, epsilon: float) -> list[Pair]:
    """All ordered pairs of different domains, see `inconsistency`."""
    found = []
    for a, b in permutations(range(len(risks)), 2):
        difference, ratio = float(risks[b] - risks[a]), float(ratios[a, b])
        term = epsilon * ratio
        found.append(Pair(a, b, difference, ratio, term, difference + term))
    return found


def score(found: Sequence[Pair], among: Collection[int]) -> float | None:
    """The maximum of I(A, B) over pairs of the domains in `among`; None if there is no pair."""
    return max((pair.total for pair in found if {pair.a, pair.b} <= set(among)), default=None)


def diagonal_ratios(diagonals: torch.Tensor, damping: float) -> tuple[torch.Tensor, torch.Tensor]:
    """The largest ratios of diagonal Hessians.

    Args:
        diagonals: (E, P).
        damping: relative to the mean of `diagonals`; more than 0.

    Returns:
        (E, E), at (A, B) max_i h_B,i / h_A,i; and (E,), the entries of each domain that lie
        below the damping, which decides over them.
    """
    curved = diagonals.clamp_min(0)
    added = _added(curved, damping)
    damped = curved + added
    ratios = torch.stack([(damped / of_a).amax(dim=1) for of_a in damped])
    return ratios, (curved < added).sum(dim=1)


def full_ratios(hessians: torch.Tensor, damping: float) -> tuple[torch.Tensor, torch.Tensor]:
    """As `diagonal_ratios`, for full Hessians (E, P, P): the largest generalised eigenvalues.

    What is damped and counted are eigenvalues; the mean curvature is their mean.
    """
    values, vectors = torch.linalg.eigh(hessians)  # (E, P), (E, P, P)
    curved = values.clamp_min(0)
    added = _added(curved, damping)
    damped = [(v * (c + added)) @ v.T for v, c in zip(vectors, curved)]
    ratios = values.new_ones(len(hessians), len(hessians))
    for i, (v, c) in enumerate(zip(vectors, curved)):
        whitening = v / (c + added).sqrt()  # W with Wᵀ H_A W = 1
        for j, hessian in enumerate(damped):
            if i != j:
                ratios[i, j] = torch.linalg.eigvalsh(whitening.T @ hessian @ whitening)[-1]
    return ratios, (curved < added).sum(dim=1)


def _added(curved: torch.Tensor, damping: float) -> torch.Tensor:
    """The damping in units of curvature; above 0 even where nothing is curved."""
    return (damping * curved.mean()).clamp_min(torch.finfo(curved.dtype).tiny)
