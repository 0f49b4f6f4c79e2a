"""What all commands share: flags in both spellings, and errors as one line."""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from domainbed.core.suggest import did_you_mean
from domainbed.core.text_table import printable
from domainbed.errors import reason_of

AddArguments = Callable[[argparse.ArgumentParser], None]
Main = Callable[[argparse.Namespace], int]


class Parser(argparse.ArgumentParser):
    """Takes flags as they are written, and no beginnings of them: a new flag breaks no command.

    What is wrong is told in one line, without the usage, which may be longer than the screen.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"allow_abbrev": False, **options})

    def error(self, message: str) -> NoReturn:
        """Exits with status 2 after one line, as for any other wrong input."""
        hint = self._near(message.partition("unrecognized arguments: --")[2])
        see = f".{hint} See" if hint else ": see"
        self.exit(2, f"error: {printable(message)}{see} `{self.prog} --help`\n")

    def _near(self, unknown: str) -> str:
        flags = [flag for flag in self._option_string_actions if flag not in ("-h", "--help")]
        return did_you_mean(f"--{unknown.split()[0]}", flags) if unknown.split() else ""


def add_flag(parser: Any, name: str, **options: Any) -> None:
    """Adds `--some_name`, which may also be written `--some-name`."""
    names = dict.fromkeys([name, "--" + name.removeprefix("--").replace("_", "-")])
    parser.add_argument(*names, **options)


def run_script(add_arguments: AddArguments, main: Main, description: str) -> None:
    """The whole of a script: parses the command line, runs `main`, exits with its status."""

    def command() -> int:
        parser = Parser(description=description)
        add_arguments(parser)
        add_debug_flag(parser)
        return main(parser.parse_args())

    run_and_exit(command, sys.argv[1:])


def run_and_exit(command: Callable[[], int], words: Sequence[str]) -> NoReturn:
    """Runs the whole of a command, guarded, and ends this process with its status.

    Args:
        command: from reading `words` on.
        words: of the command line.
    """
    _replace_closed_streams()
    try:
        status = guarded(command, "--debug" in words)
    finally:
        _drop_what_cannot_be_written()
    sys.exit(status)


def _replace_closed_streams() -> None:
    """Python has None for a stream that was closed before it began: by `>&-`, or by a service."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            stream = open(os.devnull, mode, encoding="utf-8")  # noqa: SIM115  # until the end
            os.set_inheritable(stream.fileno(), True)
            setattr(sys, name, stream)


def _drop_what_cannot_be_written() -> None:
    """Python would try again at its end, and exit with a status of its own."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def add_debug_flag(parser: argparse.ArgumentParser, default: Any = False) -> None:
    add_flag(parser, "--debug", action="store_true", default=default,
             help="show tracebacks of all errors")  # fmt: skip


def add_data_dir_flag(parser: argparse.ArgumentParser) -> None:
    add_flag(parser, "--data_dir", default="data", help="holds the datasets (default: data)")


def add_plugins_flag(parser: argparse.ArgumentParser) -> None:
    add_flag(parser, "--plugins", nargs="+", default=[], metavar="MODULE", help="modules or .py "
             "files to import first, which register more names")  # fmt: skip


def guarded(command: Callable[[], int], debug: bool = False) -> int:
    """Runs a command: bad input, or too small a machine, becomes one line and status 2.

    So does output that cannot be written. An interrupt becomes status 130; a programming error
    keeps its traceback. What `argparse` exits for is exited for.
    """
    if logging.lastResort is not None:  # what shows warnings where nobody set up logging
        logging.lastResort.setFormatter(_Printable())
    warnings.formatwarning = _one_line  # Python's own shows lines of code
    try:
        return _with_all_output(command)
    except BrokenPipeError:  # the reader, `head` say, has seen enough
        return 0
    except Exception as error:
        if not (reason := reason_of(error)):
            raise
        if debug:
            traceback.print_exc()
        _tell(f"error: {printable(reason)}")
        return 2
    except KeyboardInterrupt:
        _tell("interrupted")
        return 130


def _with_all_output(command: Callable[[], int]) -> int:
    """Its status, after all that it printed was written."""
    try:
        status = command()
    except SystemExit:  # `argparse` has printed the help, or what is wrong
        sys.stdout.flush()
        raise
    sys.stdout.flush()
    return status


def _tell(line: str) -> None:
    with contextlib.suppress(OSError):  # nobody reads
        print(line, file=sys.stderr)


def _one_line(message: Warning | str, *_: Any, **__: Any) -> str:
    return f"warning: {printable(message)}\n"


class _Printable(logging.Formatter):
    def formatMessage(self, record: logging.LogRecord) -> str:
        return printable(super().formatMessage(record))
