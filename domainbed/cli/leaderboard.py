"""Commands for numbers that are shared: the leaderboard, and the check of what is submitted."""

import argparse
from pathlib import Path

from domainbed.cli.common import BASELINE, argument, command
from domainbed.cli.tables import write_output
from domainbed.core.text_table import text_table
from domainbed.errors import UserError

FILE = "index.html"


@command(
    *("folders", "--baseline", "--plugins"),
    argument("-o", "--output_dir", required=True, metavar="FOLDER", help="of the pages"),
)
def leaderboard(args: argparse.Namespace) -> int:
    """Write static pages that rank the methods of exported sweeps, with how sure that is."""
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
        "--rerun", type=int, default=0, metavar="N", help="do N of its runs again and compare (0)"
    ),
    *("--data_dir", "--plugins"),
)
def check(args: argparse.Namespace) -> int:
    """Check an exported sweep before it is shared: whole, drawn as published, the same again.

    The exit status is 1 if a check does not stand.
    """
    from domainbed.sweeps.submission import check

    checks = check(Path(args.file), args.rerun, args.data_dir)
    rows = [["", "check", "found"], *(["ok" * c.stands or "NO", c.what, c.found] for c in checks)]
    print("\n".join(text_table(rows)))
    return 0 if all(each.stands for each in checks) else 1
