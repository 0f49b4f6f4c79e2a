"""What all commands share: flags in both spellings, and errors as one line."""

from __future__ import annotations

import argparse
import errno
import logging
import sys
import traceback
from collections.abc import Callable
from typing import Any

from domainbed.errors import UserError
from domainbed.text_table import printable

AddArguments = Callable[[argparse.ArgumentParser], None]
Main = Callable[[argparse.Namespace], int]

_OF_THE_MACHINE = (
    *(errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO),
    *(errno.EACCES, errno.EPERM, errno.ENAMETOOLONG, errno.ENOTDIR, errno.EMFILE),
)
_OUT_OF_MEMORY = (  # as PyTorch says it, of which only the GPU's has a class of its own
    "out of memory", "allocate memory", "Storage size calculation overflowed",
    "Invalid buffer size", "numel: integer multiplication overflow",
    "Overflow when unpacking long",
)  # fmt: skip
_DISK_FULL = "file write failed"  # PyTorch's word


class Parser(argparse.ArgumentParser):
    """Takes flags as they are written, and no beginnings of them: a new flag breaks no command."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"allow_abbrev": False, **options})


def add_flag(parser: Any, name: str, **options: Any) -> None:
    """Adds `--some_name`, which may also be written `--some-name`."""
    names = dict.fromkeys([name, "--" + name.removeprefix("--").replace("_", "-")])
    parser.add_argument(*names, **options)


def run_script(add_arguments: AddArguments, main: Main, description: str) -> None:
    """The whole of a script: parses the command line, runs `main`, exits with its status."""
    parser = Parser(description=description)
    add_arguments(parser)
    add_debug_flag(parser)
    arguments = parser.parse_args()
    sys.exit(guarded(main, arguments))


def add_debug_flag(parser: argparse.ArgumentParser) -> None:
    add_flag(parser, "--debug", action="store_true", help="show tracebacks of all errors")


def guarded(main: Main, arguments: argparse.Namespace) -> int:
    """Runs `main`: bad input, or too small a machine, becomes one line and status 2.

    An interrupt becomes status 130; a programming error keeps its traceback.
    """
    if logging.lastResort is not None:  # what shows warnings where nobody set up logging
        logging.lastResort.setFormatter(_Printable())
    try:
        return main(arguments)
    except BrokenPipeError:  # the reader, `head` say, has seen enough
        sys.stderr.close()
        return 0
    except Exception as error:
        if not (reason := _reason(error)):
            raise
        if arguments.debug:
            traceback.print_exc()
        print(f"error: {printable(reason)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


class _Printable(logging.Formatter):
    def formatMessage(self, record: logging.LogRecord) -> str:
        return printable(super().formatMessage(record))


def _reason(error: Exception) -> str:
    """What to tell the user of an error that is no fault of the program's; "" of others."""
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, OSError):
        place = f"{error.filename}: " if error.filename else ""
        return f"{place}{error.strerror}" if error.errno in _OF_THE_MACHINE else ""
    first = (str(error).strip().splitlines() or [""])[0]
    if isinstance(error, RecursionError):
        return f"something is nested too deeply ({first}): --debug shows where"
    if isinstance(error, MemoryError) or any(part in str(error) for part in _OUT_OF_MEMORY):
        return (
            f"there is not enough memory ({first}): choose a smaller batch_size, or fewer workers"
        )
    return f"a file cannot be written ({first}): is the disk full?" if _DISK_FULL in first else ""
