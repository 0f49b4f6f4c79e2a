"""What makes anybody's text harmless in each output format; every renderer passes through here.

Names of datasets, domains and classes, protocols and errors come from files that may be a
stranger's. Plain text and terminals have `text_table.printable`, HTML has Jinja's escaping.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

from domainbed.core.text_table import printable

if TYPE_CHECKING:
    import pandas as pd

_MINUS = re.compile(r"(?<![\w.])-(?=\d)")
_NUMBER = re.compile(r"[+-]?[\d.]+(e[+-]?\d+)? ?%?( \+/- [\d.]+)?\*?")
_LATEX = {char: "\\" + char for char in "&%$#_{}"}
_LATEX |= {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
_LATEX |= {"<": r"\textless{}", ">": r"\textgreater{}"}
_LATEX |= {"[": "{[}", "]": "{]}"}  # a row that begins with one would be an option of \\


def in_markdown(text: str) -> str:
    """On one line, without markup and HTML."""
    escaped = "".join("\\" + char if char in r"\|*_`<[" else char for char in printable(text))
    return escaped.replace("+/-", "±")


def in_latex(text: str) -> str:
    """On one line, without commands."""
    escaped = "".join(_LATEX.get(char, char) for char in printable(text))
    return _MINUS.sub("$-$", escaped.replace("+/-", r"$\pm$"))


def latex_comment(text: str) -> str:
    """A comment, which ends with its line."""
    return f"% {printable(text)}"


def in_csv(value: Any) -> Any:
    """A cell without control characters that no spreadsheet takes for a formula.

    An apostrophe makes text of what begins like one, unless it is a number ("-90%").
    """
    if not isinstance(value, str):
        return value
    text = value if value.isprintable() else json.dumps(value)[1:-1]
    return "'" + text if text[:1] in ("=", "+", "-", "@") and not _NUMBER.fullmatch(text) else text


def csv_text(frame: pd.DataFrame) -> str:
    """A table as CSV, with a header."""
    return frame.map(in_csv).rename(columns=in_csv).to_csv(index=False, lineterminator="\n")


def json_text(value: Any) -> str:
    """Indented JSON in which all that a terminal would act upon is escaped."""
    text = json.dumps(value, indent=2, ensure_ascii=False)
    return "".join(c if c.isprintable() or c == "\n" else json.dumps(c)[1:-1] for c in text) + "\n"
