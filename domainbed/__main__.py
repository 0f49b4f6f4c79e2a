"""The `domainbed` command, also as `python -m domainbed`."""

from __future__ import annotations

import atexit
import os
import sys

from domainbed import cli


def main() -> None:
    """Runs the command, and ends the process without taking PyTorch apart, which takes a second.

    Handlers that libraries have registered run before: the first to be registered is the last.
    """
    status: list[int] = []
    atexit.register(_leave, status)
    try:
        cli.main()
    except SystemExit as ended:
        if isinstance(ended.code, int):
            status.append(ended.code)
        raise


def _leave(status: list[int]) -> None:
    if not status:  # an error of the program, whose end is Python's usual one
        return
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except (OSError, ValueError):  # nobody reads, or the disk is full: Python tells
        return
    os._exit(status[0])


if __name__ == "__main__":
    main()
