"""Rendering: a report as text, Markdown, LaTeX, CSV or JSON. Nothing is computed here."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from domainbed.reporting.tables import Report, Table, to_frame

JSON_VERSION = 1
TEXT_WIDTH = 20  # of a column of a dataset's table
TEXT_WIDTH_AVERAGES = 10


def to_text(report: Report) -> str:
    """Plain text in the published layout: a headed block of aligned columns for each table."""
    lines = [f"Total records: {len(report.records)}"]
    for table in report.tables:
        lines += ["", f"-------- {_heading(table)}"]
        lines += _aligned(_grid(table), TEXT_WIDTH if table.dataset else TEXT_WIDTH_AVERAGES)
    return "\n".join(lines) + "\n"


def to_markdown(report: Report) -> str:
    """Markdown tables, the best of each column in bold."""
    lines = [f"Total records: {len(report.records)}"]
    for table in report.tables:
        header, *rows = _grid(table, plus_minus="±", bold="**{}**", escape=_escape_markdown)
        lines += ["", f"### {_escape_markdown(_heading(table))}", "", _pipes(header)]
        lines.append("|:--" + "|--:" * len(table.columns) + "|")
        lines += [_pipes(row) for row in rows]
    return "\n".join(lines) + "\n"


def to_latex(report: Report) -> str:
    """A complete LaTeX document with booktabs tables, the best of each column in bold."""
    lines = [f"% Total records: {len(report.records)}", *_PREAMBLE]
    title = ""
    for table in report.tables:
        if table.title != title:
            title = table.title
            lines += ["", rf"\section*{{Model selection: {_escape_latex(title)}}}"]
        lines += ["", *_latex_table(table)]
    return "\n".join([*lines, "", r"\end{document}"]) + "\n"


def to_csv(report: Report) -> str:
    """One line per cell, with unrounded numbers; the columns are those of `to_frame`."""
    return to_frame(report).to_csv(index=False, lineterminator="\n")


def to_json(report: Report) -> str:
    """Nested by selection method, dataset (or "averages"), algorithm and column.

    Each cell has its unrounded `mean` and `std_err`, its `n_trials` and its printed `text`.
    """
    selections: dict[str, Any] = {}
    for table in report.tables:
        entry = selections.setdefault(table.selection, {"title": table.title, "datasets": {}})
        if table.dataset:
            entry["datasets"][table.dataset] = _json_table(table)
        else:
            entry["averages"] = _json_table(table)
    whole = {"version": JSON_VERSION, "total_records": len(report.records)}
    return json.dumps({**whole, "selections": selections}, indent=2, ensure_ascii=False) + "\n"


FORMATS: dict[str, Callable[[Report], str]] = {
    "text": to_text,
    "markdown": to_markdown,
    "latex": to_latex,
    "csv": to_csv,
    "json": to_json,
}

_PREAMBLE = [
    r"\documentclass{article}",
    r"\usepackage[T1]{fontenc}",
    r"\usepackage[utf8]{inputenc}",
    r"\usepackage{booktabs}",
    r"\usepackage{graphicx}",
    r"\begin{document}",
]


def _heading(table: Table) -> str:
    subject = f"Dataset: {table.dataset}" if table.dataset else "Averages"
    return f"{subject}, model selection method: {table.title}"


def _grid(
    table: Table,
    plus_minus: str = "+/-",
    bold: str = "{}",
    escape: Callable[[str], str] = str,
) -> list[list[str]]:
    """The table's texts: the header, then one list for each algorithm."""
    grid = [["Algorithm", *(escape(column.label) for column in table.columns)]]
    for algorithm, cells in table.rows.items():
        texts = [cell.text.replace("+/-", plus_minus) for cell in cells]
        marked = [bold.format(t) if c.best else t for t, c in zip(texts, cells, strict=True)]
        grid.append([escape(algorithm), *marked])
    return grid


def _aligned(grid: list[list[str]], least: int) -> list[str]:
    widths = [max(least, *map(len, column)) for column in zip(*grid, strict=True)]
    return [
        "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip()
        for row in grid
    ]


def _pipes(row: list[str]) -> str:
    return f"| {' | '.join(row)} |"


def _escape_markdown(text: str) -> str:
    return "".join("\\" + char if char in r"\|*_`<" else char for char in text)


def _latex_table(table: Table) -> list[str]:
    header, *rows = _grid(table, r"$\pm$", r"\textbf{{{}}}", _escape_latex)
    lines = [rf"\subsection*{{{_escape_latex(table.dataset or 'Averages')}}}"]
    # Shrunk to the page where it is wider.
    shrink = r"\resizebox{\ifdim\width>\textwidth\textwidth\else\width\fi}{!}{%"
    lines += [r"\begin{center}", shrink]
    lines += [rf"\begin{{tabular}}{{l{'c' * len(table.columns)}}}", r"\toprule"]
    lines.append(" & ".join(rf"\textbf{{{name}}}" for name in header) + r" \\")
    lines.append(r"\midrule")
    lines += [" & ".join(row) + r" \\" for row in rows]
    return [*lines, r"\bottomrule", r"\end{tabular}}", r"\end{center}"]


_LATEX = {char: "\\" + char for char in "&%$#_{}"}
_LATEX |= {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
_LATEX |= {"<": r"\textless{}", ">": r"\textgreater{}"}
_LATEX |= {"[": "{[}", "]": "{]}"}  # a row that begins with one would be an option of \\


def _escape_latex(text: str) -> str:
    return "".join(_LATEX.get(char, char) for char in text)


def _json_table(table: Table) -> dict[str, Any]:
    labels = [column.label for column in table.columns]
    rows = {
        name: {label: asdict(cell) for label, cell in zip(labels, cells, strict=True)}
        for name, cells in table.rows.items()
    }
    return {"columns": labels, "algorithms": rows}
