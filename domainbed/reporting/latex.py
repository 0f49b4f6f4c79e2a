"""What the tables in LaTeX share: documents that pdflatex compiles as they are, with booktabs."""

from __future__ import annotations

from collections.abc import Sequence

PLUS_MINUS = r"$\pm$"

_PREAMBLE = [
    r"\documentclass{article}",
    r"\usepackage[T1]{fontenc}",
    r"\usepackage[utf8]{inputenc}",
    r"\usepackage[margin=2cm]{geometry}",
    r"\usepackage{booktabs}",
    r"\usepackage{graphicx}",
    r"\begin{document}",
]


def document(comments: Sequence[str], body: Sequence[str]) -> str:
    """A complete document; the comments stand above it."""
    lines = [*(f"% {line}" for line in comments), *_PREAMBLE, *body, "", r"\end{document}"]
    return "\n".join(lines) + "\n"


def tabular(header: Sequence[str], rows: Sequence[Sequence[str]], alignment: str) -> list[str]:
    """The lines of a table, shrunk to the page where it is wider.

    Args:
        header: the names of the columns, in LaTeX.
        rows: the cells, in LaTeX.
        alignment: a letter for each column.
    """
    shrink = r"\resizebox{\ifdim\width>\textwidth\textwidth\else\width\fi}{!}{%"
    lines = [r"\begin{center}", shrink, rf"\begin{{tabular}}{{{alignment}}}", r"\toprule"]
    lines.append(" & ".join(rf"\textbf{{{name}}}" for name in header) + r" \\")
    lines.append(r"\midrule")
    lines += [" & ".join(row) + r" \\" for row in rows]
    return [*lines, r"\bottomrule", r"\end{tabular}}", r"\end{center}"]


_LATEX = {char: "\\" + char for char in "&%$#_{}"}
_LATEX |= {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
_LATEX |= {"<": r"\textless{}", ">": r"\textgreater{}"}
_LATEX |= {"[": "{[}", "]": "{]}"}  # a row that begins with one would be an option of \\


def escape(text: str) -> str:
    """Text as it is, in LaTeX."""
    return "".join(_LATEX.get(char, char) for char in text)
