"""Flags that say of which runs tables, comparisons and figures are made, and in which style."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from domainbed.cli.common import add_flag

if TYPE_CHECKING:
    from domainbed.reporting.style import Style

BASELINE = "ERM"


def add_folders(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "folders", nargs="+", metavar="FOLDER", help="sweep folders, or run folders"
    )


def add_filters(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--datasets", nargs="+", metavar="NAME", help="only these datasets")
    parser.add_argument("--algorithms", nargs="+", metavar="NAME", help="only these algorithms")
    parser.add_argument(
        "--selection",
        nargs="+",
        metavar="NAME",
        help="selection methods, by short name (those that the sweep was planned for)",
    )


def add_baseline(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--baseline", metavar="NAME", help=f"what algorithms are compared with ({BASELINE})"
    )


def add_style(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--order",
        metavar="NAME",
        default="table",
        help="of rows: table (default), given (as --algorithms and --datasets name them), mean "
        "(the best average first)",
    )
    parser.add_argument("--domains", nargs="+", metavar="NAME", help="the domains that come first")
    parser.add_argument("--decimals", type=int, default=1, metavar="N", help="of numbers (1)")
    parser.add_argument(
        "--spread",
        metavar="NAME",
        default="se",
        help="behind +/-: se, the standard error (default), ci95, half a 95 %% interval, none",
    )
    add_flag(parser, "--underline_second", action="store_true",
             help="underline the second best of each column (not in text)")  # fmt: skip


def style_of(args: argparse.Namespace) -> Style:
    """What `add_style` and `add_filters` were given.

    Raises:
        UserError: a value is none of those that there are.
    """
    from domainbed.reporting.style import Style

    return Style(
        *(args.decimals, args.spread, args.underline_second, args.order),
        *(args.algorithms or (), args.datasets or (), args.domains or ()),
    )
