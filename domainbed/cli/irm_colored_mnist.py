"""Colored MNIST in the setup of IRM, table 2 of the Fishr paper.

Computes the restarts that are missing, several at a time, and prints the table of all. A restart
that was interrupted is begun again by the next call.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

from domainbed.cli.common import add_flag
from domainbed.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the config, and a flag for each of its fields."""
    parser.add_argument("config", nargs="?", metavar="CONFIG", help="a YAML file of the fields")
    add_flag(parser, "--format", choices=("text", "markdown", "csv", "json"), default="text",
             help="of the table (default: text)")  # fmt: skip
    fields = parser.add_argument_group("fields of the config", "each wins over the file's value")
    from domainbed.irm_colored_mnist.settings import FIELDS

    for name, field in FIELDS.items():
        options: dict[str, Any] = {"help": field.metadata["help"], "metavar": "VALUE"}
        if name == "algorithms":
            options |= {"nargs": "+", "metavar": "NAME"}
        add_flag(fields, f"--{name}", **options)


def main(args: argparse.Namespace) -> int:
    """Computes what is missing and prints the table.

    Returns:
        0, or 1 if a restart failed, or 130 after Ctrl-C.

    Raises:
        UserError: the config, a flag or the data is wrong.
    """
    from domainbed.irm_colored_mnist.settings import FIELDS, load_config

    given = {name: value for name in FIELDS if (value := getattr(args, name)) is not None}
    config = load_config(args.config, {name: _parsed(name, v) for name, v in given.items()})
    # What is wrong with the config should be told at once, not after PyTorch's import.
    from domainbed.irm_colored_mnist.restarts import compute, missing, planned, read_results
    from domainbed.irm_colored_mnist.tables import FORMATS

    try:
        errors = compute(config)
    except KeyboardInterrupt:
        total = len(planned(config))
        print(
            f"\nstopped: {total - len(missing(config))} of {total} restarts are done; the same "
            "command computes the others",
            file=sys.stderr,
        )
        return 130
    sys.stdout.write(FORMATS[args.format](read_results(config)))
    for error in errors:
        print(error, file=sys.stderr)
    return 1 if errors else 0


def _parsed(name: str, value: Any) -> Any:
    """What a flag's text stands for; names and paths stay as they are."""
    from domainbed.yaml_file import parse_value

    if name in ("algorithms", "output_dir", "data_dir", "device"):
        return value
    try:
        return parse_value(value)
    except Exception as error:
        raise UserError(f"--{name}: {value!r} is no valid YAML: check its quotes") from error
