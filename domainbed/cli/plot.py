"""Draw a figure of the report into a file, for papers."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from domainbed.cli.choices import BASELINE
from domainbed.cli.report import add_choices, read_report
from domainbed.core.files import written_aside
from domainbed.errors import UserError

KINDS = ("differences", "ranks", "hparams", "curves", "on-the-line")  # without SciPy
FORMATS = (".pdf", ".png", ".svg")


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
    if output.suffix.lower() not in FORMATS:
        raise UserError(f"--output {args.output!r} does not end with {', '.join(FORMATS)}")
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
            try:
                with written_aside(file) as aside:
                    figure.savefig(aside, format=output.suffix[1:].lower(), dpi=200)
            except (OSError, ValueError) as error:
                reason = error.strerror if isinstance(error, OSError) else error
                raise UserError(f"cannot write --output {str(file)!r}: {reason}") from error
            print(f"Figure: {file}")
    return 0


def _named(output: Path, name: str) -> Path:
    plain = re.sub(r"[^\w.+-]+", "_", name)
    return output.with_stem(f"{output.stem}-{plain}")
