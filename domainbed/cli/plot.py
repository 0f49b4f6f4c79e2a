"""Draw a figure of the report into a file, for papers."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from domainbed.cli.choices import BASELINE
from domainbed.cli.report import add_choices, read_report
from domainbed.core.drawing import check_figure_file, save_figure
from domainbed.errors import UserError

KINDS = ("differences", "ranks", "hparams", "curves", "on-the-line")  # without SciPy


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of `domainbed plot`."""
    add_choices(parser)
    parser.add_argument("kind", metavar="KIND", help=", ".join(KINDS))
    parser.add_argument(
        "-o", "--output", required=True, metavar="FILE", help="ends with .pdf, .png or .svg"
    )


def main(args: argparse.Namespace) -> int:
    """Writes the figures of a kind and prints their paths; returns the exit status.

    Several figures, of several datasets or algorithms, go to several files, named after them.

    Raises:
        UserError: a folder, a record or a name is wrong, there is nothing to draw, or the file
            cannot be written.
    """
    output = Path(args.output)
    check_figure_file("--output", output)
    from domainbed.reporting.figures import FIGURES, plain_style
    from domainbed.reporting.findings import Findings

    draw = FIGURES[args.kind]
    report = read_report(args)
    methods = [method.name for method in report.methods]
    with plain_style():
        figures = draw(Findings(report.records, methods, args.baseline or BASELINE))
        if not figures:
            raise UserError(f"{args.kind}: these runs have nothing to draw, see `domainbed report`")
        for name, figure in figures.items():
            file = _named(output, name) if len(figures) > 1 else output
            save_figure(figure, "--output", file, dpi=200)
            print(f"Figure: {file}")
    return 0


def _named(output: Path, name: str) -> Path:
    plain = re.sub(r"[^\w.+-]+", "_", name)
    return output.with_stem(f"{output.stem}-{plain}")
