"""Text for people: in aligned columns, on one line, durations; and the terminal it goes to.

Names of datasets, domains and classes, protocols and errors come from files that may be a
stranger's. `printable` makes them harmless in plain text and on terminals, `in_markdown` and the
like in the other formats, and Jinja's escaping in HTML; every renderer uses one of these.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

_ESCAPE_SEQUENCE = re.compile(
    r"\x1b(\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(\x07|\x1b\\)?|.?)", re.DOTALL
)
_MINUS = re.compile(r"(?<![\w.])-(?=\d)")
_NUMBER = re.compile(r"[+-]?[\d.]+(e[+-]?\d+)? ?%?( \+/- [\d.]+)?\*?")
_LATEX = {
    **{char: "\\" + char for char in "&%$#_{}"},
    **{"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"},
    **{"<": r"\textless{}", ">": r"\textgreater{}"},
    **{"[": "{[}", "]": "{]}"},  # a row that begins with one would be an option of \\
}


_COLORS = {"error": 31, "warning": 33}


def printable(text: Any) -> str:
    """Text on one line, without what a terminal would act upon: escapes, control characters.

    For what comes from files and names, which may be anybody's.
    """
    plain = str(text)
    if plain.isprintable():
        return plain
    spaced = (" " if c.isspace() else c for c in _ESCAPE_SEQUENCE.sub("", plain))
    return "".join(c for c in spaced if c.isprintable())


def terminal_width() -> int | None:
    """The columns of the terminal that stdout is; None where it is a file or a pipe."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def over_progress(text: str) -> str:
    """`text` for stderr, where on a terminal it takes the place of a line of progress.

    There, errors are red and warnings yellow, unless the variable NO_COLOR is set.
    """
    if not sys.stderr.isatty():
        return text
    kind = text.partition(":")[0]
    if kind in _COLORS and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb":
        text = f"\x1b[{_COLORS[kind]}m{kind}\x1b[0m{text.removeprefix(kind)}"
    return f"\r\x1b[K{text}"


def text_table(
    rows: Iterable[Sequence[Any]],
    right: Iterable[int] = (),
    least: int = 0,
    indent: str = "",
    width: int | None = None,
) -> list[str]:
    """One line per row; columns are two spaces apart.

    Args:
        rows: the cells, shown as `printable` text; all rows are of one length.
        right: the columns that are aligned to the right.
        least: the least width of a column.
        indent: what each line begins with.
        width: of the lines. A wider table is printed as narrow as it can be, and in blocks of
            columns that each begin with the first one; None for any width.
    """
    cells = [[printable(cell) for cell in row] for row in rows]
    aligned = set(right)
    lines = _aligned(cells, aligned, least, indent)
    if width is None or max(map(len, lines), default=0) <= width:
        return lines
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    folded: list[str] = []
    for columns in _blocks(widths, width - len(indent)):
        block = [[row[number] for number in columns] for row in cells]
        places = {place for place, number in enumerate(columns) if number in aligned}
        folded += ["", *_aligned(block, places, 0, indent)]
    return folded[1:]


def _blocks(widths: Sequence[int], most: int) -> list[list[int]]:
    """The first column and as many others as fit into `most` characters, block by block."""
    blocks = [[0]]
    for number in range(1, len(widths)):
        with_it = [*blocks[-1], number]
        fits = sum(widths[each] for each in with_it) + 2 * len(with_it) - 2 <= most
        if fits or len(with_it) == 2:  # one column has to be
            blocks[-1] = with_it
        else:
            blocks.append([0, number])
    return blocks


def _aligned(
    cells: Sequence[Sequence[str]], aligned: set[int], least: int, indent: str
) -> list[str]:
    widths = [max(least, *map(len, column)) for column in zip(*cells, strict=True)]
    return [
        indent
        + "  ".join(
            cell.rjust(width) if number in aligned else cell.ljust(width)
            for number, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in cells
    ]


def pipe_table(rows: Sequence[Sequence[Any]], text_columns: int = 1) -> list[str]:
    """The rows as a Markdown table, the first of them its header.

    All columns but the first `text_columns` are aligned to the right.
    """
    header, *body = [f"| {' | '.join(map(printable, row))} |" for row in rows]
    return [header, "|:--" * text_columns + "|--:" * (len(rows[0]) - text_columns) + "|", *body]


def count(number: int, thing: str) -> str:
    """ "1 run", or "1,200 runs"."""
    return f"{number:,} {thing}" if number == 1 else f"{number:,} {thing}s"


def duration(seconds: float) -> str:
    """Seconds for people: "42s", "3m05s", "2h07m"."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    return f"{whole // 3600}h{whole % 3600 // 60:02d}m"


# ---- other formats ----


def in_markdown(text: str) -> str:
    """On one line, without markup and HTML."""
    escaped = "".join("\\" + char if char in r"\|*_`<[" else char for char in printable(text))
    return escaped.replace("+/-", "±")


def in_latex(text: str) -> str:
    """On one line, without commands."""
    escaped = "".join(_LATEX.get(char, char) for char in printable(text))
    return _MINUS.sub("$-$", escaped.replace("+/-", r"$\pm$"))


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
