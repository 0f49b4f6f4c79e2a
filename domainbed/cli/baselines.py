"""Commands for sweeps that are shared: released baselines, the leaderboard, what is submitted."""

import argparse
from pathlib import Path

from domainbed.cli.common import BASELINE, argument, command
from domainbed.cli.functions import read_report
from domainbed.cli.report import which
from domainbed.cli.tables import OF_TABLES, print_tables, printed, write_output
from domainbed.config.baselines import PREFIX, summaries
from domainbed.core.names import is_provisional
from domainbed.core.text_table import text_table
from domainbed.errors import UserError

FILE = "index.html"
SHOWN = {
    **{"tables": "", "cost": "costs", "hparams": "choices"},
    **{"curves": "curves", "expected": "expected"},
}
"""What can be shown, and which of the `Findings` it is."""


@command(
    argument("name", nargs="?", metavar="NAME", help="(default: list all)"),
    argument(
        "--show",
        choices=SHOWN,
        default="tables",
        help="tables (default), averages next to the cost of an update, the chosen "
        "hyper-parameters, curves of the chosen runs, or the expected best of k draws",
    ),
    *OF_TABLES,
)
def baselines(args: argparse.Namespace) -> int:
    """List the released baselines, or show one, in any table format.

    In all commands that read records, `baseline:NAME` stands for its folder.
    """
    import pandas as pd

    from domainbed.reporting.findings import Findings
    from domainbed.reporting.section import Section, section_renderer

    if args.name is None:
        frame = pd.DataFrame({"name": n, **each["about"]} for n, each in summaries().items())
    else:
        args.folders, args.baseline = [PREFIX + args.name], None
        if args.show == "tables":
            about = summaries().get(args.name, {"algorithms": ()})  # an unknown name is refused
            found = ", ".join(filter(is_provisional, about["algorithms"]))
            return print_tables(args, [f"provisional: {found}"] * bool(found))
        report = read_report(args.folders, **which(args))
        findings = Findings(report.records, [method.name for method in report.methods])
        frame = getattr(findings, SHOWN[args.show])
        frame["provisional"] = frame["algorithm"].map(is_provisional)
    texts = frame.map(lambda value: f"{value:.4g}" if isinstance(value, float) else str(value))
    title = f"{args.name}: {args.show}" if args.name else "Released baselines"
    section = Section("baselines", title, list(frame), texts.to_numpy().tolist(), [], frame)
    printed(section_renderer(args.format, args.output)([section]), args)
    return 0


@command(
    *("folders", "--baseline", "--plugins"),
    argument("-o", "--output_dir", required=True, metavar="FOLDER", help="folder of the pages"),
)
def leaderboard(args: argparse.Namespace) -> int:
    """Write static pages that rank the methods of exported sweeps, with intervals."""
    from domainbed.reporting.page.html import to_html
    from domainbed.sweeps.leaderboard import leaderboard

    page, file = leaderboard(args.folders, args.baseline or BASELINE), Path(args.output_dir, FILE)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--output_dir {args.output_dir!r}: {error.strerror}") from error
    write_output(to_html(page), str(file))
    print(f"Leaderboard: {file}")
    return 0


@command(
    argument("file", metavar="FILE.parquet", help="from `domainbed sweep export`"),
    argument(
        "--rerun",
        type=int,
        default=0,
        metavar="N",
        help="repeat N of its runs and compare them (default: 0)",
    ),
    *("--data_dir", "--plugins"),
)
def check(args: argparse.Namespace) -> int:
    """Check an exported sweep before you share it: complete, drawn as published, repeatable.

    The exit status is 1 if a check fails.
    """
    from domainbed.sweeps.submission import check

    checks = check(Path(args.file), args.rerun, args.data_dir)
    rows = [["", "check", "found"], *(["ok" * c.stands or "NO", c.what, c.found] for c in checks)]
    print("\n".join(text_table(rows)))
    return 0 if all(each.stands for each in checks) else 1
