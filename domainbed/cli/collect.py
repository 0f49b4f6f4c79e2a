"""Select models and print the results tables of sweeps."""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from domainbed.cli.choices import add_filters, add_folders, add_style, style_of
from domainbed.cli.common import add_flag
from domainbed.core.files import write_text
from domainbed.errors import UserError

if TYPE_CHECKING:
    from domainbed.reporting import Report
    from domainbed.runs.records import Records


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of `domainbed collect`."""
    add_folders(parser)
    _add_options(parser)


def add_script_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of scripts/collect_results.py, DomainBed's among them."""
    add_flag(parser, "--input_dir", required=True, metavar="FOLDER", help="sweep or run folder")
    parser.add_argument("--latex", action="store_true", help="the same as --format latex")
    _add_options(parser)


def main(args: argparse.Namespace) -> int:
    """Prints the tables, or writes them to a file; returns the exit status.

    Raises:
        UserError: a folder, a record or a name is wrong, or the file cannot be written.
    """
    from domainbed.reporting import RENDERERS, explain, load_records
    from domainbed.reporting.style import styled

    for flag in ("by_folder", "single_source"):
        if args.explain and getattr(args, flag):
            raise UserError(f"--explain explains the usual tables: give it without --{flag}")
    render = RENDERERS[args.format]
    style = style_of(args)
    report = styled(_report(args, load_records(args.folders, progress=show_progress)), style)
    text = render(report)
    reasons = explain(report, args.folders) if args.explain else []
    if args.format in _AS_COMMENT:
        text += "".join(_AS_COMMENT[args.format].format(line).rstrip() + "\n" for line in reasons)
    elif reasons:  # a CSV or JSON file with more lines below would be damaged
        print("\n".join(reasons), file=sys.stderr)
    write_output(text, args.output)
    return 0


def _report(args: argparse.Namespace, records: Records) -> Report:
    from domainbed.reporting import build_report, only, planned_gaps, planned_selection
    from domainbed.reporting.plans import by_folder, gaps_by_folder
    from domainbed.reporting.single_source import single_source_report, warn_of_single_source

    folders, gaps = args.folders, planned_gaps(args.folders)
    records = only(records, args.datasets, args.algorithms)
    if args.by_folder:
        records, gaps = by_folder(records, folders), gaps_by_folder(folders)
    if args.single_source:
        return single_source_report(records, args.selection)
    warn_of_single_source(records)
    report = build_report(records, args.selection or planned_selection(folders), gaps=gaps)
    return replace(report, datasets=args.datasets, algorithms=args.algorithms)


def script_main(args: argparse.Namespace) -> int:
    """As `main`, for the arguments of scripts/collect_results.py."""
    args.folders = [args.input_dir]
    args.format = "latex" if args.latex else args.format
    return main(args)


def show_progress(done: int, total: int) -> None:
    """A line on stderr that counts the run folders read, if somebody is watching."""
    if not sys.stderr.isatty() or (done % 100 and done < total):
        return
    end = "\n" if done == total else ""
    print(f"\rreading runs: {done} of {total}", end=end, file=sys.stderr, flush=True)


_AS_COMMENT = {"text": "{}", "markdown": "    {}", "latex": "% {}"}


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--format",
        metavar="NAME",
        default="text",
        help="text (default), markdown, latex, csv, json",
    )
    add_filters(parser)
    parser.add_argument("--output", metavar="FILE", help="write there instead of to the terminal")
    add_style(parser)
    add_flag(parser, "--by_folder", action="store_true",
             help="a row for each algorithm and folder, instead of all together")  # fmt: skip
    add_flag(parser, "--single_source", action="store_true",
             help="the tables of runs that train on one domain alone")  # fmt: skip
    parser.add_argument(
        "--explain", action="store_true", help="say which runs the incomplete cells lack, and why"
    )


def write_output(text: str, output: str | None) -> None:
    """Prints `text`, or writes it to the file `output`.

    Raises:
        UserError: the file cannot be written.
    """
    if output is None:
        sys.stdout.write(text)
        return
    try:
        write_text(Path(output), text)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"cannot write --output {output!r}: {reason}") from error
