"""Commands that draw: a report as a page, and its figures as files."""

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

from domainbed.cli import functions
from domainbed.cli.common import BASELINE, argument, command
from domainbed.cli.tables import add_style, show_progress, style_of, write_output
from domainbed.errors import UserError
from domainbed.reporting.figures import FIGURES, WIDTHS
from domainbed.reporting.page import build_page, to_html
from domainbed.reporting.page.serve import REFRESH, serve
from domainbed.reporting.page.wrong_images import files_below
from domainbed.reporting.render import styled
from domainbed.runs.folder import RunFolder

_ASKED = ("datasets", "algorithms", "selection", "metric", "selection_metric", "baseline")
_WHICH = ("folders", *(f"--{name}" for name in _ASKED), "--plugins")

FILE = "report.html"
PORT = 8000
LOCAL = "127.0.0.1"


@command(
    *_WHICH,
    argument(
        "-o",
        "--output",
        metavar="FILE",
        help=f"file to write (default: {FILE} in the first FOLDER)",
    ),
    add_style,
    "--data_dir",
    argument(
        "--serve", action="store_true", help="show it in a browser instead, and keep it up to date"
    ),
    argument(
        "--port", type=int, metavar="N", help=f"for --serve (default: {PORT}; 0: any free port)"
    ),
    argument(
        "--host",
        metavar="ADDRESS",
        help=f"for --serve: where to listen (default: {LOCAL}, this machine only; 0.0.0.0: all "
        "that can reach it, without a password)",
    ),
)
def report(args: argparse.Namespace) -> int:
    """Write tables, comparisons and figures of sweeps as one HTML file."""
    if args.serve:
        if args.output is not None:
            raise UserError(
                f"--output {args.output} writes a file, and --serve does not: give one of them"
            )
        port = PORT if args.port is None else args.port
        return serve(lambda: _html(args, REFRESH), args.folders, args.host or LOCAL, port)
    for name in ("port", "host"):
        if (value := getattr(args, name)) is not None:
            raise UserError(f"--{name} {value} is for --serve: add it, or leave --{name} out")
    output = str(Path(args.folders[0], FILE)) if args.output is None else args.output
    write_output(_html(args), output)
    print(f"Report: {output}")
    return 0


def _html(args: argparse.Namespace, refresh: int = 0) -> str:
    """The page, which reloads itself after this many seconds; 0 for never."""
    progress = None if refresh else show_progress
    found = functions.read_report(args.folders, **which(args), progress=progress)
    report = styled(found, style_of(args))
    baseline = args.baseline or BASELINE
    page = build_page(report, args.folders, baseline, partial(_read_images, args.data_dir))
    return to_html(page, refresh)


def _read_images(
    data_dir: str, folder: str, env: int, names: Sequence[str]
) -> Sequence[Image.Image | None]:
    """The images that a run's predictions name, by their files or by their positions in memory."""
    if not all(name.isdigit() for name in names):
        return files_below(data_dir, folder, env, names)
    from domainbed.training.trained import pictures  # imports PyTorch

    try:
        return pictures(RunFolder(folder), data_dir, env, list(map(int, names)))
    except UserError:
        return [None] * len(names)


def which(args: argparse.Namespace) -> dict[str, Any]:
    """What of the folders' runs is asked for."""
    return {name: getattr(args, name) for name in _ASKED}


@command(
    *_WHICH,
    argument("kind", metavar="KIND", help=", ".join(FIGURES)),
    argument(
        "-o", "--output", required=True, metavar="FILE", help="file to write: .pdf, .png or .svg"
    ),
    argument(
        "--width",
        choices=WIDTHS,
        default="double",
        help="in inches: column 3.25, single (a single-column page) 5.5, double (both columns, "
        "default) 6.75, page (as in the report) 14",
    ),
)
def plot(args: argparse.Namespace) -> int:
    """Draw a figure of the report into a file, for papers.

    Several figures, of several datasets or algorithms, go to several files, named after them.
    """
    figures = functions.plot(args.folders, args.kind, args.output, width=args.width, **which(args))
    for file in functions.figure_files(args.output, figures).values():
        print(f"Figure: {file}")
    return 0
