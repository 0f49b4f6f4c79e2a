"""`domainbed sweep plan`: what a launch would do, and what that takes."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from domainbed.cli.launcher_flags import launcher_flags
from domainbed.cli.sweep.common import (
    Actions,
    add_field_flags,
    given_fields,
    load,
    refuse_reruns,
)
from domainbed.cli.sweep.outlook import outlook, plan_lines
from domainbed.errors import UserError

if TYPE_CHECKING:
    from domainbed.sweeps.costs import Costs
    from domainbed.sweeps.launch import Launch


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

    launch = prepare(load(args.config, given_fields(args), launcher_flags(args)))
    print("\n".join(outlook(launch)), flush=True)
    costs = _measured(launch) if args.measure and launch.todo else None
    print("\n".join(plan_lines(launch, costs)))
    return 0


def _measured(launch: Launch) -> Costs:
    from domainbed.core.cores import usable_cores
    from domainbed.sweeps.costs import measured_costs

    if obstacles := launch.obstacles():
        raise UserError(obstacles[0])
    threads = max(1, usable_cores() // max(1, launch.workers))
    options = launch.config.run_options()
    return measured_costs(launch.todo, options, threads, lambda line: print(line, file=sys.stderr))
