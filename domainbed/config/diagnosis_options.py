"""How to look at a trained run: declared here once, for the command and for programs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

CURVATURES = ("variance", "empirical_fisher", "true_fisher", "hessian", "full_hessian")
"""The names of curvatures; all but the last, which takes the longest, are computed by default."""


@dataclass(frozen=True)
class DiagnosisOptions:
    """How to look at a run.

    Attributes:
        data_dir: where the datasets lie.
        dataset: the run's own images, as `folder:PATH` or a YAML file; None for a registered one.
        curvatures: names of `CURVATURES`.
        epsilon: ε of the inconsistency, in nats.
        damping: of curvatures, relative to their mean.
        samples: images per domain, drawn from its in-split; 0 for all.
        landscape: two domains whose risks are to be computed around the weights; empty for the
            first two training domains; None for no landscape.
        device: "cpu", "cuda", "mps"; None finds one.
        num_workers: worker processes that read images.
    """

    data_dir: str = "data"
    dataset: str | None = None
    curvatures: Sequence[str] = CURVATURES[:-1]
    epsilon: float = 0.1
    damping: float = 1e-3
    samples: int = 2000
    landscape: Sequence[int] | None = None
    device: str | None = None
    num_workers: int = 0
