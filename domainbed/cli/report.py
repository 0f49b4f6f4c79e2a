"""Commands that draw: a report as a page, and its figures as files."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from PIL import Image

from domainbed.cli.common import BASELINE, JUDGES, argument, command
from domainbed.cli.tables import add_style, show_progress, style_of, write_output
from domainbed.core.drawing import check_figure_file, save_figure
from domainbed.errors import UserError
from domainbed.reporting import (
    Report,
    build_report,
    load_records,
    only,
    planned_gaps,
    planned_selection,
)
from domainbed.reporting.figures import FIGURES, WIDTHS, plain_style
from domainbed.reporting.findings import Findings
from domainbed.reporting.page import build_page, to_html
from domainbed.reporting.page.serve import REFRESH, serve
from domainbed.reporting.page.wrong_images import files_below
from domainbed.reporting.render import styled
from domainbed.runs.folder import RunFolder
from domainbed.selection.judging import judged_alike

_WHICH = (
    *("folders", "--datasets", "--algorithms", "--selection"),
    *(*JUDGES, "--baseline", "--plugins"),
)

FILE = "report.html"
PORT = 8000
LOCAL = "127.0.0.1"


@command(
    *_WHICH,
    argument(
        "-o", "--output", metavar="FILE", help=f"the file to write (FOLDER/{FILE} of the first)"
    ),
    add_style,
    "--data_dir",
    argument(
        "--serve", action="store_true", help="show it in a browser instead, and keep it up to date"
    ),
    argument("--port", type=int, metavar="N", help=f"for --serve ({PORT}; 0: any that is free)"),
    argument(
        "--host",
        metavar="ADDRESS",
        help=f"for --serve: where to listen ({LOCAL}, this machine alone; 0.0.0.0: all that can "
        "reach it, without a password)",
    ),
)
def report(args: argparse.Namespace) -> int:
    """Write tables, comparisons and figures of sweeps as one HTML file."""
    if args.serve:
        if args.output is not None:
            raise UserError(f"--output {args.output} writes a file, and --serve none: give one")
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
    report = styled(read_report(args, quiet=bool(refresh)), style_of(args))
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


def read_report(args: argparse.Namespace, quiet: bool = False) -> Report:
    """The tables of the runs that are asked for.

    Raises:
        UserError: a folder, a record or a name is wrong, or the datasets have different metrics.
    """
    records = load_records(args.folders, progress=None if quiet else show_progress)
    selection = args.selection or planned_selection(args.folders)
    gaps, asked = planned_gaps(args.folders), (args.datasets, args.algorithms)
    records = judged_alike(only(records, *asked), args.metric, args.selection_metric)
    judges = records.metric, records.selection_metric
    report = build_report(records, selection, *asked, gaps, *judges)
    known = sorted(set(report.records.runs["algorithm"]))
    if args.baseline is not None and args.baseline not in known:
        raise UserError(f"no records of --baseline {args.baseline!r}: there are {', '.join(known)}")
    return report


@command(
    *_WHICH,
    argument("kind", metavar="KIND", help=", ".join(FIGURES)),
    argument("-o", "--output", required=True, metavar="FILE", help="ends with .pdf, .png or .svg"),
    argument(
        "--width",
        choices=WIDTHS,
        default="double",
        help="of a column (3.25 inches), of a single-column page (5.5), of both columns (6.75; "
        "default), or of the report's page (14)",
    ),
)
def plot(args: argparse.Namespace) -> int:
    """Draw a figure of the report into a file, for papers.

    Several figures, of several datasets or algorithms, go to several files, named after them.
    """
    output = Path(args.output)
    check_figure_file("--output", output)
    draw = FIGURES[args.kind]
    report = read_report(args)
    methods = [method.name for method in report.methods]
    with plain_style(WIDTHS[args.width]):
        figures = draw(Findings(report.records, methods, args.baseline or BASELINE))
        if not figures:
            raise UserError(f"{args.kind}: these runs have nothing to draw, see `domainbed report`")
        for name, figure in figures.items():
            plain = re.sub(r"[^\w.+-]+", "_", name)
            file = output.with_stem(f"{output.stem}-{plain}") if len(figures) > 1 else output
            save_figure(figure, "--output", file, dpi=300)
            print(f"Figure: {file}")
    return 0
