"""`domainbed sweep export`: a sweep as one file, to be shared."""

from __future__ import annotations

import argparse
from pathlib import Path

from domainbed.cli.sweep.common import Actions
from domainbed.errors import UserError
from domainbed.sweeps.status import count_runs


def add_actions(actions: Actions) -> None:
    """Declares `export`."""
    summary = "write the records and specs of all runs into one file, which collect reads"
    action = actions.add_parser("export", help=summary, description=f"{summary.capitalize()}.")
    action.add_argument("folder", metavar="FOLDER", help="of a sweep")
    action.add_argument("file", metavar="FILE.parquet", help="to write")
    action.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Writes the file; returns the exit status.

    Raises:
        UserError: the folder holds no runs, or the file cannot be written.
    """
    from domainbed.runs.exported import SUFFIX, write_export
    from domainbed.runs.states import MISSING
    from domainbed.sweeps.store import Store

    root, file = Path(args.folder), Path(args.file)
    if file.suffix != SUFFIX:
        raise UserError(f"{args.file!r}: expected a name that ends in {SUFFIX}")
    folders = Store(root).run_folders()
    begun = [folder.path for folder in folders if folder.state() != MISSING]
    if not begun:
        raise UserError(f"{args.folder!r} holds no runs: name the folder of a launched sweep")
    write_export(root, begun, file)
    print(f"{count_runs(len(begun))}: {file} ({file.stat().st_size / 1e6:.3g} MB)")
    return 0
