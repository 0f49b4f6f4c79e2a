"""`domainbed sweep delete_incomplete`: removes what is neither done nor running."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from domainbed.cli.sweep.common import (
    FOLDER_OR_CONFIG,
    Actions,
    add_skip_flag,
    confirmed,
    given_fields,
    root_of,
)
from domainbed.config.flags import add_flags
from domainbed.errors import UserError
from domainbed.sweeps.config import SweepConfig
from domainbed.sweeps.status import count_runs


def add_actions(actions: Actions) -> None:
    """Declares `delete_incomplete`."""
    summary = "remove the folders of runs that are neither done nor running"
    action = actions.add_parser(
        "delete_incomplete",
        aliases=["delete-incomplete"],
        help=summary,
        description=f"{summary.capitalize()}.",
    )
    action.add_argument("target", metavar="FOLDER", help=FOLDER_OR_CONFIG)
    add_skip_flag(action, elsewhere="needed where there is no terminal")
    add_flags(action, SweepConfig, only=["plugins"])
    action.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Does what the command line says; returns the exit status."""
    return delete_incomplete(root_of(args.target, given_fields(args)), args.skip_confirmation)


def delete_incomplete(root: Path, skip_confirmation: bool) -> int:
    """Removes the folders of runs that are neither done nor running; returns the exit status.

    Raises:
        UserError: there is no such folder, or nobody is there to confirm.
    """
    from domainbed.sweeps.store import Store, remove

    if not root.is_dir():
        raise UserError(f"{str(root)!r} is no folder: name the folder of a sweep")
    folders = Store(root).incomplete()
    if not folders:
        print("no incomplete runs")
        return 0
    if not skip_confirmation and not sys.stdin.isatty():
        raise UserError(
            f"{count_runs(len(folders))} in {str(root)!r} would be deleted, and nobody is there to "
            "confirm it: give --skip_confirmation"
        )
    question = f"Delete the folders of {count_runs(len(folders))}, with all that they hold?"
    if skip_confirmation or confirmed(question):
        print(f"deleted {count_runs(sum(remove(folder) for folder in folders))}")
    return 0
