"""Prints the results tables of a sweep folder: `collect_results.py --input_dir FOLDER`."""

import argparse

from domainbed.cli.common import Parser, Run, run_script
from domainbed.cli.tables import collect_of_folders


def collect_results(parser: Parser) -> Run:
    """Select models and print the results tables, with DomainBed's flags."""
    parser.add_argument(
        "--input_dir",
        dest="folders",
        nargs=1,
        required=True,
        metavar="FOLDER",
        help="sweep or run folder",
    )
    run = collect_of_folders(parser)
    parser.add_argument(
        "--latex",
        dest="format",
        action="store_const",
        const="latex",
        help="the same as --format latex",
    )
    parser.add_argument(
        "--auto_lr",
        dest="selection",
        action="store_const",
        const=["training-domain"],
        help="the same as --selection training-domain, which reads runs of two stages as well",
    )
    # DomainBed's prints a document.
    return lambda args: run(
        argparse.Namespace(**{**vars(args), "document": args.format == "latex"})
    )


if __name__ == "__main__":
    run_script(collect_results)
