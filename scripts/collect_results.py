"""Prints the results tables of a sweep folder: `collect_results.py --input_dir FOLDER`."""

import argparse

from domainbed.cli.common import argument, command, run_script
from domainbed.cli.tables import OF_TABLES, print_tables


@command(
    argument(
        "--input_dir",
        dest="folders",
        nargs=1,
        required=True,
        metavar="FOLDER",
        help="sweep or run folder",
    ),
    *OF_TABLES,
    argument(
        "--latex",
        dest="format",
        action="store_const",
        const="latex",
        help="the same as --format latex",
    ),
    argument(
        "--auto_lr",
        dest="selection",
        action="store_const",
        const=["training-domain"],
        help="the same as --selection training-domain, which reads runs of two stages as well",
    ),
)
def collect_results(args: argparse.Namespace) -> int:
    """Select models and print the results tables, with DomainBed's flags."""
    args.document = args.format == "latex"  # DomainBed's prints a document
    return print_tables(args)


if __name__ == "__main__":
    run_script(collect_results)
