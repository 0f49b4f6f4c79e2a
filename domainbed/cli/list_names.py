"""List the algorithms, the datasets, or the hyper-parameters of an algorithm on a dataset."""

from __future__ import annotations

import argparse
from typing import Any

from domainbed.cli.common import add_flag


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares `list algorithms`, `list datasets` and `list hparams ALGORITHM DATASET`."""
    kinds = parser.add_subparsers(dest="kind", metavar="WHAT", required=True)
    kinds.add_parser("algorithms", help="names and papers")
    kinds.add_parser("datasets", help="names, domains, classes, images, licences")
    hparams = kinds.add_parser("hparams", help="names, defaults and ranges of random draws")
    hparams.add_argument("algorithm", metavar="ALGORITHM")
    hparams.add_argument("dataset", metavar="DATASET")
    for parser_of_kind in kinds.choices.values():
        add_flag(parser_of_kind, "--plugins", nargs="+", default=[], metavar="MODULE",
                 help="modules or .py files to import first")  # fmt: skip


def main(args: argparse.Namespace) -> int:
    """Prints the table that was asked for.

    Raises:
        UserError: an unknown algorithm or dataset.
    """
    from domainbed.plugins import import_plugins

    import_plugins(args.plugins)
    if args.kind == "hparams":
        _print_table(_hparams(args.algorithm, args.dataset))
    else:
        _print_table({"algorithms": _algorithms, "datasets": _datasets}[args.kind]())
    return 0


def _algorithms() -> list[list[str]]:
    from domainbed.algorithms import ALGORITHMS

    rows = [[name, getattr(ALGORITHMS[name], "paper", "")] for name in ALGORITHMS]
    return [["algorithm", "paper"], *rows, ["Fishr+NAME", "Fishr's penalty added to another"]]


def _datasets() -> list[list[str]]:
    from domainbed.datasets import DATASETS

    header = ["dataset", "domains", "classes", "images", "steps", "folder", "licence", "citation"]
    return [header, *[_dataset_row(name, DATASETS[name]) for name in DATASETS]]


def _dataset_row(name: str, dataset: type) -> list[str]:
    domains, steps = ", ".join(dataset.ENVIRONMENTS), str(dataset.N_STEPS)  # type: ignore
    info = getattr(dataset, "info", None)
    if info is None:
        return [name, domains, "?", "?", steps, "", "", ""]
    images = f"{sum(info.images):,}"
    facts = [info.folder or "(none)", info.licence, info.citation]
    return [name, domains, str(info.num_classes), images, steps, *facts]


def _hparams(algorithm: str, dataset: str) -> list[list[str]]:
    from domainbed.datasets import get_dataset_class
    from domainbed.hparams import options, search_space
    from domainbed.names import dataset_label

    get_dataset_class(dataset)
    space: dict[str, Any] = search_space(algorithm, dataset_label(dataset))
    space |= {k: option for k, option in options(algorithm).items() if k not in space}
    rows = [[name, str(d.default), d.describe(), d.doc] for name, d in space.items()]
    return [["name", "default", "random draw", "meaning"], *rows]


def _print_table(rows: list[list[str]]) -> None:
    widths = [max(map(len, column)) for column in zip(*rows)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip())
