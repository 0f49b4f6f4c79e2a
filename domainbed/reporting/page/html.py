"""The content of a page, its HTML, and figures as SVG inside it. Nothing is computed here.

Figures have a title and a description for screen readers, and take their colours from the page.
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from domainbed.reporting.figures import GRID, INK, MUTED, PAPER, SERIES

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FOLDER = Path(__file__).parent / "template"

_VARIABLES = {INK: "ink", MUTED: "muted", GRID: "grid", PAPER: "paper"} | {
    color: f"series-{number}" for number, color in enumerate(SERIES)
}
_COLOR = re.compile("|".join(_VARIABLES))
_REFERENCE = re.compile(r'(\bid="|\bhref="#|url\(#)')
_LONG_NUMBER = re.compile(r"(\d\.\d)\d+")
# matplotlib's own style would style the whole page, and the page has its own fonts.
_LEFT_OUT = re.compile(
    r"^.*?(?=<svg)|<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->| xmlns:xlink=\"[^\"]*\""
    r"| *font-family:[^;\"]*;?|xlink:(?=href)|(?<=<g) id=\"[^\"]*\"|(?<=>)\s+(?=<)",
    re.DOTALL,
)


# ---- what the template renders ----


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
    """The report, without any markup but that of its figures.

    `answer` says first which algorithms were compared, on what, and how sure that is.
    """

    title: str
    facts: list[str]
    warnings: list[str]
    algorithms: list[str]
    parts: list[Part]
    answer: Sequence[str] = ()


# ---- HTML ----


def to_html(page: Page, refresh: int = 0) -> str:
    """One file with its styles, script and figures inside; all names in it are escaped.

    Args:
        page: what it shows.
        refresh: seconds after which it reloads itself; 0 for never.
    """
    environment = Environment(
        loader=FileSystemLoader(FOLDER), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters["code"] = lambda text: Markup(
        re.sub("`([^`]+)`", r"<code>\1</code>", str(escape(text)))
    )
    style = Markup((FOLDER / "style.css").read_text(encoding="utf-8"))
    script = Markup((FOLDER / "script.js").read_text(encoding="utf-8"))
    made = datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z")
    template = environment.get_template("report.html")
    return template.render(page=page, style=style, script=script, refresh=refresh, made=made)


def inline_svg(figure: Figure, name: str, title: str, description: str) -> Markup:
    """An `svg` element for a page.

    Args:
        figure: drawn in `plain_style`.
        name: the prefix of its ids; unique on the page.
        title: what it shows.
        description: how it is drawn, and where its numbers are.

    Returns:
        The element. Colours are the page's variables `--ink`, `--muted`, `--grid`, `--paper` and
        `--series-0` …; numbers are cut to a tenth of a point.
    """

    def adapted(tag: re.Match[str]) -> str:
        text = _REFERENCE.sub(rf"\g<1>{name}-", tag.group())
        text = _COLOR.sub(lambda color: f"var(--{_VARIABLES[color.group()]})", text)
        return _LONG_NUMBER.sub(r"\1", text)

    stream = io.StringIO()
    figure.savefig(stream, format="svg", transparent=True)
    drawn = re.sub("<[^>]+>", adapted, _LEFT_OUT.sub("", stream.getvalue().rstrip()))
    names = f'role="img" aria-labelledby="{name}-title {name}-text"'
    told = (
        f'<title id="{name}-title">{escape(title)}</title>'
        f'<desc id="{name}-text">{escape(description)}</desc>'
    )
    return Markup(re.sub("<svg([^>]*)>", lambda tag: f"<svg{tag[1]} {names}>{told}", drawn))
