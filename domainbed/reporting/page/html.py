"""From the page's content to its HTML, and from figures to SVG inside it. Nothing is computed here.

Figures have a title and a description for screen readers, and take their colours from the page.
"""

from __future__ import annotations

import io
import re
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from domainbed.reporting.figures import GRID, INK, MUTED, PAPER, SERIES
from domainbed.reporting.page.part import Page

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
_POINTS = re.compile(r"<g([^>]*)>((?:<use[^>]*/>)+)</g>")


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
    environment.filters["code"] = _with_code
    style = Markup((FOLDER / "style.css").read_text(encoding="utf-8"))
    script = Markup((FOLDER / "script.js").read_text(encoding="utf-8"))
    made = datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z")
    template = environment.get_template("report.html")
    return template.render(page=page, style=style, script=script, refresh=refresh, made=made)


def _with_code(text: str) -> Markup:
    """Escaped text, with code in place of what is between backticks."""
    return Markup(re.sub("`([^`]+)`", r"<code>\1</code>", str(escape(text))))


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
    drawn = _POINTS.sub(_with_one_style, drawn)
    names = f'role="img" aria-labelledby="{name}-title {name}-text"'
    told = f'<title id="{name}-title">{escape(title)}</title>'
    told += f'<desc id="{name}-text">{escape(description)}</desc>'
    return Markup(re.sub("<svg([^>]*)>", lambda tag: f"<svg{tag[1]} {names}>{told}", drawn))


def _with_one_style(points: re.Match[str]) -> str:
    """Moves the style that points share to their group."""
    style = re.search(' style="[^"]*"', points[2])
    shared = style.group() if style else ""
    return f"<g{points[1]}{shared}>{points[2].replace(shared, '') if shared else points[2]}</g>"
