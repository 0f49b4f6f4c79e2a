"""Comparisons as text, Markdown, LaTeX, CSV or JSON. Nothing is computed here."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from textwrap import wrap
from typing import Any

import pandas as pd

from domainbed.core.registry import Registry
from domainbed.core.text_table import pipe_table, text_table
from domainbed.reporting import latex
from domainbed.reporting.sections import Section
from domainbed.reporting.sections.texts import is_of_numbers

TEXT_WIDTH = 100
_ROWS_OF_A_PAGE = 40
_MINUS = re.compile(r"(?<![\w.])-(?=\d)")

COMPARISON_RENDERERS: Registry[Callable[[Sequence[Section]], str]] = Registry("format")
"""By name, functions from sections to a text."""


@COMPARISON_RENDERERS.register(name="text")
def to_text(sections: Sequence[Section]) -> str:
    """Aligned columns under a heading, and below them the notes."""
    lines: list[str] = []
    for section in sections:
        lines += ["", f"-------- {section.title}"]
        lines += text_table([section.header, *section.rows]) if section.rows else []
        for note in section.notes:
            lines += wrap(note, TEXT_WIDTH, initial_indent="  ", subsequent_indent="    ")
    return "\n".join(lines[1:]) + "\n"


@COMPARISON_RENDERERS.register(name="markdown")
def to_markdown(sections: Sequence[Section]) -> str:
    """Markdown tables, and below them the notes as a list."""
    lines: list[str] = []
    for section in sections:
        lines += ["", f"### {_escaped(section.title)}", ""]
        grid = [[_escaped(text) for text in row] for row in [section.header, *section.rows]]
        lines += [*pipe_table(grid), ""] if section.rows else []
        lines += [f"- {_escaped(note)}" for note in section.notes]
    return "\n".join(lines[1:]) + "\n"


@COMPARISON_RENDERERS.register(name="latex")
def to_latex(sections: Sequence[Section]) -> str:
    """A complete LaTeX document with booktabs tables, and below them the notes as a list."""
    lines: list[str] = []
    for section in sections:
        lines += ["", rf"\subsection*{{\raggedright {latex.escape(section.title)}}}"]
        for begin in range(0, len(section.rows), _ROWS_OF_A_PAGE):
            part = section.rows[begin : begin + _ROWS_OF_A_PAGE]
            cells = [[_in_latex(text) for text in row] for row in part]
            lines += latex.tabular(
                [latex.escape(name) for name in section.header], cells, _alignment(section)
            )
        notes = [rf"\item {_in_latex(note)}" for note in section.notes]
        lines += [r"\begin{itemize}", *notes, r"\end{itemize}"] if notes else []
    return latex.document([], lines)


@COMPARISON_RENDERERS.register(name="csv")
def to_csv(sections: Sequence[Section]) -> str:
    """The numbers of the first kind of table, unrounded."""
    first = [section.frame for section in sections if section.name == sections[0].name]
    return pd.concat(first).to_csv(index=False, lineterminator="\n")


@COMPARISON_RENDERERS.register(name="json")
def to_json(sections: Sequence[Section]) -> str:
    """The numbers of all tables, unrounded, with their notes."""
    whole: dict[str, list[Any]] = {}
    for section in sections:
        rows = json.loads(section.frame.to_json(orient="records", double_precision=15))
        entry = {"title": section.title, "rows": rows, "notes": section.notes}
        whole.setdefault(section.name, []).append(entry)
    return json.dumps(whole, indent=2, ensure_ascii=False) + "\n"


def _escaped(text: str) -> str:
    return "".join("\\" + char if char in r"\|*_`<[" else char for char in text)


def _alignment(section: Section) -> str:
    """Names to the left, numbers in the middle."""
    columns = zip(*section.rows, strict=True)
    return "".join("c" if is_of_numbers(column) else "l" for column in columns)


def _in_latex(text: str) -> str:
    escaped = latex.escape(text).replace("+/-", latex.PLUS_MINUS)
    return _MINUS.sub("$-$", escaped)
