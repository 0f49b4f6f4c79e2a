"""What commands share: the parser, arguments of several commands, and errors in one line.

A command is a function under `command`, which declares its arguments; its docstring is the
description that `--help` prints.
"""

import argparse
import contextlib
import functools
import inspect
import io
import logging
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Iterable, Sequence
from operator import methodcaller
from pathlib import Path
from typing import Any, NoReturn

from domainbed.core.plugins import import_plugins
from domainbed.core.text_table import over_progress, printable
from domainbed.errors import UnknownName, UserError, did_you_mean, reason_of

BASELINE = "ERM"
"""What algorithms are compared with, unless another is named."""

Run = Callable[[argparse.Namespace], int]
"""Runs a command with its arguments; returns the exit status."""


class Parser(argparse.ArgumentParser):
    """Accepts whole flags only, so that a new flag breaks no abbreviation in use.

    A flag `--some_name` may also be written `--some-name`. Errors take one line, without the usage.
    The usage does not list optional flags, since there may be more than fit a screen.
    """

    def __init__(self, **options: Any) -> None:
        defaults = {"allow_abbrev": False, "add_help": False, "formatter_class": _Help}
        super().__init__(**{**defaults, **options})

    def read(self, words: Iterable[str]) -> argparse.Namespace:
        """The arguments in `words`, with the flags of all commands, which the help lists last."""
        general = self.add_argument_group("of every command")
        general.add_argument("-h", "--help", action="help", help="show this help and exit")
        general.add_argument(
            "--debug", action="store_true", help="show the traceback of every error"
        )
        declared = {name.replace("-", "_"): name for name in self._option_string_actions}
        return self.parse_args([_as_declared(word, declared) for word in words])

    def error(self, message: str) -> NoReturn:
        """Exits with status 2 after one line, as for any other wrong input."""
        unknown = message.partition("unrecognized arguments: --")[2].split()
        hint = did_you_mean(f"--{unknown[0]}", self._option_string_actions) if unknown else ""
        see = f".{hint} See" if hint else ": see"
        self.exit(2, f"error: {printable(message)}{see} `{self.prog} --help`\n")


class _Help(argparse.HelpFormatter):
    def add_usage(self, usage: Any, actions: Iterable[argparse.Action], *rest: Any) -> None:
        named = [each for each in actions if each.required or not each.option_strings]
        options = argparse.Action([], "options", metavar="[options]")
        super().add_usage(usage, [options, *named], *rest)


def _as_declared(word: str, declared: dict[str, str]) -> str:
    if not word.startswith("--"):
        return word
    flag, equals, value = word.partition("=")
    name = flag.replace("-", "_")
    # README of DomainBed, and of what grew from it, abbreviate it.
    name = "__test_envs" if name == "__test_env" and name not in declared else name
    return declared.get(name, flag) + equals + value


Declare = Callable[[Parser], Run]

_SHARED: dict[str, dict[str, Any]] = {
    "folders": {
        "nargs": "+",
        "metavar": "FOLDER",
        "help": "sweeps, runs, exports, or baseline:NAME",
    },
    "--datasets": {"nargs": "+", "metavar": "NAME", "help": "only these datasets"},
    "--algorithms": {"nargs": "+", "metavar": "NAME", "help": "only these algorithms"},
    "--algorithm": {"metavar": "NAME", "help": "for a sweep: the algorithm, as in the tables"},
    "--test_env": {"type": int, "metavar": "N", "help": "for a sweep: the test domain"},
    "--selection": {
        "nargs": "+",
        "metavar": "NAME",
        "help": "selection methods, by short name (default: those that the sweep was planned for)",
    },
    "--metric": {"metavar": "NAME", "help": "metric to show (default: the one that selects)"},
    "--selection_metric": {
        "metavar": "NAME",
        "help": "metric that selects (default: the runs' own, or that of their labels)",
    },
    "--baseline": {
        "metavar": "NAME",
        "help": f"algorithm that the others are compared with (default: {BASELINE})",
    },
    "--format": {
        "metavar": "NAME",
        "default": "text",
        "help": "text (default), markdown, latex, csv, json",
    },
    "--document": {
        "action": "store_true",
        "help": "with --format latex: a whole document, not tables for \\input",
    },
    "--output": {"metavar": "FILE", "help": "write to this file instead of the terminal"},
    "--data_dir": {"default": "data", "help": "folder of the datasets (default: data)"},
    "--dataset": {
        "help": "where the run's own images are now: folder:PATH, a YAML file or a manifest"
    },
    "--device": {"help": "cpu, cuda, mps (default: the best available)"},
    "--image_size": {
        "type": int,
        "metavar": "N",
        "help": "like the hyper-parameter (default: 224; for features the backbone's)",
    },
    "--orientation": {
        "choices": ("ignore", "exif"),
        "help": "likewise; exif rotates images as their EXIF data says (default: ignore)",
    },
    "--window": {
        "nargs": 2,
        "type": float,
        "metavar": ("LOW", "HIGH"),
        "help": "likewise; the values of black and white in images of more than 8 bits",
    },
    "--corrupt_images": {
        "choices": ("error", "skip"),
        "default": "error",
        "help": "what to do about images that cannot be read (default: error)",
    },
    "--plugins": {
        "nargs": "+",
        "default": [],
        "metavar": "MODULE",
        "help": "modules, .py files or folders of forks to import first, which add names",
    },
    "--skip_confirmation": {
        "action": "store_true",
        "help": "do not ask (only a terminal is asked)",
    },
}
"""Arguments shared by several commands, as `argparse` takes them."""


