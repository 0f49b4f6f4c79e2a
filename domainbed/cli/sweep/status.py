"""`domainbed sweep status`: how far a sweep is."""

from __future__ import annotations

import argparse
from typing import Any

from domainbed.cli.sweep.common import FOLDER_OR_CONFIG, Actions, given_fields, store_and_runs
from domainbed.flags import add_flags
from domainbed.sweeps.config import SweepConfig


def add_actions(actions: Actions) -> None:
    """Declares `status`."""
    action = actions.add_parser("status", help="count the runs by their state")
    action.add_argument("target", metavar="FOLDER_OR_CONFIG", help=FOLDER_OR_CONFIG)
    action.add_argument("--json", action="store_true", help="for programs")
    add_flags(action, SweepConfig, only=["plugins"])
    action.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Does what the command line says; returns the exit status."""
    return show_status(args.target, args.json, given_fields(args))


def show_status(target: str, as_json: bool, overrides: dict[str, Any] | None = None) -> int:
    """Prints how many runs of a sweep are in which state; returns the exit status.

    Raises:
        UserError: `target` is neither a sweep's folder nor a config.
    """
    from domainbed.sweeps.status import status_json, status_lines, status_of

    status = status_of(*store_and_runs(target, overrides or {}))
    print(status_json(status) if as_json else "\n".join(status_lines(status)))
    return 0
