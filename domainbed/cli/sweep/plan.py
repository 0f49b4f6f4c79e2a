"""`domainbed sweep plan`: what a launch would do, and what that takes."""

from __future__ import annotations

import argparse
import sys

from domainbed.cli.launcher_flags import launcher_flags
from domainbed.cli.sweep.common import (
    Actions,
    add_field_flags,
    given_fields,
    load,
    refuse_reruns,
)


def add_actions(actions: Actions) -> None:
    """Declares `plan`."""
    summary = "runs of each selection method, time and disk; nothing is done"
    action = actions.add_parser("plan", help=summary, description=f"{summary.capitalize()}.")
    action.add_argument(
        "config", nargs="?", metavar="CONFIG", help="a YAML file, or the folder of a sweep"
    )
    action.add_argument(
        "--measure",
        action="store_true",
        help="do a few updates of each algorithm on each dataset, rather than go by finished runs",
    )
    add_field_flags(action)
    action.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Prints the plan; returns the exit status.

    Raises:
        UserError: the config or a flag is wrong, or what is to be measured cannot be.
    """
    refuse_reruns(args.config)
    from domainbed.sweeps.launch import prepare
    from domainbed.sweeps.outlook import measured_costs, outlook, plan_lines

    launch = prepare(load(args.config, given_fields(args), launcher_flags(args)))
    print("\n".join(outlook(launch)), flush=True)
    costs = None
    if args.measure and launch.todo:
        costs = measured_costs(launch, lambda line: print(line, file=sys.stderr))
    print("\n".join(plan_lines(launch, costs)))
    return 0