JUDGES = ("--metric", "--selection_metric")
"""What says by which metrics runs are judged."""


Argument = str | Callable[[Any], object]
"""The name of an argument that several commands have, or what declares some to a parser."""


def argument(*names: str, **options: Any) -> Argument:
    """An argument of one command, as `argparse` takes it."""
    return methodcaller("add_argument", *names, **options)


def command(*arguments: Argument) -> Callable[[Run], Declare]:
    """Makes a function that runs a command one that declares its arguments and returns it."""

    def declared(run: Run) -> Declare:
        @functools.wraps(run)
        def declare(parser: Parser) -> Run:
            add_shared(parser, *arguments)
            return run

        return declare

    return declared


def add_shared(
    parser: argparse.ArgumentParser | argparse._ArgumentGroup, *arguments: Argument
) -> None:
    """Declares arguments. `execute` imports what `--plugins` names."""
    for each in arguments:
        if isinstance(each, str):
            parser.add_argument(each, **_SHARED[each])
        else:
            each(parser)


def execute(declare: Declare, words: Iterable[str], prog: str | None = None) -> int:
    """Parses the arguments of a command and runs it; returns the exit status.

    Args:
        declare: the command.
        words: its arguments.
        prog: its name; None for the script's.

    Raises:
        UserError: the command cannot do what is asked.
    """
    parser = Parser(prog=prog, description=inspect.getdoc(declare))
    do = declare(parser)
    words = list(words)
    for word in words:
        word.encode(
            sys.getfilesystemencoding()
        )  # fails where the locale's encoding lacks a character of it
    args = parser.read(words)
    given = getattr(args, "plugins", ())
    import_plugins(given)
    try:
        return do(args)
    except UnknownName as error:
        flags = [] if given else _flags_of_plugins(args)
        if not flags:
            raise
        end = "" if str(error).endswith("?") else "."
        raise UserError(f"{error}{end} Made with {' '.join(flags)}", *error.where) from error


def _flags_of_plugins(args: argparse.Namespace) -> list[str]:
    """Which flags would import the plug-ins of the results that a command reads."""
    from domainbed.runs.folder import plugin_flag

    folders = getattr(args, "folders", None)
    folders = folders or [getattr(args, "folder", getattr(args, "input_dir", ""))]
    return [flag for folder in dict.fromkeys(folders) if (flag := plugin_flag(Path(folder)))]


def run_script(declare: Declare) -> NoReturn:
    """The whole of a script: runs a command and exits with its status."""
    run_and_exit(lambda: execute(declare, sys.argv[1:]), sys.argv[1:])


def run_and_exit(command: Callable[[], int], words: Sequence[str]) -> NoReturn:
    """Runs a command, guarded, and ends this process with its status.

    Args:
        command: all of it, from parsing its arguments on.
        words: of the command line.
    """
    _prepare_streams()
    try:
        status = guarded(command, "--debug" in words)
    finally:
        _drop_what_cannot_be_written()
    sys.exit(status)


def _prepare_streams() -> None:
    """So that writing to stdout and stderr never fails for what they are.

    Python has None for a stream that was closed at its start: by `>&-`, or by a service. What an
    encoding other than UTF-8 lacks, such as ±, is written as `?` or as an escape sequence.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            stream = open(os.devnull, mode, encoding="utf-8")  # noqa: SIM115  # until the end
            os.set_inheritable(stream.fileno(), True)
            setattr(sys, name, stream)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors in ("strict", "surrogateescape"):
            stream.reconfigure(errors="backslashreplace")


def _drop_what_cannot_be_written() -> None:
    """Otherwise Python would try again when it ends, and exit with a status of its own."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def guarded(command: Callable[[], int], debug: bool = False) -> int:
    """Runs a command: bad input, or too small a machine, becomes one line and status 2.

    So does output that cannot be written. An interrupt becomes status 130; a programming error
    keeps its traceback. Exits of `argparse` pass through.
    """
    if logging.lastResort is not None:  # what shows warnings where nobody set up logging
        logging.lastResort.setFormatter(_Printable())
    warnings.formatwarning = _one_line  # Python's own shows lines of code
    try:
        try:
            return command()
        finally:  # also where `argparse` has printed the help, and exits
            sys.stdout.flush()
    except BrokenPipeError:  # the reader, `head` say, has seen enough
        return 0
    except Exception as error:
        if not (reason := reason_of(error)):
            raise
        if debug:
            traceback.print_exc()
        tell(f"error: {printable(reason)}")
        return 2
    except KeyboardInterrupt:
        tell("interrupted")
        return 130


def tell(line: str) -> None:
    """Writes a line to stderr."""
    with contextlib.suppress(OSError):  # nobody reads
        print(over_progress(line), file=sys.stderr)


def _one_line(message: Warning | str, *_: Any, **__: Any) -> str:
    return over_progress(f"warning: {printable(message)}\n")


class _Printable(logging.Formatter):
    def formatMessage(self, record: logging.LogRecord) -> str:
        return over_progress(printable(super().formatMessage(record)))
