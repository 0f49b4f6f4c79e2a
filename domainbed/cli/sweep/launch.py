"""`domainbed sweep launch` and `retry`: do the runs of a sweep."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from typing import TYPE_CHECKING

from domainbed.cli.common import add_flag
from domainbed.cli.launcher_flags import launcher_flags
from domainbed.cli.sweep.common import (
    Actions,
    add_field_flags,
    add_skip_flag,
    confirmed,
    given_fields,
    load,
    refuse_reruns,
)
from domainbed.core.stopping import SIGNALS, interrupting_on, signal_of
from domainbed.runs.states import DONE, FAILED
from domainbed.sweeps.config import SweepConfig
from domainbed.sweeps.status import count_runs

if TYPE_CHECKING:
    from domainbed.launchers import Handle
    from domainbed.sweeps.launch import Launch


def add_actions(actions: Actions) -> None:
    """Declares `launch` and `retry`."""
    for name, summary in (("launch", "do what is not done"), ("retry", "do again what failed")):
        action = actions.add_parser(name, help=summary, description=f"{summary.capitalize()}.")
        action.add_argument(
            "config", nargs="?", metavar="CONFIG", help="a YAML file, or the folder of a sweep"
        )
        add_field_flags(action)
        add_flag(action, "--dry_run", action="store_true",
                 help="say what would be done, and how long where finished runs tell")  # fmt: skip
        action.add_argument("--wait", action="store_true",
                            help="stay until all is done, also by earlier launches")  # fmt: skip
        add_skip_flag(action)
        action.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Does what the command line says; returns the exit status.

    Raises:
        UserError: the config, a flag or a folder is wrong.
    """
    refuse_reruns(args.config)
    config = load(args.config, given_fields(args), launcher_flags(args))
    return launch(
        config,
        retry=args.action == "retry",
        dry_run=args.dry_run,
        wait=args.wait,
        skip_confirmation=args.skip_confirmation,
    )


def launch(
    config: SweepConfig,
    *,
    retry: bool = False,
    dry_run: bool = False,
    wait: bool = False,
    skip_confirmation: bool = False,
) -> int:
    """Launches a sweep and tells what came of it.

    Args:
        config: of the sweep.
        retry: do what failed, rather than what is not done.
        dry_run: only say what would be done.
        wait: for runs that an engine does without this process, and for those that earlier
            launches have queued or running.
        skip_confirmation: do not ask on a terminal.

    Returns:
        0 if no run of the sweep has failed, 1 if one has; after Ctrl-C or a signal 128 and its
        number.
    """
    from domainbed.sweeps.launch import prepare

    return do(prepare(config, retry), dry_run, wait, skip_confirmation)


def do(launch: Launch, dry_run: bool, wait: bool, skip_confirmation: bool) -> int:
    """Does what is prepared; the arguments and the result are those of `launch`."""
    from domainbed.sweeps.outlook import outlook, plan_lines

    print("\n".join(outlook(launch)), flush=True)
    if dry_run:
        print("\n".join(plan_lines(launch)))
        return 0
    todo = len(launch.todo)
    question = f"Launch {count_runs(todo)}, {launch.workers} at a time?" if todo else ""
    if question and sys.stdin.isatty() and not skip_confirmation and not confirmed(question):
        return 0
    if not launch.blocking and not wait:
        return _tell_submitted(launch, launch.submit())
    try:
        with interrupting_on(SIGNALS):
            unwritten = launch.execute(with_others=wait)
    except KeyboardInterrupt as interrupt:
        print(_interrupted_line(launch), file=sys.stderr)
        return 128 + signal_of(interrupt)  # as shells count
    exit_status = _tell_outcome(launch, unwritten)
    _on_finish(launch)
    return exit_status


def _tell_submitted(launch: Launch, handle: Handle) -> int:
    jobs, root = list(dict.fromkeys(handle.jobs)), launch.store.root
    if jobs:
        shown = " … ".join(dict.fromkeys([jobs[0], jobs[-1]]))
        print(f"submitted {count_runs(len(handle.jobs))} as {len(jobs)} jobs: {shown}")
    print(f"`domainbed sweep status {root}` tells how they are, `domainbed sweep cancel {root}` "
          "takes them back.")  # fmt: skip
    return 0


def _tell_outcome(launch: Launch, unwritten: dict[str, str]) -> int:
    from domainbed.sweeps.status import failure_lines

    status = launch.status()
    failures = [*status.failures]
    failures += [(i, launch.runs[i].describe(), error) for i, error in unwritten.items()]
    done, failed = status.total[DONE], len(failures)
    left = len(launch.runs) - done - failed
    if done == len(launch.runs):
        root = launch.store.root
        print(f"All runs are done ({done}): `domainbed collect {root}` shows the tables.")
        return 0
    print(f"{done} of {count_runs(len(launch.runs))} are done, {failed} failed.")
    if left:
        print(
            f"{count_runs(left)} more: in the hands of another launch, or not to be done by "
            "this one."
        )
    if failed:
        print("\n".join(["Failed:", *failure_lines(failures)]))
        print(f"`domainbed sweep retry {launch.store.root}` does them again.")
    return 1 if failed else 0


def _on_finish(launch: Launch) -> None:
    """Runs the command of the config, which changes nothing about the outcome."""
    command = launch.config.on_finish
    if not command:
        return
    total = launch.status().total
    told = {
        "DOMAINBED_SWEEP": str(launch.store.root.absolute()),
        "DOMAINBED_DONE": str(total[DONE]),
        "DOMAINBED_FAILED": str(total[FAILED]),
    }
    sys.stdout.flush()
    found = subprocess.run(command, shell=True, env={**os.environ, **told}, check=False)
    if found.returncode:
        print(f"warning: on_finish ended with status {found.returncode}", file=sys.stderr)


def _interrupted_line(launch: Launch) -> str:
    done = list(launch.store.states(launch.runs).values()).count(DONE)
    count, root = count_runs(len(launch.runs)), launch.store.root
    if not launch.blocking:
        return (
            f"\nno longer waiting: {done} of {count} are done, and the others go on. `domainbed "
            f"sweep cancel {root}` takes them back."
        )
    return (
        f"\nstopped: {done} of {count} are done. The same command, or `domainbed sweep launch "
        f"{root}`, goes on where this one stopped."
    )
