"""Commands for numbers that are shared: the leaderboard, and the check of what is submitted."""

import argparse
from pathlib import Path

from domainbed.cli.common import BASELINE, Parser, Run, add_shared
from domainbed.cli.tables import write_output
from domainbed.core.text_table import text_table
from domainbed.errors import UserError

FILE = "index.html"


def leaderboard(parser: Parser) -> Run:
    """Write static pages that rank the methods of exported sweeps, with how sure that is."""
    add_shared(parser, "folders", "--baseline", "--plugins")
    parser.add_argument("-o", "--output_dir", required=True, metavar="FOLDER", help="of the pages")
    return _leaderboard


def _leaderboard(args: argparse.Namespace) -> int:
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


def check(parser: Parser) -> Run:
    """Check an exported sweep before it is shared: whole, drawn as published, the same again."""
    parser.add_argument("file", metavar="FILE.parquet", help="from `domainbed sweep export`")
    parser.add_argument(
        "--rerun", type=int, default=0, metavar="N", help="do N of its runs again and compare (0)"
    )
    add_shared(parser, "--data_dir", "--plugins")
    return _check


def _check(args: argparse.Namespace) -> int:
    """Prints the checks; the status is 1 if one does not stand."""
    from domainbed.sweeps.submission import check

    checks = check(Path(args.file), args.rerun, args.data_dir)
    rows = [["", "check", "found"], *(["ok" * c.stands or "NO", c.what, c.found] for c in checks)]
    print("\n".join(text_table(rows)))
    return 0 if all(each.stands for each in checks) else 1
