"""The `domainbed` command. Only the module of the command that was given is imported."""

from __future__ import annotations

import argparse
import importlib
import sys

from domainbed.cli.common import Parser, add_debug_flag, guarded, run_and_exit
from domainbed.core.suggest import did_you_mean
from domainbed.core.text_table import text_table
from domainbed.core.version import __version__

_COMMANDS = {
    "download": ("download", "get published datasets, or put a copy of one in its place"),
    "verify": ("verify", "compare datasets on disk with what was published"),
    "prepare": ("prepare", "pack the images of a dataset, for runs that read them fast"),
    "features": ("features", "compute the features of a dataset's images once, for fast runs"),
    "zero-shot": ("zero_shot", "classify images by the names of classes, with a model of text"),
    "train": ("train", "train one algorithm on one dataset"),
    "sweep": ("sweep", "launch, watch and repair a grid of runs"),
    "config": ("config", "what the config of a sweep may say, for editors and people"),
    "collect": ("collect", "select models and print the results tables of a sweep"),
    "average": ("average", "average the weights, or the predictions, of a sweep's runs"),
    "adapt": ("adapt", "adapt a sweep's runs to their test images with T3A, without training"),
    "compare": ("compare", "compare algorithms, or a sweep's tables with a paper's"),
    "errors": ("errors", "list the images that algorithms get wrong"),
    "report": ("report", "tables, comparisons and figures of sweeps as one HTML file"),
    "plot": ("plot", "a figure of the report as a file, for papers"),
    "reproduce": ("reproduce", "a paper's table: sweep, collect, and compare with what is printed"),
    "published": ("published", "the numbers that papers print"),
    "top-hparams": ("top_hparams", "list the best hyper-parameters of a sweep"),
    "predict": ("predict", "predict classes of images with a trained run"),
    "diagnose": ("diagnose", "how consistent the domains of a trained run are"),
    "irm-colored-mnist": ("irm_colored_mnist", "Colored MNIST in the setup of IRM, with restarts"),
    "list": ("list_names", "list algorithms, datasets, or an algorithm's hyper-parameters"),
}
_MORE = "`domainbed COMMAND --help` explains a command."


def main(argv: list[str] | None = None) -> None:
    """Runs a command and exits with its status.

    Args:
        argv: its words; None for those of the command line, after which this process ends.
    """
    if argv is None:
        run_and_exit(lambda: _run(sys.argv[1:]), sys.argv[1:])
    sys.exit(guarded(lambda: _run(argv), "--debug" in argv))


def _run(words: list[str]) -> int:
    name = _command(words)
    module = importlib.import_module(f"domainbed.cli.{_COMMANDS[name][0]}")
    parser = Parser(prog=f"domainbed {name}", description=module.__doc__)
    module.add_arguments(parser)
    add_debug_flag(parser)
    status: int = module.main(parser.parse_args(words[1:]))
    return status


def _command(words: list[str]) -> str:
    """The command; or an exit with the help, the version or what is wrong."""
    summaries = [(name, summary) for name, (_, summary) in _COMMANDS.items()]
    parser = Parser(
        prog="domainbed",
        usage="domainbed [-h] [--version] COMMAND …",
        description="Domain generalization: reproduce tables, launch sweeps, compare algorithms.",
        epilog="\n".join(["commands:", *text_table(summaries, indent="  "), "", _MORE]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=__version__)
    if not words or words[0].startswith("-"):
        parser.parse_args(words)
        parser.error("a COMMAND is missing")
    if words[0] not in _COMMANDS:
        hint = did_you_mean(words[0], _COMMANDS)
        parser.error(f"unknown command {words[0]!r}.{hint} Known: {', '.join(_COMMANDS)}")
    return words[0]
