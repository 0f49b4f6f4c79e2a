"""Methods that DomainBed computes otherwise than their paper describes: the choice of a reading."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from domainbed.config.dimensions import Option, with_defaults

DOMAINBED, PAPER = "domainbed", "paper"


def two_readings(default: str, doc: str, further: tuple[str, ...] = ()) -> dict[str, Option]:
    """The option `fidelity`, for an algorithm's `options`; every run's records say which it was.

    Args:
        default: `DOMAINBED`, `PAPER` or one of `further`.
        doc: what DomainBed does differently, in a few words.
        further: more readings than the two.
    """
    values = (DOMAINBED, PAPER, *further)
    return {"fidelity": Option(default, doc, values, always_recorded=True)}


def reading(options: Mapping[str, Option], hparams: Mapping[str, Any]) -> str:
    """The reading that was chosen among an algorithm's `options`, by its hyper-parameters."""
    return str(with_defaults({"fidelity": options["fidelity"]}, hparams)["fidelity"])
