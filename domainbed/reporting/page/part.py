"""What the template renders: a page of parts, with figures, pictures, tables and texts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from markupsafe import Markup


class Drawing(NamedTuple):
    """A figure of the page: its `svg`, caption, and the algorithm it is about, or ""."""

    svg: Markup
    caption: str
    algorithm: str = ""


class Thumbnail(NamedTuple):
    """A picture: its data URI, its alternative text, and the lines below it."""

    source: str
    alternative: str
    lines: list[str]


class HtmlCell(NamedTuple):
    """A cell's text; `kind` names classes of the style sheet, `lines` are smaller and below."""

    text: str
    kind: str = ""
    lines: Sequence[HtmlCell] = ()


class Row(NamedTuple):
    """A row, and the algorithm that it is about, for the filter; "" for none."""

    cells: list[HtmlCell]
    algorithm: str = ""


@dataclass(frozen=True)
class HtmlTable:
    """A table of the page.

    Attributes:
        title: its caption.
        header: the names of the columns.
        rows: as long as the header; the first cell is the row's name.
        groups: names over the columns, each with how many it spans; may be empty.
        texts: the positions of columns that hold no numbers, besides the first.
        notes: shown below it.
        is_open: whether it is open at first.
    """

    title: str
    header: list[str]
    rows: list[Row]
    groups: Sequence[tuple[str, int]] = ()
    texts: Sequence[int] = ()
    notes: Sequence[str] = ()
    is_open: bool = False


@dataclass(frozen=True)
class Part:
    """A part of the page.

    Attributes:
        name: the target of links to it.
        title: for people.
        intro: what it shows, and how to read it.
        figures, notes, galleries, tables, listings: shown in this order. Notes say how little
            figures prove; a gallery is a title with pictures, a listing a title with plain text.
        reasons: for each gap where it is, and why.
        missing: why the part shows nothing; "" if it does.
    """

    name: str
    title: str
    intro: str
    figures: Sequence[Drawing] = ()
    notes: Sequence[str] = ()
    galleries: Sequence[tuple[str, list[Thumbnail]]] = ()
    tables: Sequence[HtmlTable] = ()
    listings: Sequence[tuple[str, str]] = ()
    reasons: Sequence[tuple[str, list[str]]] = ()
    missing: str = ""


@dataclass(frozen=True)
class Page:
    """The report, without any markup but that of its figures."""

    title: str
    facts: list[str]
    warnings: list[str]
    algorithms: list[str]
    parts: list[Part]
