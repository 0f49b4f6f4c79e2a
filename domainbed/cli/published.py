"""Print the numbers that papers print."""

from __future__ import annotations

import argparse
import csv
import io
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from domainbed.core.text_table import pipe_table, text_table

if TYPE_CHECKING:
    from domainbed.reporting.published import PublishedValue


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of `domainbed published`."""
    parser.add_argument(
        "papers", nargs="*", metavar="PAPER", help="fishr-2022, domainbed-2020 (default: all)"
    )
    parser.add_argument("--dataset", "--datasets", dest="datasets", nargs="+", metavar="NAME",
                        help="only these datasets; Avg: the averages over all")  # fmt: skip
    parser.add_argument("--selection", nargs="+", metavar="NAME", help="only these methods")
    parser.add_argument("--algorithms", nargs="+", metavar="NAME", help="only these algorithms")
    parser.add_argument("--format", choices=list(_FORMATS), default="text", help="default: text")


def main(args: argparse.Namespace) -> int:
    """Prints the tables that were asked for.

    Raises:
        UserError: a name is unknown, or no number is of all that is asked for.
    """
    from domainbed.reporting.published import find_values

    values = find_values(args.papers or None, args.selection, args.datasets, args.algorithms)
    sys.stdout.write(_FORMATS[args.format](values))
    return 0


def _to_text(values: Sequence[PublishedValue]) -> str:
    lines: list[str] = []
    for title, rows in _tables(values):
        lines += ["", f"-------- {title}", *text_table(rows)]
    return "\n".join(lines[1:]) + "\n"


def _to_markdown(values: Sequence[PublishedValue]) -> str:
    lines: list[str] = []
    for title, rows in _tables(values):
        lines += ["", f"### {title}", "", *pipe_table(rows)]
    return "\n".join(lines[1:]) + "\n"


def _to_csv(values: Sequence[PublishedValue]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(values[0]._fields)
    writer.writerows(values)
    return text.getvalue()


_FORMATS = {"text": _to_text, "markdown": _to_markdown, "csv": _to_csv}


def _tables(values: Sequence[PublishedValue]) -> list[tuple[str, list[list[str]]]]:
    """A title and rows of texts for each table of a paper."""
    tables: dict[str, dict[tuple[str, str], str]] = {}
    for value in values:
        is_dataset = value.table == "dataset"
        subject = f"Dataset: {value.dataset}" if is_dataset else "Averages"
        title = f"{subject}, model selection method: {value.selection}, from {value.source}"
        column = value.domain if is_dataset or value.domain != "Avg" else value.dataset
        tables.setdefault(title, {})[value.algorithm, column] = _text(value)
    return [(title, _grid(cells)) for title, cells in tables.items()]


def _grid(cells: dict[tuple[str, str], str]) -> list[list[str]]:
    columns = list(dict.fromkeys(column for _, column in cells))
    algorithms = dict.fromkeys(algorithm for algorithm, _ in cells)
    rows = [[name, *(cells.get((name, column), "") for column in columns)] for name in algorithms]
    return [["Algorithm", *columns], *rows]


def _text(value: PublishedValue) -> str:
    return f"{value.mean}" + ("" if value.std_err is None else f" +/- {value.std_err}")
