"""`domainbed sweep rerun-best`: more trials of what selection chose."""

from __future__ import annotations

import argparse

from domainbed.cli.common import add_flag
from domainbed.cli.launcher_flags import add_launcher_flags, launcher_flags
from domainbed.cli.sweep.common import (
    Actions,
    add_skip_flag,
    given_fields,
    load,
)
from domainbed.cli.sweep.launch import do
from domainbed.config.flags import add_flags
from domainbed.errors import UserError
from domainbed.sweeps.config import SweepConfig

_FIELDS = ("plugins", "data_dir", "device", "num_workers", "keep", "launcher")


def add_actions(actions: Actions) -> None:
    """Declares `rerun-best`."""
    summary = "run what selection methods chose with new trials"
    action = actions.add_parser(
        "rerun-best", aliases=["rerun_best"], help=summary, description=f"{summary.capitalize()}."
    )
    action.add_argument("folder", metavar="FOLDER", help="of a sweep with finished runs")
    # Of a config they would be fields, with another meaning.
    action.add_argument("--trials", dest="new_trials", type=int, default=10, metavar="N",
                        help="new ones (10)")  # fmt: skip
    action.add_argument("--selection", dest="methods", nargs="+", default=[], metavar="NAME",
                        help="methods (default: the sweep's own)")  # fmt: skip
    action.add_argument("--retry", action="store_true", help="do again what failed")
    action.add_argument("--wait", action="store_true", help="for runs that an engine does")
    add_flag(action, "--dry_run", action="store_true",
             help="say what would be done, and how long where finished runs tell")  # fmt: skip
    add_skip_flag(action)
    fields = action.add_argument_group("fields of the config", "each wins over the sweep's value")
    add_flags(fields, SweepConfig, only=_FIELDS)
    add_launcher_flags(fields)
    action.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Launches the new trials of each method in turn; returns the highest exit status.

    Raises:
        UserError: the folder is no sweep's, holds no records, or a flag is wrong.
    """
    if args.new_trials < 1:
        raise UserError(f"--trials {args.new_trials}: expected a whole number from 1 on")
    config = load(args.folder, given_fields(args), launcher_flags(args))
    from domainbed.sweeps.reruns import prepare_reruns, rerun_methods

    exit_status = 0
    for method in rerun_methods(config, args.methods):
        launch = prepare_reruns(config, method, args.new_trials, args.retry)
        found = do(launch, args.dry_run, args.wait, args.skip_confirmation)
        exit_status = max(exit_status, found)
        if exit_status >= 128:  # interrupted
            break
    return exit_status
