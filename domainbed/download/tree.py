"""What lies in a dataset's folder, and how it differs from the paper."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from domainbed.config.dataset_info import DatasetInfo
from domainbed.core.image_files import folders, images
from domainbed.errors import UserError

ImageFiles = dict[str, dict[str, list[Path]]]
"""Files per domain and class."""

Counts = dict[str, dict[str, int]]
"""Images per domain and class."""


NO_NUMBERS = "no numbers of images are published with which to compare these"


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong.

    Attributes:
        kind: missing, domains, classes, count, empty, unreadable or duplicate.
        where: the dataset, domain, class folder or file, below the dataset's folder.
        message: one line.
    """

    kind: str
    where: str
    message: str


def look_into(dataset: Any, root: Path) -> tuple[ImageFiles, list[Problem]]:
    """The images in the folder `root` of a dataset's class, and what the folder itself lacks."""
    if not hasattr(dataset, "contents"):
        return scan(root), []
    try:
        contents = dataset.contents(root)
    except UserError as error:
        return {}, [Problem("missing", "", str(error))]
    problems = [Problem("missing", "", contents.missing)] if contents.missing else []
    return contents.by_class(), problems


def scan(root: Path) -> ImageFiles:
    """The images of each class of each domain; a folder without images counts as a class, too."""
    return {
        domain.name: {name.name: images(name) for name in folders(domain)}
        for domain in folders(root)
    }


def count(found: ImageFiles) -> Counts:
    return {
        domain: {name: len(files) for name, files in classes.items()}
        for domain, classes in found.items()
    }


def plain(name: str) -> str:
    """Small letters and digits alone: "Real World", "real_world" and "RealWorld" are the same."""
    return re.sub(r"[^a-z0-9]", "", name.lower())


def published_name(name: str, published: Iterable[str], aliases: Mapping[str, str]) -> str | None:
    """The published name that `name` stands for, or None."""
    known = {plain(other): other for other in published}
    return known.get(plain(name)) or aliases.get(plain(name))


def edition(counts: Counts, info: DatasetInfo, variants: Mapping[str, tuple[int, ...]]) -> str:
    """The edition that has these numbers of images: "published", a variant, or "" for none."""
    here = tuple(_images_in(counts.get(domain, {}), info) for domain in info.domains)
    editions = {"published": info.images, **variants}
    return next((name for name, numbers in editions.items() if numbers == here), "")


def _images_in(classes: Mapping[str, int], info: DatasetInfo) -> int:
    """Without those of other classes, which must not make up for what is missing."""
    return sum(n for name, n in classes.items() if not info.classes or name in info.classes)


def differences(
    counts: Counts, info: DatasetInfo, variants: Mapping[str, tuple[int, ...]]
) -> list[Problem]:
    """How domains, classes and numbers of images differ from the published ones."""
    problems = list(_other_domains(counts, info.domains))
    known = {domain: counts[domain] for domain in info.domains if domain in counts}
    problems += _other_classes(known, info.classes, info.num_classes, info.sparse)
    if not edition(counts, info, variants):
        problems += [
            Problem("count", domain, f"domain {domain!r} has {here:,} images, published {number:,}")
            for domain, number in zip(info.domains, info.images)
            if domain in counts and (here := _images_in(counts[domain], info)) != number
        ]
    return problems


def _other_domains(counts: Counts, published: tuple[str, ...]) -> Iterator[Problem]:
    for domain in sorted(set(published) - set(counts)):
        yield Problem("domains", domain, f"domain {domain!r} is missing")
    for domain in sorted(set(counts) - set(published)):
        yield Problem("domains", domain, f"domain {domain!r} was not published")


def _other_classes(
    counts: Counts, published: tuple[str, ...] | None, number: int, sparse: bool = False
) -> Iterator[Problem]:
    """Where the published names are not known, all classes of all domains are what to expect.

    A `sparse` domain may lack some of them.
    """
    seen = {name for classes in counts.values() for name in classes}
    if published is None and len(seen) != number:
        yield Problem("classes", "", f"{len(seen)} classes, published {number}")
    expected = seen if published is None else set(published)
    for domain, classes in counts.items():
        for name in () if sparse else sorted(expected - set(classes)):
            yield Problem("classes", domain, f"domain {domain!r} lacks class {name!r}")
        for name in sorted(set(classes) - expected):
            where = f"{domain}/{name}"
            yield Problem("classes", where, f"class {name!r} of {domain!r} was not published")
        for name in sorted(name for name, images_here in classes.items() if not images_here):
            yield Problem("classes", f"{domain}/{name}", f"class {name!r} of {domain!r} is empty")


def own_problems(counts: Counts) -> list[Problem]:
    """For what training would refuse a user's own images."""
    seen = tuple(sorted({name for classes in counts.values() for name in classes}))
    problems = [
        Problem(
            kind, "", f"{number} {kind}: training needs two or more, as <domain>/<class>/<image>"
        )
        for kind, number in (("domains", len(counts)), ("classes", len(seen)))
        if number < 2
    ]
    return problems + list(_other_classes(counts, seen, len(seen)))


def empty_files(found: ImageFiles, root: Path) -> list[Problem]:
    """Images of zero bytes."""
    files = (file for classes in found.values() for images in classes.values() for file in images)
    return [
        Problem("empty", str(file.relative_to(root)), f"{file.relative_to(root)} has no bytes")
        for file in files
        if not file.stat().st_size
    ]
