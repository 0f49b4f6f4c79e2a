"""What was published about a dataset; light to import."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class DatasetInfo:
    """The published facts about a dataset.

    Attributes:
        domains: full names, in order.
        classes: names, or None where there are too many to list here.
        num_classes: C.
        images: images per domain, in order; empty where that was not published.
        source: where it comes from.
        licence: the terms of use.
        citation: who to cite.
        folder: where it lies below `data_dir`; empty if it needs none.
        note: what surprises its users.
        sparse: whether a domain may lack images of some classes.
        fetched: whether a run downloads it if it is missing.
    """

    domains: tuple[str, ...]
    classes: tuple[str, ...] | None
    num_classes: int
    images: tuple[int, ...]
    source: str
    licence: str
    citation: str
    folder: str = ""
    note: str = ""
    sparse: bool = False
    fetched: bool = False
