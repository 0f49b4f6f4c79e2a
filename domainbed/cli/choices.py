"""Flags that say of which runs tables, comparisons and figures are made."""

from __future__ import annotations

import argparse

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
