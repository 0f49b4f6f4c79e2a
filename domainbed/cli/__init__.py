"""The `domainbed` command. Commands import what they need when they run, not to show help."""

from __future__ import annotations

import argparse
import sys

import domainbed
from domainbed.cli import (
    collect,
    diagnose,
    download,
    irm_colored_mnist,
    list_names,
    prepare,
    sweep,
    top_hparams,
    train,
    verify,
)
from domainbed.cli.common import add_debug_flag, guarded

_COMMANDS = {
    "download": (download, "get published datasets, or put a copy of one in its place"),
    "verify": (verify, "compare datasets on disk with what was published"),
    "prepare": (prepare, "pack the images of a dataset, for runs that read them fast"),
    "train": (train, "train one algorithm on one dataset"),
    "sweep": (sweep, "launch, watch and repair a grid of runs"),
    "collect": (collect, "select models and print the results tables of a sweep"),
    "top-hparams": (top_hparams, "list the best hyper-parameters of a sweep"),
    "diagnose": (diagnose, "how consistent the domains of a trained run are"),
    "irm-colored-mnist": (irm_colored_mnist, "Colored MNIST in the setup of IRM, with restarts"),
    "list": (list_names, "list algorithms, datasets, or an algorithm's hyper-parameters"),
}


def main(argv: list[str] | None = None) -> None:
    """The console script: parses `argv` (default: the command line), runs, exits."""
    parser = argparse.ArgumentParser(
        prog="domainbed",
        description="Domain generalization: reproduce tables, launch sweeps, compare algorithms.",
        epilog="`domainbed COMMAND --help` explains a command.",
    )
    parser.add_argument("--version", action="version", version=domainbed.__version__)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, (module, summary) in _COMMANDS.items():
        command = commands.add_parser(name, help=summary, description=module.__doc__)
        module.add_arguments(command)
        add_debug_flag(command)
        command.set_defaults(main=module.main)
    arguments = parser.parse_args(argv)
    sys.exit(guarded(arguments.main, arguments))
