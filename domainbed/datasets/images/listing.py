"""The image files of a dataset, and which of them cannot be read."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from domainbed.core.files import write_text
from domainbed.datasets.images.decode import UnreadableImage, read_image
from domainbed.datasets.images.threads import in_order


@dataclass(frozen=True)
class Listing:
    """The images of a dataset, in their order.

    Attributes:
        name: the dataset's.
        files: all of them.
        targets: their labels.
    """

    name: str
    files: Sequence[Path]
    targets: Sequence[int]

    @cached_property
    def relative(self) -> list[str]:
        """The files' names, from the folder on that holds them all."""
        common = Path(os.path.commonpath([file.parent for file in self.files]))
        return [file.relative_to(common).as_posix() for file in self.files]

    @cached_property
    def digest(self) -> str:
        """Changes with any name, size in bytes, or time of the last change, of a file."""
        lines = (f"{name}\t{_state(file)}\n" for name, file in zip(self.relative, self.files))
        return hashlib.md5("".join(lines).encode("utf-8", "surrogateescape")).hexdigest()[:12]


def _state(file: Path) -> tuple[int, int]:
    """Bytes and nanoseconds; -1 for a link to nowhere, which reading will tell of."""
    if not file.exists():
        return -1, -1
    status = file.stat()
    return status.st_size, status.st_mtime_ns


def unreadable_images(listing: Listing, cache: Path, threads: int) -> list[int]:
    """Numbers of the images that cannot be read.

    All are read once, and the answer is kept in `cache` for as long as no file changes.
    """
    file = cache / f"{listing.name}-unreadable-{listing.digest}.json"
    with suppress(OSError, ValueError):  # not there, or damaged
        return json.loads(file.read_text(encoding="utf-8"))
    readable = in_order(_is_readable, listing.files, threads)
    found = [number for number, fine in enumerate(readable) if not fine]
    try:
        cache.mkdir(parents=True, exist_ok=True)
        write_text(file, json.dumps(found) + "\n")
    except OSError:  # a read-only folder costs time, nothing else
        pass
    return found


def _is_readable(file: Path) -> bool:
    try:
        read_image(file)
    except UnreadableImage:
        return False
    return True
