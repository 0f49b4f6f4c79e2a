"""Launching a sweep: the flags of launchers, the question before, and the outcome."""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from domainbed.core.flags import add_flags, read_flags
from domainbed.core.settings import Settings
from domainbed.core.stopping import SIGNALS, interrupting_on, signal_of
from domainbed.errors import in_shell
from domainbed.launchers import WITH_FLAGS, Resources
from domainbed.runs.ownership import silence_seconds
from domainbed.runs.states import DONE, FAILED
from domainbed.sweeps.engines import as_reported
from domainbed.sweeps.status import (
    Status,
    count_runs,
    failure_lines,
    status_lines,
    status_of,
    summary_line,
)

if TYPE_CHECKING:
    from domainbed.launchers import Handle
    from domainbed.sweeps.config import SweepConfig
    from domainbed.sweeps.launch import Launch


_SHORTEST_PAUSE, _LONGEST_PAUSE = 2.0, 30.0
_TO_TOP, _CLEAR_REST, _END_OF_LINE = "\x1b[H", "\x1b[J", "\x1b[K\n"

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
    return {
        option: value
        for name, model in _LAUNCHER_OPTIONS.items()
        for option, value in read_flags(args, model, only=[name]).items()
    }


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
            have queued or running, have ended, or none of them can start any more.
        skip_confirmation: do not ask on a terminal.
        resubmit: withdraw what is queued, and submit it again.

    Returns:
        1 if a run of the sweep has failed, or with `wait` if one is not done; else 0; after Ctrl-C
        or a signal 128 and its number.
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
    if (
        todo
        and sys.stdin.isatty()
        and not skip_confirmation  # else nobody asks for the workers
        and not confirmed(f"Launch {count_runs(todo)}, {launch.workers} at a time?")
    ):
        return 0
    if not launch.launcher.blocking and not wait and (todo or launch.others):
        return _tell_submitted(launch, launch.submit())
    look = partial(status_of, launch.store, launch.planned)
    try:
        with interrupting_on(SIGNALS):
            unwritten = launch.execute()
            ask = partial(as_reported, launch.store, launch.config.launcher)
            status = watch(partial(look, ask=ask)) if wait else look()
    except KeyboardInterrupt as interrupt:
        print(_interrupted_line(launch), file=sys.stderr)
        return 128 + signal_of(interrupt)  # as shells count
    _tell_outcome(launch, status, unwritten)
    exit_status = int(bool(status.failures or unwritten or (wait and set(status.total) != {DONE})))
    if not launch.finished_by_engine:
        launch.finish()
    return exit_status


def _tell_submitted(launch: Launch, handle: Handle) -> int:
    jobs, root = list(dict.fromkeys(handle.jobs)), in_shell(launch.store.root)
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


def _tell_outcome(launch: Launch, status: Status, unwritten: dict[str, str]) -> None:
    failures = [*status.failures]
    failures += [(i, launch.runs[i].describe(), error) for i, error in unwritten.items()]
    done, failed = status.total[DONE], len(failures)
    left = len(launch.runs) - done - failed
    if done == len(launch.runs):
        root = in_shell(launch.store.root)
        print(f"All runs are done ({done}): `domainbed collect {root}` shows the tables.")
        return
    print(f"{done} of {count_runs(len(launch.runs))} are done, {failed} failed.")
    if left:
        print(f"{count_runs(left)} more: not started, or not by this launch.")
    if failed:
        print("\n".join(["Failed:", *failure_lines(failures)]))
        # Where a job ended before its runs began, their folders know of no failure.
        action = "launch" if any(status.runs[i].why for i, *_ in status.failures) else "retry"
        print(f"`domainbed sweep {action} {in_shell(launch.store.root)}` does them again.")


def watch(look: Callable[..., Status], every: float | None = None) -> Status:
    """Shows the status until all runs have ended, or none is running or will be started.

    Args:
        look: takes the status; given the one `before`.
        every: seconds between two looks; None for a tenth of the time so far, up to half a minute.

    Returns:
        the last one.
    """
    began = changed = time.monotonic()
    found = None
    while True:
        found = look(before=found)
        now = time.monotonic()
        changed = now if found.may_change else changed
        if sys.stdout.isatty():
            print(_screen(found), end="", flush=True)
        else:
            print(time.strftime("%H:%M:%S"), summary_line(found), flush=True)
        if set(found.total) <= {DONE, FAILED}:
            return found
        if now - changed >= silence_seconds():  # workers need some time to start
            rest = [] if sys.stdout.isatty() else status_lines(found)
            print("\n".join([*rest, "Nothing is running, and no engine will start a run."]))
            return found
        time.sleep(every or min(_LONGEST_PAUSE, max(_SHORTEST_PAUSE, (now - began) / 10)))


def _screen(status: Status) -> str:
    """The status in the place of what the terminal shows, cut to its size."""
    width, height = shutil.get_terminal_size()
    lines = [f"{time.strftime('%H:%M:%S')} {summary_line(status)}", "", *status_lines(status)]
    if len(lines) >= height:
        lines = [*lines[: height - 2], "…"]
    return _TO_TOP + "".join(line[:width] + _END_OF_LINE for line in lines) + _CLEAR_REST


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
