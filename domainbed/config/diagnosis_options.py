"""How to look at a trained run: declared here once, for the command and for programs."""

from __future__ import annotations

from typing import Annotated, Literal, get_args

from pydantic import Field

from domainbed.core.settings import Listed, Settings, Text, checked
from domainbed.errors import UserError

_Curvature = Literal["variance", "empirical_fisher", "true_fisher", "hessian", "full_hessian"]

CURVATURES: tuple[_Curvature, ...] = get_args(_Curvature)
"""The names of curvatures; all but the last, which takes the longest, are computed by default."""


def _two_or_none(domains: tuple[int, ...]) -> tuple[int, ...]:
    if len(set(domains)) not in (0, 2):
        raise UserError(f"expected two domains, found {list(domains)}")
    return domains


class DiagnosisOptions(Settings):
    """How to look at a run.

    `landscape` names two domains whose risks are computed around the weights; an empty list means
    the first two training domains, None no landscape.
    """

    curvatures: Listed[_Curvature] = Field(
        CURVATURES[:-1], description="used in place of the Hessian"
    )
    landscape: Annotated[tuple[int, ...], Field(strict=False), checked(_two_or_none)] | None = (
        Field(None, description="two domains whose risks are computed around the weights")
    )
    epsilon: float = Field(0.1, gt=0, description="how much the risk of A may rise, in nats")
    damping: float = Field(
        1e-3, gt=0, description="added to all curvatures, relative to their mean"
    )
    samples: int = Field(2000, ge=0, description="images per domain, of its in-split; 0 for all")
    data_dir: Text = Field("data", description="holds the datasets")
    dataset: Text | None = Field(
        None, description="where the run's own images are now: folder:PATH or a YAML file"
    )
    device: Text | None = Field(
        None,
        description="cpu, cuda or mps",
        json_schema_extra={"default_text": "the best available"},
    )
    num_workers: int = Field(0, ge=0, description="processes that read images")
