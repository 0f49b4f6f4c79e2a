"""Launching a sweep: the flags of launchers, the question before, and the outcome."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any

from domainbed.core.flags import add_flags, read_flags
from domainbed.core.settings import Settings
from domainbed.core.stopping import SIGNALS, interrupting_on, signal_of
from domainbed.errors import in_shell
from domainbed.launchers import WITH_FLAGS, Resources
from domainbed.runs.states import DONE
from domainbed.sweeps.status import count_runs, failure_lines, status_of

if TYPE_CHECKING:
    from domainbed.launchers import Handle
    from domainbed.sweeps.config import SweepConfig
    from domainbed.sweeps.launch import Launch


_LAUNCHER_OPTIONS: dict[str, type[Settings]] = {
    **{name: Resources for kind in WITH_FLAGS for name in kind.resource_options},
    **{name: kind for kind in reversed(WITH_FLAGS) for name in kind.model_fields},
}
"""The options of the built-in launchers, a run's resources among them, and who declares each."""


def add_launcher_flags(parser: argparse.ArgumentParser) -> None:
    """Declares a flag for each option of the built-in launchers."""
    group = parser.add_argument_group("options of the launcher")
    for name, model in _LAUNCHER_OPTIONS.items():
        add_flags(group, model, only=[name])


def launcher_flags(args: argparse.Namespace) -> dict[str, Any]:
    """The options that flags gave."""
    given: dict[str, Any] = {}
    for name, model in _LAUNCHER_OPTIONS.items():
        given |= read_flags(args, model, only=[name])
    return given


def launch_sweep(
    config: SweepConfig,
    *,
    retry: bool = False,
    dry_run: bool = False,
    wait: bool = False,
    skip_confirmation: bool = False,
    resubmit: bool = False,
) -> int:
    """Launches a sweep and reports the outcome.

    Args:
        config: of the sweep.
        retry: do the failed runs, rather than those that are not done.
        dry_run: only say what would be done.
        wait: until runs that an engine does without this process, and those that earlier launches
            have queued or running, are done.
        skip_confirmation: do not ask on a terminal.
        resubmit: withdraw what is queued, and submit it again.

    Returns:
        0 if no run of the sweep has failed, 1 if one has; after Ctrl-C or a signal 128 and its
        number.
    """
    from domainbed.sweeps.launch import prepare

    return launch_prepared(
        prepare(config, retry, resubmit=resubmit), dry_run, wait, skip_confirmation
    )


def launch_prepared(launch: Launch, dry_run: bool, wait: bool, skip_confirmation: bool) -> int:
    """Launches a prepared sweep; the arguments and the result are those of `launch_sweep`."""
    from domainbed.sweeps.outlook import outlook, plan_lines

    print("\n".join(outlook(launch)), flush=True)
    if dry_run:
        print("\n".join(plan_lines(launch)))
        return 0
    todo = len(launch.todo)
    if todo and sys.stdin.isatty() and not skip_confirmation:  # else nobody asks for the workers
        question = f"Launch {count_runs(todo)}, {launch.workers} at a time?"
        if not confirmed(question):
            return 0
    if not launch.launcher.blocking and not wait:
        return _tell_submitted(launch, launch.submit())
    try:
        with interrupting_on(SIGNALS):
            unwritten = launch.execute(with_others=wait)
    except KeyboardInterrupt as interrupt:
        print(_interrupted_line(launch), file=sys.stderr)
        return 128 + signal_of(interrupt)  # as shells count
    exit_status = _tell_outcome(launch, unwritten)
    if not launch.finished_by_engine:
        launch.finish()
    return exit_status


def _tell_submitted(launch: Launch, handle: Handle) -> int:
    jobs, root = list(dict.fromkeys(handle.jobs)), in_shell(launch.store.root)
    if not jobs and not launch.others:
        return _tell_outcome(launch, {})
    if jobs:
        shown = " … ".join(dict.fromkeys([jobs[0], jobs[-1]]))
        print(f"submitted {count_runs(len(handle.jobs))} as {len(jobs)} jobs: {shown}")
    address = launch.config.launcher.get("address")
    root += f" --address {in_shell(address)}" if address else ""
    print(
        f"`domainbed sweep status {root}` shows their states, `domainbed sweep cancel {root}` "
        "cancels them."
    )
    return 0


def _tell_outcome(launch: Launch, unwritten: dict[str, str]) -> int:
    status = status_of(launch.store, launch.planned)
    failures = [*status.failures]
    failures += [(i, launch.runs[i].describe(), error) for i, error in unwritten.items()]
    done, failed = status.total[DONE], len(failures)
    left = len(launch.runs) - done - failed
    if done == len(launch.runs):
        root = in_shell(launch.store.root)
        print(f"All runs are done ({done}): `domainbed collect {root}` shows the tables.")
        return 0
    print(f"{done} of {count_runs(len(launch.runs))} are done, {failed} failed.")
    if left:
        print(f"{count_runs(left)} more: owned by another launch, or not selected by this one.")
    if failed:
        print("\n".join(["Failed:", *failure_lines(failures)]))
        print(f"`domainbed sweep retry {in_shell(launch.store.root)}` does them again.")
    return 1 if failed else 0


def _interrupted_line(launch: Launch) -> str:
    done = list(launch.store.states(launch.runs).values()).count(DONE)
    count, root = count_runs(len(launch.runs)), in_shell(launch.store.root)
    if not launch.launcher.blocking:
        return (
            f"\nno longer waiting: {done} of {count} are done, and the others continue. "
            f"`domainbed sweep cancel {root}` cancels them."
        )
    return (
        f"\nstopped: {done} of {count} are done. The same command, or `domainbed sweep launch "
        f"{root}`, resumes where this one stopped."
    )


def confirmed(question: str) -> bool:
    """Whether the user on the terminal says yes."""
    return input(f"{question} [y/N] ").strip().lower() in ("y", "yes")
