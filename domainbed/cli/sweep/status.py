"""`domainbed sweep status`: how far a sweep is, once or until it is over."""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from typing import TYPE_CHECKING, Any

from domainbed.cli.sweep.common import FOLDER_OR_CONFIG, Actions, given_fields, store_and_runs
from domainbed.config.flags import add_flags
from domainbed.errors import UserError
from domainbed.sweeps.config import SweepConfig

if TYPE_CHECKING:
    from domainbed.sweeps.status import Status

_ON_A_TERMINAL, _IN_A_LOG = 5.0, 60.0
_TO_TOP, _CLEAR_REST, _END_OF_LINE = "\x1b[H", "\x1b[J", "\x1b[K\n"


def add_actions(actions: Actions) -> None:
    """Declares `status`."""
    summary = "count the runs by their state"
    action = actions.add_parser("status", help=summary, description=f"{summary.capitalize()}.")
    action.add_argument("target", metavar="FOLDER_OR_CONFIG", help=FOLDER_OR_CONFIG)
    action.add_argument("--json", action="store_true", help="for programs")
    action.add_argument(
        "--watch", action="store_true", help="again and again, until no run is left to do"
    )
    action.add_argument(
        "--every", type=float, metavar="SECONDS",
        help="with --watch (default: 5 on a terminal; 60 elsewhere, with a line each time)",
    )  # fmt: skip
    add_flags(action, SweepConfig, only=["plugins"])
    action.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Does what the command line says; returns the exit status.

    Raises:
        UserError: the target is neither a sweep's folder nor a config, or a flag is wrong.
    """
    if args.watch and args.json:
        raise UserError("--watch is for people and --json for programs: give one of them")
    if args.every is not None and not (args.watch and args.every > 0):
        raise UserError(f"--every {args.every}: expected seconds above 0, with --watch")
    overrides = given_fields(args)
    if args.watch:
        return watch(args.target, args.every, overrides)
    return show_status(args.target, args.json, overrides)


def show_status(target: str, as_json: bool, overrides: dict[str, Any] | None = None) -> int:
    """Prints how many runs of a sweep are in which state; returns the exit status.

    Raises:
        UserError: `target` is neither a sweep's folder nor a config.
    """
    from domainbed.sweeps.status import status_json, status_lines, status_of

    status = status_of(*store_and_runs(target, overrides or {}))
    print(status_json(status) if as_json else "\n".join(status_lines(status)))
    return 0


def watch(target: str, every: float | None, overrides: dict[str, Any] | None = None) -> int:
    """Shows the status until no run is left to do; returns 1 if one has failed.

    Raises:
        UserError: `target` is neither a sweep's folder nor a config.
    """
    from domainbed.sweeps.status import status_of, summary_line

    on_terminal = sys.stdout.isatty()
    pause = every or (_ON_A_TERMINAL if on_terminal else _IN_A_LOG)
    store, runs = store_and_runs(target, overrides or {})
    status = None
    try:
        while True:
            status = status_of(store, runs, status)
            if on_terminal:
                print(_screen(status), end="", flush=True)
            else:
                print(time.strftime("%H:%M:%S"), summary_line(status), flush=True)
            if status.is_over:
                return int(bool(status.failures))
            time.sleep(pause)
    except KeyboardInterrupt:  # the usual end of watching
        return 0


def _screen(status: Status) -> str:
    """The status in the place of what the terminal shows, cut to its size."""
    from domainbed.sweeps.status import status_lines, summary_line

    width, height = shutil.get_terminal_size()
    lines = [f"{time.strftime('%H:%M:%S')} {summary_line(status)}", "", *status_lines(status)]
    if len(lines) >= height:
        lines = [*lines[: height - 2], "…"]
    return _TO_TOP + "".join(line[:width] + _END_OF_LINE for line in lines) + _CLEAR_REST
