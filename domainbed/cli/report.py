"""Write tables, comparisons and figures of sweeps as one HTML file."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from domainbed.cli.choices import (
    BASELINE,
    add_baseline,
    add_filters,
    add_folders,
    add_style,
    style_of,
)
from domainbed.cli.collect import show_progress, write_output
from domainbed.cli.common import add_data_dir_flag
from domainbed.errors import UserError

if TYPE_CHECKING:
    from PIL import Image

    from domainbed.reporting import Report

FILE = "report.html"
PORT = 8000
LOCAL = "127.0.0.1"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of `domainbed report`."""
    add_choices(parser)
    add_style(parser)
    add_data_dir_flag(parser)
    parser.add_argument(
        "-o", "--output", metavar="FILE", help=f"the file to write (FOLDER/{FILE} of the first)"
    )
    parser.add_argument(
        "--serve", action="store_true", help="show it in a browser instead, and keep it up to date"
    )
    parser.add_argument(
        "--port", type=int, metavar="N", help=f"for --serve ({PORT}; 0: any that is free)"
    )
    parser.add_argument(
        "--host", metavar="ADDRESS", help=f"for --serve: where to listen ({LOCAL}, this machine "
        "alone; 0.0.0.0: all that can reach it, without a password)"
    )  # fmt: skip


def add_choices(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments that say of which runs, as `domainbed plot` has them too."""
    add_folders(parser)
    add_filters(parser)
    add_baseline(parser)


def main(args: argparse.Namespace) -> int:
    """Writes the report and prints its path, or serves it; returns the exit status.

    Raises:
        UserError: a folder, a record or a name is wrong, the file cannot be written, or the port
            is taken.
    """
    if args.serve:
        return _serve(args)
    for name in ("port", "host"):
        if (value := getattr(args, name)) is not None:
            raise UserError(f"--{name} {value} is for --serve: add it, or leave --{name} out")
    text = _html(args)
    output = Path(args.folders[0], FILE) if args.output is None else args.output
    write_output(text, str(output))
    print(f"Report: {output}")
    return 0


def _html(args: argparse.Namespace, refresh: int = 0) -> str:
    """The page, which a browser loads anew after so many seconds; 0 for never."""
    from domainbed.reporting.page import build_page, to_html
    from domainbed.reporting.style import styled

    report = styled(read_report(args, quiet=bool(refresh)), style_of(args))
    baseline = args.baseline or BASELINE
    page = build_page(report, args.folders, baseline, partial(_read_images, args.data_dir))
    return to_html(page, refresh)


def _read_images(
    data_dir: str, folder: str, env: int, names: Sequence[str]
) -> list[Image.Image | None]:
    """The images that a run's predictions name: of files, or by their positions in memory."""
    from domainbed.reporting.page.thumbnails import FilesBelow
    from domainbed.runs.folder import RunFolder

    if not all(name.isdigit() for name in names):
        return FilesBelow(Path(data_dir))(folder, env, names)
    from domainbed.training.pictures import pictures  # imports PyTorch

    try:
        return list(pictures(RunFolder(folder), data_dir, env, list(map(int, names))))
    except UserError:
        return [None] * len(names)


def read_report(args: argparse.Namespace, quiet: bool = False) -> Report:
    """The tables of the runs that are asked for.

    Raises:
        UserError: a folder, a record or a name is wrong.
    """
    from domainbed.reporting import build_report, load_records, planned_gaps, planned_selection

    records = load_records(args.folders, progress=None if quiet else show_progress)
    selection = args.selection or planned_selection(args.folders)
    gaps = planned_gaps(args.folders)
    report = build_report(records, selection, args.datasets, args.algorithms, gaps)
    known = sorted(set(report.records.runs["algorithm"]))
    if args.baseline is not None and args.baseline not in known:
        raise UserError(f"no records of --baseline {args.baseline!r}: there are {', '.join(known)}")
    return report


def _serve(args: argparse.Namespace) -> int:
    from domainbed.reporting.page.serve import REFRESH, serve

    if args.output is not None:
        raise UserError(f"--output {args.output} writes a file, and --serve none: give one")

    port = PORT if args.port is None else args.port
    return serve(lambda: _html(args, REFRESH), args.folders, args.host or LOCAL, port)
