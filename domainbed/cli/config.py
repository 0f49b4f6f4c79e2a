"""What the config of a sweep may say.

`schema` prints its JSON schema, by which editors complete and check YAML files; `table` prints
the fields as a Markdown table.
"""

from __future__ import annotations

import argparse
import json


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares what is to be printed."""
    parser.add_argument("what", choices=("schema", "table"), help="the form of it")


def main(args: argparse.Namespace) -> int:
    """Prints the schema or the table; returns the exit status."""
    from domainbed.config.flags import docs_table, json_schema
    from domainbed.sweeps.config import SweepConfig

    if args.what == "table":
        print(docs_table(SweepConfig), end="")
    else:
        print(json.dumps(json_schema(SweepConfig), indent=2, ensure_ascii=False))
    return 0
