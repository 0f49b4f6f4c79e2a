"""Put published datasets into the data folder: from their sources, or from a copy you have.

A download that was interrupted goes on when the same command is given again.
"""

from __future__ import annotations

import argparse
import sys

from domainbed.cli.common import add_data_dir_flag, add_flag
from domainbed.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares names and flags."""
    parser.add_argument("names", nargs="+", metavar="NAME", help="datasets, or all")
    add_data_dir_flag(parser)
    parser.add_argument("--from", dest="copy", metavar="PATH", help="an archive or folder that you "
                        "have, instead of the sources; it is read, not changed")  # fmt: skip
    add_flag(parser, "--accept_checksum", action="store_true", help="take a file whose checksum "
             "is not the known one")  # fmt: skip
    add_flag(parser, "--accept_incomplete", action="store_true", help="take a dataset whose "
             "domains, classes or numbers of images are not the published ones")  # fmt: skip


def main(args: argparse.Namespace) -> int:
    """Gets one dataset after the other; one that fails does not keep the others from coming.

    Raises:
        UserError: an unknown name, or the only dataset cannot be had.
    """
    from domainbed.download.download import download_dataset, downloadable

    names = downloadable() if "all" in args.names else list(dict.fromkeys(args.names))
    if args.copy is not None and len(names) > 1:
        raise UserError(f"--from {args.copy!r} goes with one dataset, not with {len(names)}")
    failed = 0
    for name in names:
        try:
            download_dataset(
                *(name, args.data_dir, args.copy),
                accept_checksum=args.accept_checksum,
                accept_incomplete=args.accept_incomplete,
                say=_say,
            )
        except UserError as error:
            if len(names) == 1:
                raise
            print(f"error: {name}: {error}", file=sys.stderr)
            failed += 1
    return 2 if failed else 0


def _say(line: str) -> None:
    print(line, flush=True)
