"""From the page's content to its HTML. Nothing is computed here."""

from __future__ import annotations

import re
from datetime import datetime
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template
from markupsafe import Markup, escape

from domainbed.reporting.page.content import Page

FOLDER = Path(__file__).parent / "template"


def to_html(page: Page, refresh: int = 0) -> str:
    """One file with its styles, script and figures inside; all names in it are escaped.

    Args:
        page: what it shows.
        refresh: seconds after which it loads itself anew; 0 for never.
    """
    own = {name: Markup((FOLDER / name).read_text(encoding="utf-8")) for name in _OWN}
    made = datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z")
    return _template("report.html").render(
        page=page, style=own["style.css"], script=own["script.js"], refresh=refresh, made=made,
        svg=Markup,
    )  # fmt: skip


def waiting_html(reason: str, refresh: int) -> str:
    """What is shown while there is nothing to report, and why."""
    style = Markup((FOLDER / "style.css").read_text(encoding="utf-8"))
    return _template("waiting.html").render(reason=reason, refresh=refresh, style=style)


_OWN = ("style.css", "script.js")


def _template(name: str) -> Template:
    loader = FileSystemLoader(FOLDER)
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    environment.filters["code"] = _with_code
    return environment.get_template(name)


def _with_code(text: str) -> Markup:
    """Escaped text, in which what stands between backticks is code."""
    return Markup(re.sub("`([^`]+)`", r"<code>\1</code>", str(escape(text))))
