"""What a part of the page may hold."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from domainbed.reporting.page.tables import HtmlTable
from domainbed.reporting.page.thumbnails import Gallery


class Drawing(NamedTuple):
    """A figure of the page: its `svg`, caption, and the algorithm it is about, or ""."""

    svg: str
    caption: str
    algorithm: str = ""


class Listing(NamedTuple):
    """Text as it is, under a title."""

    title: str
    text: str


@dataclass(frozen=True)
class Part:
    """A part of the page.

    Attributes:
        name: what links to it say.
        title: for people.
        intro: what it shows, and how to read it.
        figures, notes, galleries, tables, listings: in this order; notes say how little figures
            prove.
        reasons: for each gap where it is, and why.
        missing: why the part shows nothing; "" if it does.
    """

    name: str
    title: str
    intro: str
    figures: list[Drawing] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    galleries: list[Gallery] = field(default_factory=list)
    tables: list[HtmlTable] = field(default_factory=list)
    listings: list[Listing] = field(default_factory=list)
    reasons: list[tuple[str, list[str]]] = field(default_factory=list)
    missing: str = ""
