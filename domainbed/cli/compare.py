"""Compare algorithms with a baseline, or a sweep's tables with a paper's."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from domainbed.cli.choices import BASELINE, add_baseline, add_filters, add_folders
from domainbed.cli.collect import show_progress, write_output
from domainbed.errors import UserError

if TYPE_CHECKING:
    from domainbed.reporting.sections import Section
    from domainbed.runs.records import Records

UNITS = ("trial", "domain", "dataset")  # without SciPy, which `statistics.UNITS` would import


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of `domainbed compare`."""
    add_folders(parser)
    parser.add_argument("--with", dest="paper", metavar="PAPER", help="put the tables beside a "
                        "paper's: fishr-2022, domainbed-2020")  # fmt: skip
    add_filters(parser)
    add_baseline(parser)
    parser.add_argument("--unit", choices=UNITS, help="what wins and tests count as one "
                        "observation (trial; for ranks domain)")  # fmt: skip
    parser.add_argument("--rope", type=float, metavar="POINTS",
                        help="also test whether differences are within so many points")  # fmt: skip
    parser.add_argument("--format", metavar="NAME", default="text",
                        help="text (default), markdown, latex, csv, json")  # fmt: skip
    parser.add_argument("--output", metavar="FILE", help="write there instead of to the terminal")


def main(args: argparse.Namespace) -> int:
    """Prints the comparison, or writes it to a file; returns the exit status.

    Raises:
        UserError: a folder, a record or a name is wrong, or there is nothing to compare.
    """
    from domainbed.reporting import load_records, planned_selection
    from domainbed.reporting.render_comparison import COMPARISON_RENDERERS

    render = COMPARISON_RENDERERS[args.format]
    of_baseline = {"baseline": args.baseline, "unit": args.unit, "rope": args.rope}
    for name, value in of_baseline.items():
        if args.paper and value is not None:
            raise UserError(f"--{name} {value} compares algorithms, and --with a paper: give one")
    records = load_records(args.folders, progress=show_progress)
    selection = args.selection or planned_selection(args.folders)
    sections = _beside(args, records, selection) if args.paper else _all(args, records, selection)
    write_output(render(sections), args.output)
    return 0


def _beside(
    args: argparse.Namespace, records: Records, selection: Sequence[str] | None
) -> list[Section]:
    from domainbed.reporting import build_report
    from domainbed.reporting.beside import beside_published
    from domainbed.reporting.sections import beside_sections

    report = build_report(records, selection, args.datasets, args.algorithms)
    return beside_sections(beside_published(report, args.paper), args.paper)


def _all(
    args: argparse.Namespace, records: Records, selection: Sequence[str] | None
) -> list[Section]:
    from domainbed.reporting import analyses, build_report, comparison, only, sections

    baseline, unit = args.baseline or BASELINE, args.unit or UNITS[0]
    algorithms = args.algorithms and list(dict.fromkeys([baseline, *args.algorithms]))
    records = only(records, args.datasets, algorithms)
    found = comparison.differences(records, selection, baseline, unit, args.rope)
    ranked = args.unit or "domain"
    ranks = comparison.critical_differences(records, selection, ranked)
    first = [
        *sections.difference_sections(found, unit, args.rope),
        *sections.rank_sections(ranks, ranked),
    ]
    report = build_report(records, selection)
    more = (
        (sections.gap_section, analyses.selection_gap(records)),
        (sections.tuning_section, analyses.tuning_gain(records, selection)),
        (sections.expected_section, analyses.expected_best(records, selection)),
        (sections.worst_section, analyses.worst_domains(report)),
        (sections.line_section, analyses.accuracy_on_the_line(records)),
    )
    return first + [section(frame) for section, frame in more if len(frame)]
