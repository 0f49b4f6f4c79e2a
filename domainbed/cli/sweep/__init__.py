"""Plan a grid of runs, launch it, watch it, repair it.

`plan` says what there is to do and what that takes; `launch` does what is not done and goes on with
what was begun; `retry` does what failed; `status` counts; `rerun-best` runs what was chosen with
new trials; `export` writes one file to share; `cancel` stops what is queued or running;
`delete_incomplete` removes the folders of runs that are neither done nor running.
"""

from __future__ import annotations

import argparse

from domainbed.cli.common import add_debug_flag
from domainbed.cli.sweep import cancel, delete_incomplete, export, launch, plan, rerun_best, status

_ACTIONS = (plan, launch, status, rerun_best, export, cancel, delete_incomplete)
"""Modules whose `add_actions` declares actions; each sets `run`, which does it."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares `domainbed sweep`'s actions and their arguments."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    for module in _ACTIONS:
        module.add_actions(actions)
    for action in dict.fromkeys(actions.choices.values()):  # one has two names
        # Where it is not given after the action, what was said before the action stands.
        add_debug_flag(action, default=argparse.SUPPRESS)


def main(args: argparse.Namespace) -> int:
    """Does the action; returns the exit status.

    Raises:
        UserError: the config, a flag or a folder is wrong.
    """
    exit_status: int = args.run(args)
    return exit_status
