"""`domainbed baselines`: released sweeps, to look at and to compare with."""

import argparse

from domainbed.cli.common import argument, command
from domainbed.cli.functions import read_report
from domainbed.cli.report import which
from domainbed.cli.tables import OF_TABLES, print_tables, printed
from domainbed.config.baselines import PREFIX, summaries

SHOWN = {"tables": "", "hparams": "choices", "curves": "curves", "expected": "expected"}
"""What can be shown, and which of the `Findings` it is."""


@command(
    argument("name", nargs="?", metavar="NAME", help="(default: list all)"),
    argument(
        "--show",
        choices=SHOWN,
        default="tables",
        help="tables (default), what was chosen in them, the course of the chosen runs, or what "
        "the best of k draws gives",
    ),
    *OF_TABLES,
)
def baselines(args: argparse.Namespace) -> int:
    """List the released baselines, or show one, in every format of tables.

    `baseline:NAME` stands for its folder in all commands that read records.
    """
    import pandas as pd

    from domainbed.reporting.findings import Findings
    from domainbed.reporting.section import Section, section_renderer

    if args.name is None:
        frame = pd.DataFrame({"name": n, **each["about"]} for n, each in summaries().items())
    else:
        args.folders, args.baseline = [PREFIX + args.name], None
        if args.show == "tables":
            return print_tables(args)
        report = read_report(args.folders, **which(args))
        methods = [method.name for method in report.methods]
        frame = getattr(Findings(report.records, methods), SHOWN[args.show])
    texts = frame.map(lambda value: f"{value:.4g}" if isinstance(value, float) else str(value))
    title = f"{args.name}: {args.show}" if args.name else "Released baselines"
    section = Section("baselines", title, list(frame), texts.to_numpy().tolist(), [], frame)
    printed(section_renderer(args.format, args.output)([section]), args)
    return 0
