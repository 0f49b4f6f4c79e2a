"""The `domainbed` command. Only the module of the command that was given is imported."""

import argparse
import importlib
import platform
import sys
from collections.abc import Sequence
from importlib.metadata import version
from typing import NoReturn

from domainbed.cli.common import Declare, Parser, execute, guarded, run_and_exit, tell
from domainbed.core.version import __version__
from domainbed.errors import did_you_mean

_GROUPS = {
    "data": {
        "data download": ("data", "get published datasets, or use a copy that you have"),
        "data verify": ("data", "compare datasets on disk with what was published"),
        "data pack": ("data", "pack the images of a dataset, for runs that read them fast"),
        "data features": ("data", "compute the features of a dataset's images once"),
    },
    "training": {
        "quickstart": ("quickstart", "run seven algorithms on embedded digits: tables, a report"),
        "init": ("listing", "write a config, a plug-in and a manifest to start from"),
        "train": ("train", "train one algorithm on one dataset"),
        "sweep plan": ("sweep", "show a sweep's runs, and the time and disk space they need"),
        "sweep launch": ("sweep", "execute the runs of a sweep that are not done"),
        "sweep status": ("sweep", "count the runs of a sweep by their state"),
        "sweep cancel": ("sweep", "stop queued and running runs"),
        "sweep retry": ("sweep", "repeat failed runs"),
        "sweep rerun-best": ("sweep", "repeat what selection methods chose, in new trials"),
        "sweep delete-incomplete": ("sweep", "remove runs that are neither done nor running"),
        "sweep pack": ("sweep", "move the texts of finished runs into a few files"),
        "sweep unpack": ("sweep", "move packed runs back into their folders"),
        "sweep export": ("sweep", "write all records of a sweep into one file, to share"),
        "sweep import": ("sweep", "unpack such a file into a folder, to continue the sweep"),
    },
    "results": {
        "collect": ("tables", "select models and print the results tables of sweeps"),
        "compare": ("tables", "compare algorithms, or a sweep's tables with a paper's"),
        "report": ("report", "write tables, comparisons and figures as one HTML file"),
        "plot": ("report", "draw a figure of the report into a file"),
        "errors": ("tables", "list the images that algorithms get wrong"),
        "top-hparams": ("tables", "list the best hyper-parameters of a sweep"),
        "published": ("tables", "print the numbers published in papers"),
        "baselines": ("baselines", "list or show released sweeps to compare with"),
        "leaderboard": ("baselines", "rank the methods of exported sweeps, as static pages"),
        "submit check": ("baselines", "check an exported sweep, and repeat some of its runs"),
        "reproduce": ("papers", "run a paper's sweep and compare its tables with the paper's"),
    },
    "trained models": {
        "model predict": ("model", "predict the classes of images with a trained run"),
        "model diagnose": ("model", "measure how consistent the domains of a trained run are"),
        "model average": ("model", "average the weights, or the predictions, of runs"),
        "model adapt": ("model", "adapt runs to their test images, without labels"),
        "model zero-shot": ("model", "classify images by class names alone, without training"),
    },
    "more": {
        "list algorithms": ("listing", "names and papers"),
        "list datasets": ("listing", "names, domains, classes, images, licences"),
        "list protocols": ("listing", "named protocols, and how they differ from the default"),
        "list plugin": ("listing", "which classes of a fork run here, and why others do not"),
        "list hparams": ("listing", "defaults and ranges of an algorithm's hyper-parameters"),
        "config": ("listing", "print the fields of a sweep's config, as a schema or a table"),
        "completion": ("completion", "print a completion script for bash, zsh or fish"),
        "irm-colored-mnist": ("papers", "Colored MNIST in the setup of IRM"),
    },
}
"""By heading and by the words of a command: the module, whose function is named after the last
word, and a summary."""

_ABOUT = ("Domain generalization: reproduce tables, launch sweeps, compare algorithms.", "")

COMMANDS = {name: command for group in _GROUPS.values() for name, command in group.items()}

_RENAMED = {
    **{name: f"data {name}" for name in ("download", "verify", "features")},
    "prepare": "data pack",
    **{f"{name}": f"model {name}" for name in ("predict", "diagnose", "average", "adapt")},
    "zero-shot": "model zero-shot",
    "sweep rerun_best": "sweep rerun-best",
    "sweep delete_incomplete": "sweep delete-incomplete",
}
"""The names of version 0.1, which still work in version 0.2."""


def main(argv: list[str] | None = None) -> None:
    """Runs a command and exits with its status.

    Args:
        argv: its words; None for those of the command line, after which this process ends.
    """
    if argv is None:
        run_and_exit(lambda: run(sys.argv[1:]), sys.argv[1:])
    sys.exit(guarded(lambda: run(argv), "--debug" in argv))


def run(words: Sequence[str]) -> int:
    """Runs a command; returns its exit status.

    Raises:
        UserError: the command cannot do what is asked.
        SystemExit: after the help, or for wrong words.
    """
    words = [word for word in words if word != "--debug"]
    for length in (2, 1):
        said = " ".join(words[:length])
        name = _RENAMED.get(said, said)
        if name in COMMANDS:
            if name != said:
                tell(f"`domainbed {said}` is now called `domainbed {name}`")
            return execute(declaration(name), words[length:], f"domainbed {name}")
    _help(words)


def declaration(name: str) -> Declare:
    """What declares the arguments of a command; its module is imported now."""
    module = importlib.import_module(f"domainbed.cli.{COMMANDS[name][0]}")
    word = name.split()[-1].replace("-", "_")
    return getattr(module, word, None) or getattr(module, f"{word}_")  # of a keyword of Python


def _help(words: Sequence[str]) -> NoReturn:
    """Exits with the help, the version, or what is wrong with words that name no command."""
    first = words[0] if words else ""
    of_group = [name for name in COMMANDS if name.startswith(f"{first} ")]
    known, rest = (of_group, words[1:]) if of_group else (list(COMMANDS), words)
    width = max(map(len, COMMANDS))
    listed: list[str] = []
    for heading, group in _GROUPS.items():
        rows = [f"  {name:{width}}  {text}" for name, (_, text) in group.items() if name in known]
        listed += [f"{heading}:", *rows, ""] if rows else []
    parser = Parser(
        prog=f"domainbed {first}" if of_group else "domainbed",
        usage="domainbed [-h] [--version] COMMAND …",
        description="\n".join([*_ABOUT, *listed, "`domainbed COMMAND --help` explains a command."]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=_versions())
    if not rest or rest[0].startswith("-"):
        parser.read(rest or ["--help"])
        parser.error("a COMMAND is missing")
    said, names = words[: 1 + bool(of_group)], dict.fromkeys(name.split()[0] for name in COMMANDS)
    hint = did_you_mean(" ".join(said), [*known, *names])
    parser.error(f"unknown command {' '.join(said)!r}.{hint} Known: {', '.join(of_group or names)}")


def _versions() -> str:
    python = platform.python_version()
    return f"domainbed {__version__} (PyTorch {version('torch')}, Python {python})"
