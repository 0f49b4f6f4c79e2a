"""Text for people: in aligned columns, on one line, and durations."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

_ESCAPE_SEQUENCE = re.compile(
    r"\x1b(\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(\x07|\x1b\\)?|.?)", re.DOTALL
)


def printable(text: Any) -> str:
    """Text on one line, without what a terminal would act upon: escapes, control characters.

    For what comes from files and names, which may be anybody's.
    """
    plain = str(text)
    if plain.isprintable():
        return plain
    spaced = (" " if c.isspace() else c for c in _ESCAPE_SEQUENCE.sub("", plain))
    return "".join(c for c in spaced if c.isprintable())


def text_table(
    rows: Iterable[Sequence[Any]], right: Iterable[int] = (), least: int = 0, indent: str = ""
) -> list[str]:
    """One line per row; columns are two spaces apart.

    Args:
        rows: the cells, shown as `printable` text; all rows are of one length.
        right: the columns that are aligned to the right.
        least: the least width of a column.
        indent: what each line begins with.
    """
    cells = [[printable(cell) for cell in row] for row in rows]
    widths = [max(least, *map(len, column)) for column in zip(*cells, strict=True)]
    aligned = set(right)
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
    numbers = len(rows[0]) - text_columns
    return [header, "|:--" * text_columns + "|--:" * numbers + "|", *body]


def duration(seconds: float) -> str:
    """Seconds for people: "42s", "3m05s", "2h07m"."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
