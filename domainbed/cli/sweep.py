"""`domainbed sweep`: launch a grid of runs, watch it, repair it.

`launch` does what is not done and goes on with what was begun; `retry` does what failed;
`status` counts; `delete_incomplete` removes the folders of runs that are neither done nor running.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from domainbed.cli.common import add_debug_flag, add_flag
from domainbed.errors import UserError
from domainbed.flags import add_flags, read_flags
from domainbed.launchers import WITH_FLAGS
from domainbed.states import DONE, FAILED, RUNNING
from domainbed.sweeps.config import SweepConfig, load_config

if TYPE_CHECKING:
    from domainbed.sweeps.launch import Launch

_FOLDER_OR_CONFIG = "the folder of a sweep, or its config"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares `domainbed sweep`'s actions and their arguments."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    for name, summary in (("launch", "do what is not done"), ("retry", "do again what failed")):
        action = actions.add_parser(name, help=summary, description=f"{summary.capitalize()}.")
        action.add_argument(
            "config", nargs="?", metavar="CONFIG", help="a YAML file, or the folder of a sweep"
        )
        _add_field_flags(action)
        add_flag(action, "--dry_run", action="store_true",
                 help="say what would be done, and how long")  # fmt: skip
        _add_skip_flag(action)
    status = actions.add_parser("status", help="count the runs by their state")
    status.add_argument("target", metavar="FOLDER_OR_CONFIG", help=_FOLDER_OR_CONFIG)
    status.add_argument("--json", action="store_true", help="for programs")
    delete = actions.add_parser(
        "delete_incomplete",
        aliases=["delete-incomplete"],
        help="remove the folders of runs that are neither done nor running",
    )
    delete.add_argument("target", metavar="FOLDER", help=_FOLDER_OR_CONFIG)
    _add_skip_flag(delete)
    for action in (status, delete):
        add_flags(action, SweepConfig, only=["plugins"])
    for action in dict.fromkeys(actions.choices.values()):  # one has two names
        # Where it is not given after the action, what was said before the action stands.
        add_debug_flag(action, default=argparse.SUPPRESS)


def main(args: argparse.Namespace) -> int:
    """Does the action; returns the exit status.

    Raises:
        UserError: the config, a flag or a folder is wrong.
    """
    if args.action in ("launch", "retry"):
        config = _load(args.config, _given(args), launcher_flags(args))
        return launch(config, args.action == "retry", args.dry_run, args.skip_confirmation)
    if args.action == "status":
        return show_status(args.target, args.json, _given(args))
    return delete_incomplete(_root_of(args.target, _given(args)), args.skip_confirmation)


def launch(config: SweepConfig, retry: bool, dry_run: bool, skip_confirmation: bool) -> int:
    """Launches a sweep and tells what came of it.

    Returns:
        0 if no run of the sweep has failed, 1 if one has, 130 after Ctrl-C.
    """
    from domainbed.sweeps.launch import prepare

    launch = prepare(config, retry)
    print("\n".join(_outlook(launch)), flush=True)
    if dry_run:
        print("\n".join(_dry_run_lines(launch)))
        return 0
    todo = len(launch.todo)
    question = f"Launch {_runs(todo)}, {launch.workers} at a time?" if todo else ""
    if question and sys.stdin.isatty() and not skip_confirmation and not _confirmed(question):
        return 0
    try:
        unwritten = launch.execute()
    except KeyboardInterrupt:
        print(_interrupted_line(launch), file=sys.stderr)
        return 130
    return _tell_outcome(launch, unwritten)


def show_status(target: str, as_json: bool, overrides: dict[str, Any] | None = None) -> int:
    """Prints how many runs of a sweep are in which state; returns the exit status.

    Raises:
        UserError: `target` is neither a sweep's folder nor a config.
    """
    from domainbed.sweeps.grid import plan
    from domainbed.sweeps.status import status_json, status_lines, status_of
    from domainbed.sweeps.store import Store

    if Path(target).is_dir():
        store = Store(target)
        runs = store.planned()
    else:
        config = _load(target, overrides or {})
        store = Store(config.output_dir)
        runs = {run.run_id: run.identity() for run in plan(config)}
    status = status_of(store, runs)
    print(status_json(status) if as_json else "\n".join(status_lines(status)))
    return 0


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
            f"{_runs(len(folders))} in {str(root)!r} would be deleted, and nobody is there to "
            "confirm it: give --skip_confirmation"
        )
    question = f"Delete the folders of {_runs(len(folders))}, with all that they hold?"
    if skip_confirmation or _confirmed(question):
        print(f"deleted {_runs(sum(remove(folder) for folder in folders))}")
    return 0


def _add_field_flags(parser: argparse.ArgumentParser) -> None:
    """One flag for each field of a config, and for each option of the launchers."""
    fields = parser.add_argument_group("fields of the config", "each wins over the file's value")
    add_flags(fields, SweepConfig)
    for launcher in WITH_FLAGS:
        add_flags(fields, launcher)


def _add_skip_flag(parser: argparse.ArgumentParser) -> None:
    add_flag(parser, "--skip_confirmation", action="store_true", help="do not ask")


def _given(args: argparse.Namespace) -> dict[str, Any]:
    """The fields of a config that flags gave."""
    return read_flags(args, SweepConfig)


def launcher_flags(args: argparse.Namespace) -> dict[str, Any]:
    """The options of a launcher that flags gave."""
    given = [read_flags(args, launcher) for launcher in WITH_FLAGS]
    return {name: value for options in given for name, value in options.items()}


def _load(
    target: str | None, overrides: dict[str, Any], options: dict[str, Any] | None = None
) -> SweepConfig:
    """The config in a file, or of the last launch into a folder."""
    from domainbed.sweeps.store import Store

    if target is None or not (Path(target).is_dir() or _is_kept(Path(target))):
        return load_config(target, overrides, **(options or {}))
    store = Store(target if Path(target).is_dir() else Path(target).parent)
    for file in (store.config, store.plan):
        if not file.is_file():
            raise UserError(
                f"{target!r} holds no {file.name}: name the folder of a launched sweep, or a config"
            )
    # The folder may have been moved since it was launched.
    overrides = {"output_dir": str(store.root), **overrides}
    return load_config(store.config, overrides, **(options or {}))


def _is_kept(file: Path) -> bool:
    """Whether a config is the one that a launch left in a sweep's folder."""
    from domainbed.sweeps.store import Store

    store = Store(file.parent)
    return file.name == store.config.name and store.plan.is_file()


