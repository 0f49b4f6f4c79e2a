"""`domainbed irm-colored-mnist`: table 2 of the Fishr paper."""

from __future__ import annotations

import argparse
import sys

from domainbed.cli.common import Parser, Run
from domainbed.core.flags import add_flags, read_flags
from domainbed.core.settings import load
from domainbed.experiments.irm_colored_mnist.settings import Config


def irm_colored_mnist(parser: Parser) -> Run:
    """Colored MNIST in the setup of IRM, table 2 of the Fishr paper.

    Computes the restarts that are missing, several at a time, and prints the table of all. The
    next call starts an interrupted restart again.
    """
    parser.add_argument("config", nargs="?", metavar="CONFIG", help="a YAML file of the fields")
    parser.add_argument(
        "--format",
        choices=("text", "markdown", "csv", "json"),
        default="text",
        help="of the table (default: text)",
    )
    add_flags(
        parser.add_argument_group("fields of the config", "each wins over the file's value"),
        Config,
    )
    return _compute


def _compute(args: argparse.Namespace) -> int:
    """Computes what is missing and prints the table.

    Returns:
        0, or 1 if a restart failed, or 130 after Ctrl-C.
    """
    config = load(Config, args.config, read_flags(args, Config))
    # What is wrong with the config should be told at once, not after PyTorch's import.
    from domainbed.experiments.irm_colored_mnist import results

    try:
        errors = results.compute(config)
    except KeyboardInterrupt:
        total = len(results.planned(config))
        done = total - len(results.missing(config))
        print(
            f"\nstopped: {done} of {total} restarts are done; the same command computes the others",
            file=sys.stderr,
        )
        return 130
    sys.stdout.write(results.FORMATS[args.format](results.read_results(config)))
    print("".join(f"{error}\n" for error in errors), end="", file=sys.stderr)
    return 1 if errors else 0
