"""How far apart vectors are: those of two domains, or two estimates of the same curvature."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn import functional as F


@dataclass(frozen=True)
class Comparison:
    """One vector per domain, E of them, compared with each other.

    Attributes:
        norms: E Euclidean norms.
        distances: E × E Euclidean distances.
        cosines: E × E cosines of the angles between them.
    """

    norms: list[float]
    distances: list[list[float]]
    cosines: list[list[float]]


@dataclass(frozen=True)
class Closeness:
    """An estimate beside the exact curvature, for E domains.

    Attributes:
        cosine: of the angle between the two, over all parameters.
        correlation: Pearson's, over all parameters.
        relative_distance: ‖estimate − exact‖ / ‖exact‖.
    """

    cosine: list[float]
    correlation: list[float]
    relative_distance: list[float]


def compare(vectors: torch.Tensor) -> Comparison:
    """Compares the rows of (E, P) with each other."""
    # Squared gradients of a model that fits well are far below the usual floor of 1e-12.
    directions = F.normalize(vectors, dim=1, eps=torch.finfo(vectors.dtype).tiny)
    return Comparison(
        norms=vectors.norm(dim=1).tolist(),
        # Not by a matrix product, which loses the distance of vectors that are nearly the same.
        distances=torch.cdist(
            vectors, vectors, compute_mode="donot_use_mm_for_euclid_dist"
        ).tolist(),
        cosines=(directions @ directions.T).tolist(),
    )


def closeness(estimates: torch.Tensor, exact: torch.Tensor) -> Closeness:
    """Compares (E, P) with (E, P), row by row."""
    smallest = torch.finfo(exact.dtype).tiny
    distance = (estimates - exact).norm(dim=1) / exact.norm(dim=1).clamp_min(smallest)
    return Closeness(
        cosine=_cosines(estimates, exact).tolist(),
        correlation=_cosines(_centred(estimates), _centred(exact)).tolist(),
        relative_distance=distance.tolist(),
    )


def _cosines(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """(E,) cosines of rows; 0 where a row is 0. Curvatures may be tiny: normalised one by one."""
    smallest = torch.finfo(a.dtype).tiny
    return (F.normalize(a, dim=1, eps=smallest) * F.normalize(b, dim=1, eps=smallest)).sum(dim=1)


def _centred(vectors: torch.Tensor) -> torch.Tensor:
    return vectors - vectors.mean(dim=1, keepdim=True)
