"""One table of texts under a title, with notes below it, and its formats.

Tables of results, comparisons and published numbers are all printed as sections.
"""

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from textwrap import wrap
from typing import Any, NamedTuple

import pandas as pd

from domainbed.core.registry import Registry, require_callable
from domainbed.core.text_table import (
    csv_text,
    in_latex,
    in_markdown,
    json_text,
    pipe_table,
    printable,
    terminal_width,
    text_table,
)

BEST, SECOND = "best", "second"
NOTHING = "-"

_TEXT_WIDTH = 100
_ROWS_OF_A_PAGE = 40
_NUMBER = re.compile(r"[<\[]?[+-]?\d|-$|X$")
LATEX_DOCUMENT = r"""\documentclass{article}
\usepackage[T1]{fontenc}
\usepackage[utf8]{inputenc}
\usepackage[margin=2cm]{geometry}
\usepackage{booktabs}
\usepackage{graphicx}
\begin{document}
%s
\end{document}
"""
"""What pdflatex compiles, with a place for tables."""


class Section(NamedTuple):
    """One table of texts.

    Attributes:
        name: for programs.
        title: for people.
        header: the columns' names.
        rows: the cells as text.
        notes: what the numbers are, and how little they prove.
        frame: the numbers.
        marks: which cells, by row and column, are `BEST` or `SECOND` of their column.
        least: the least width of a column in plain text.
    """

    name: str
    title: str
    header: list[str]
    rows: list[list[str]]
    notes: list[str]
    frame: pd.DataFrame
    marks: Mapping[tuple[int, int], str] = {}
    least: int = 0

    def of_numbers(self) -> list[bool]:
        """For each column whether all its texts are numbers, intervals, bounds or gaps."""
        return [all(map(_NUMBER.match, column)) for column in zip(*self.rows, strict=True)]

    def formatted(self, escape: Callable[[str], str], marks: Mapping[str, str]) -> list[list[str]]:
        """The rows in a format; `marks` are templates by kind of mark."""
        return [
            [
                marks.get(self.marks.get((row, column), ""), "{}").format(escape(text))
                for column, text in enumerate(texts)
            ]
            for row, texts in enumerate(self.rows)
        ]


def span(numbers: pd.Series) -> str:
    low, high = int(numbers.min()), int(numbers.max())
    return str(low) if low == high else f"{low} to {high}"


def p_value_text(value: float) -> str:
    if math.isnan(value):
        return NOTHING
    return "<0.001" if value < 0.001 else f"{value:.3f}"


SECTION_RENDERERS: Registry[Callable[..., str]] = Registry(
    "format",
    entry_point_group="domainbed.renderers",
    check=lambda entry: require_callable(entry, "format"),
)
"""By name, functions from sections, and lines that come first where there are any, to a text."""


@SECTION_RENDERERS.register(name="text")
def to_text(sections: Sequence[Section], head: Sequence[str] = (), width: int | None = None) -> str:
    """Plain text: lines, then each table as aligned columns under its title, and its notes.

    Tables that are wider than `width`, if it is given, are folded.
    """
    lines = [printable(line) for line in head]
    for section in sections:
        lines += ["", f"-------- {printable(section.title)}"]
        if section.rows:
            lines += text_table([section.header, *section.rows], least=section.least, width=width)
        for note in map(printable, section.notes):
            most = min(_TEXT_WIDTH, width or _TEXT_WIDTH)
            lines += wrap(note, most, initial_indent="  ", subsequent_indent="    ")
    return "\n".join(lines).lstrip("\n") + "\n"


def section_renderer(name: str, output: str | None = None) -> Callable[..., str]:
    """What makes sections a text in a format; in text that goes to a terminal they fit into it.

    Args:
        name: of the format.
        output: the file that the text goes to; None for stdout.

    Raises:
        UserError: no such format.
    """
    if name == "text" and output is None:
        return partial(to_text, width=terminal_width())
    return SECTION_RENDERERS[name]


@SECTION_RENDERERS.register(name="markdown")
def to_markdown(sections: Sequence[Section], head: Sequence[str] = ()) -> str:
    """Paragraphs, then Markdown tables, the best in bold, and their notes as lists."""
    marks = {BEST: "**{}**", SECOND: "<u>{}</u>"}
    blocks = [in_markdown(line) for line in head]
    for section in sections:
        blocks.append(f"### {in_markdown(section.title)}")
        if section.rows:
            grid = [[*map(in_markdown, section.header)], *section.formatted(in_markdown, marks)]
            blocks.append("\n".join(pipe_table(grid)))
        if section.notes:
            blocks.append("\n".join(f"- {in_markdown(note)}" for note in section.notes))
    return "\n\n".join(blocks) + "\n"


@SECTION_RENDERERS.register(name="latex")
def to_latex(sections: Sequence[Section], head: Sequence[str] = ()) -> str:
    r"""Tables for \input, with captions and labels: by booktabs, the best in bold, notes below."""
    lines = [f"% {printable(line)}" for line in [*head, "needs the packages booktabs and graphicx"]]
    for section in sections:
        lines += ["", *_tables(section)]
    return "\n".join(lines) + "\n"


@SECTION_RENDERERS.register(name="csv")
def to_csv(sections: Sequence[Section]) -> str:
    """The numbers of the first kind of table, unrounded."""
    first = [section.frame for section in sections if section.name == sections[0].name]
    return csv_text(pd.concat(first).sort_index())


@SECTION_RENDERERS.register(name="json")
def to_json(sections: Sequence[Section]) -> str:
    """The numbers of all tables, unrounded, with their notes."""
    whole: dict[str, list[Any]] = {}
    for section in sections:
        rows = json.loads(section.frame.to_json(orient="records", double_precision=15))
        entry = {"title": section.title, "rows": rows, "notes": section.notes}
        whole.setdefault(section.name, []).append(entry)
    return json_text(whole)


def _tables(section: Section) -> list[str]:
    """The lines of a table, page by page, shrunk to the text where it is wider."""
    shrink = r"\resizebox{\ifdim\width>\textwidth\textwidth\else\width\fi}{!}{%"
    alignment = "".join("c" if of_numbers else "l" for of_numbers in section.of_numbers())
    header = " & ".join(rf"\textbf{{{in_latex(name)}}}" for name in section.header)
    marks = {BEST: r"\textbf{{{}}}", SECOND: r"\underline{{{}}}"}
    rows = [" & ".join(row) + r" \\" for row in section.formatted(in_latex, marks)]
    label = re.sub("[^a-z0-9]+", "-", section.title.lower()).strip("-")
    notes = [rf"\par\smallskip\footnotesize {in_latex(note)}" for note in section.notes]
    lines: list[str] = []
    for begin in range(0, max(1, len(rows)), _ROWS_OF_A_PAGE):
        more = f"-{begin // _ROWS_OF_A_PAGE + 1}" if begin else ""
        caption = in_latex(section.title + ", continued" * bool(more))
        lines += [r"\begin{table}[htbp]", r"\centering", rf"\caption{{{caption}}}"]
        lines += [rf"\label{{tab:{label}{more}}}", shrink]
        lines += [rf"\begin{{tabular}}{{{alignment}}}", r"\toprule"]
        lines += [header + r" \\", r"\midrule", *rows[begin : begin + _ROWS_OF_A_PAGE]]
        lines += [r"\bottomrule", r"\end{tabular}}", *notes, r"\end{table}"]
    return lines
