"""One image on its way to its place, and what may stop it."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple


class Unusable(Exception):
    """What a source, or a user, handed over cannot be used; one line that says why."""


class Found(NamedTuple):
    """An image, under its published domain and class.

    Attributes:
        name: of the file, below the class folder.
        content: the file that holds it, or its bytes.
    """

    domain: str
    label: str
    name: str
    content: Path | bytes