def _root_of(target: str, overrides: dict[str, Any]) -> Path:
    """A sweep's folder, given as such or by a config."""
    return Path(target if not Path(target).is_file() else _load(target, overrides).output_dir)


def _outlook(launch: Launch) -> list[str]:
    """What there is and what is to be done, in a line or two."""
    states = list(launch.states.values())
    failed = states.count(FAILED)
    lines = [
        f"{launch.store.root}: {_runs(len(states))}, {states.count(DONE)} done, {failed} failed, "
        f"{states.count(RUNNING)} running; {len(launch.todo)} to do"
    ]
    seeds = len(launch.config.trials) * len(launch.config.hparams_seeds)
    for why, count in Counter(entry.why for entry in launch.left_out).items():
        lines.append(f"{_runs(seeds * count)} left out: {why}")
    if failed and not launch.retried:
        lines.append(
            f"{_runs(failed)} failed before and stay as they are: "
            f"`domainbed sweep retry {launch.store.root}` does them again"
        )
    return lines


def _dry_run_lines(launch: Launch) -> list[str]:
    from domainbed.sweeps.status import status_lines
    from domainbed.training.progress import duration

    lines = status_lines(launch.status())
    lines += [f"warning: {line}" for line in launch.obstacles()]
    if not launch.todo:
        return [*lines, "Nothing to do."]
    run, guess, workers = launch.todo[0], launch.estimate(), max(1, launch.workers)
    if guess is None:
        time = (
            "no run is finished, so there is nothing to estimate it from. To measure it: "
            f"`domainbed train --dataset {shlex.quote(run.dataset)} --algorithm {run.algorithm} "
            "--steps 20 --output_dir timing`."
        )
    else:
        time = (
            f"about {duration(guess.seconds / workers)}, {workers} at a time "
            f"(from {_runs(guess.basis)} that finished)."
        )
    return [*lines, f"Time: {time}"]


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
    print(f"{done} of {_runs(len(launch.runs))} are done, {failed} failed.")
    if left:
        print(f"{_runs(left)} more: in the hands of another launch, or not to be done by this one.")
    if failed:
        print("\n".join(["Failed:", *failure_lines(failures)]))
        print(f"`domainbed sweep retry {launch.store.root}` does them again.")
    return 1 if failed else 0


def _interrupted_line(launch: Launch) -> str:
    done = list(launch.store.states(launch.runs).values()).count(DONE)
    return (
        f"\nstopped: {done} of {_runs(len(launch.runs))} are done. The same command, or "
        f"`domainbed sweep launch {launch.store.root}`, goes on where this one stopped."
    )


def _confirmed(question: str) -> bool:
    return input(f"{question} [y/N] ").strip().lower() in ("y", "yes")


def _runs(count: int) -> str:
    return f"{count} run" if count == 1 else f"{count} runs"
