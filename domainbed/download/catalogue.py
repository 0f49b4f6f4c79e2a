"""Where each published dataset comes from: sources in the order in which they are tried."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml


@dataclass(frozen=True)
class Archive:
    """One file that a server offers.

    Attributes:
        url: a Google Drive link, or plain HTTP(S).
        name: what the file is called.
        md5: of the published file, or empty if unknown.
    """

    url: str
    name: str
    md5: str = ""


@dataclass(frozen=True)
class DataSource:
    """A place that offers the whole dataset, by one of `archives`, `hub` and `torchvision`.

    Attributes:
        title: what messages call it.
        size: bytes before they are unpacked, for the check of disk space; rounded up where they are
            not published.
        archives: the files to download.
        hub: the name of a dataset repository on the Hugging Face Hub.
        torchvision: the name of a class in `torchvision.datasets`, which downloads the files.
    """

    title: str
    size: int
    archives: tuple[Archive, ...] = ()
    hub: str = ""
    torchvision: str = ""


@dataclass(frozen=True)
class Origin:
    """All that is known about getting a dataset.

    Attributes:
        sources: in the order in which they are tried.
        aliases: other names of its domains, as `plain` writes them.
        variants: images per domain of other editions that are complete too.
    """

    sources: tuple[DataSource, ...]
    aliases: Mapping[str, str] = field(default_factory=dict)
    variants: Mapping[str, tuple[int, ...]] = field(default_factory=dict)


def plain(name: str) -> str:
    """Lower-case letters and digits only, equal for "Real World", "real_world" and "RealWorld"."""
    return re.sub(r"[^a-z0-9]", "", name.lower())


def published_name(name: str, published: Iterable[str], aliases: Mapping[str, str]) -> str | None:
    """The published name that `name` stands for, or None."""
    known = {plain(other): other for other in published}
    return known.get(plain(name)) or aliases.get(plain(name))


def _origin(said: Mapping[str, Any]) -> Origin:
    """What sources.yaml says about a dataset."""
    sources = tuple(
        DataSource(**{**each, "archives": tuple(Archive(**a) for a in each.get("archives", ()))})
        for each in said["sources"]
    )
    variants = {name: tuple(numbers) for name, numbers in said.get("variants", {}).items()}
    return Origin(sources, said.get("aliases", {}), variants)


_TEXT = Path(__file__).with_name("sources.yaml").read_text(encoding="utf-8")
SOURCES = {name: _origin(said) for name, said in yaml.safe_load(_TEXT).items()}
