"""What all commands share: flags in both spellings, and errors as one line."""

from __future__ import annotations

import argparse
import logging
import sys
import traceback
import warnings
from collections.abc import Callable
from typing import Any, NoReturn

from domainbed.errors import reason_of
from domainbed.text_table import printable

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
        self.exit(2, f"error: {printable(message)}: see `{self.prog} --help`\n")


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


def add_debug_flag(parser: argparse.ArgumentParser, default: Any = False) -> None:
    add_flag(parser, "--debug", action="store_true", default=default,
             help="show tracebacks of all errors")  # fmt: skip


def add_data_dir_flag(parser: argparse.ArgumentParser) -> None:
    add_flag(parser, "--data_dir", default="data", help="holds the datasets (default: data)")


def add_plugins_flag(parser: argparse.ArgumentParser) -> None:
    add_flag(parser, "--plugins", nargs="+", default=[], metavar="MODULE", help="modules or .py "
             "files to import first, which register more names")  # fmt: skip


def guarded(main: Main, arguments: argparse.Namespace) -> int:
    """Runs `main`: bad input, or too small a machine, becomes one line and status 2.

    An interrupt becomes status 130; a programming error keeps its traceback.
    """
    if logging.lastResort is not None:  # what shows warnings where nobody set up logging
        logging.lastResort.setFormatter(_Printable())
    warnings.formatwarning = _one_line  # Python's own shows lines of code
    try:
        return main(arguments)
    except BrokenPipeError:  # the reader, `head` say, has seen enough
        sys.stderr.close()
        return 0
    except Exception as error:
        if not (reason := reason_of(error)):
            raise
        if arguments.debug:
            traceback.print_exc()
        print(f"error: {printable(reason)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def _one_line(message: Warning | str, *_: Any, **__: Any) -> str:
    return f"warning: {printable(message)}\n"


class _Printable(logging.Formatter):
    def formatMessage(self, record: logging.LogRecord) -> str:
        return printable(super().formatMessage(record))
