"""`domainbed sweep cancel`: takes what is queued back from its engine, and stops what runs."""

from __future__ import annotations

import argparse

from domainbed.cli.sweep.common import FOLDER_OR_CONFIG, Actions, given_fields, load
from domainbed.config.flags import add_flags
from domainbed.sweeps.config import SweepConfig


def add_actions(actions: Actions) -> None:
    """Declares `cancel`."""
    summary = "stop the runs that are queued or running"
    action = actions.add_parser("cancel", help=summary, description=f"{summary.capitalize()}.")
    action.add_argument("target", metavar="FOLDER_OR_CONFIG", help=FOLDER_OR_CONFIG)
    add_flags(action, SweepConfig, only=["plugins"])
    action.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Does what the command line says; returns the exit status.

    Raises:
        UserError: there is no such sweep, or an engine refuses.
    """
    config = load(args.target, given_fields(args))
    from domainbed.sweeps.following import cancel
    from domainbed.sweeps.store import Store

    store = Store(config.output_dir)
    cancelled = cancel(store, store.statuses(store.planned()), config.launcher)
    for engine, jobs in cancelled.items():
        shown = ", ".join(sorted(jobs)[:10]) + (", …" if len(jobs) > 10 else "")
        print(f"{engine}: cancelled {len(jobs)} job{'s' * (len(jobs) != 1)} ({shown})")
    if not cancelled:
        print("nothing of this sweep is queued or running")
    return 0
