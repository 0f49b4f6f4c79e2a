"""DomainNet: only the images that the official lists name are the dataset."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from domainbed.core.files import regular
from domainbed.download.found import Found, Unusable
from domainbed.errors import one_line


def read_lists(roots: Iterable[Path], domains: Iterable[str]) -> set[str]:
    """`domain/class/file` of every image in the files {domain}_{train,test}.txt below `roots`.

    Empty unless all lists are there: an image that no list names is to be dropped.

    Raises:
        Unusable: a list is no text.
    """
    names = {f"{domain}_{part}.txt" for domain in domains for part in ("train", "test")}
    lists = {file.name: file for root in roots for file in root.rglob("*.txt")}
    if not names <= set(lists):
        return set()
    return {
        line.rpartition(" ")[0]
        for name in names
        for line in _text(lists[name]).splitlines()
        if line.strip()
    }


def _text(file: Path) -> str:
    try:
        return regular(file).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise Unusable(f"{file.name} is no list of images ({one_line(error)})") from error


def keep_listed(found: Iterable[Found], listed: set[str], notes: list[str]) -> Iterator[Found]:
    """The images that are listed; says in `notes` how many others there were."""
    dropped = 0
    for image in found:
        if f"{image.domain}/{image.label}/{image.name}" in listed:
            yield image
        else:
            dropped += 1
    notes.append(f"{dropped:,} images that the official lists do not name were left out")
