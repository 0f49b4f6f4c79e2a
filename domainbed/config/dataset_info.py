"""What was published about a dataset; light to import."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from domainbed.core.names import DATASET_DOMAINS

_FILE = Path(__file__).with_name("datasets.yaml")
_TABLE: dict[str, Any] = yaml.safe_load(_FILE.read_text(encoding="utf-8"))


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


def published_info(name: str) -> DatasetInfo:
    """What datasets.yaml says about a dataset of the package."""
    said = _TABLE[name]
    classes, domains = said.get("classes"), said.get("domains", DATASET_DOMAINS[name])
    values: dict[str, Any] = {
        "images": (),
        "domains": domains,
        "classes": classes,
        "num_classes": len(classes or ()),
        **said,
    }
    lists = {name: tuple(value) for name, value in values.items() if isinstance(value, list)}
    return DatasetInfo(**{**values, **lists})
