"""List algorithms, datasets, protocols, or the hyper-parameters of an algorithm on a dataset."""

from __future__ import annotations

import argparse
from typing import Any

from domainbed.cli.common import add_plugins_flag


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares what can be listed."""
    kinds = parser.add_subparsers(dest="kind", metavar="WHAT", required=True)
    kinds.add_parser("algorithms", help="names and papers")
    kinds.add_parser("datasets", help="names, domains, classes, images, licences")
    kinds.add_parser("protocols", help="named protocols, and how they differ from the default")
    hparams = kinds.add_parser("hparams", help="names, defaults and ranges of random draws")
    hparams.add_argument("algorithm", metavar="ALGORITHM")
    hparams.add_argument("dataset", metavar="DATASET")
    hparams.add_argument("--features", action="store_true", help="on frozen features of images")
    for parser_of_kind in kinds.choices.values():
        add_plugins_flag(parser_of_kind)


def main(args: argparse.Namespace) -> int:
    """Prints the table that was asked for.

    Raises:
        UserError: an unknown algorithm or dataset.
    """
    from domainbed.core.plugins import import_plugins
    from domainbed.core.text_table import text_table

    import_plugins(args.plugins)
    if args.kind == "hparams":
        rows = _hparams(args.algorithm, args.dataset, args.features)
    else:
        rows = _LISTS[args.kind]()
    print("\n".join(text_table(rows)))
    return 0


def _algorithms() -> list[list[str]]:
    from domainbed.algorithms import ALGORITHMS

    rows = [[name, _readings(name), ALGORITHMS[name].paper] for name in ALGORITHMS]
    add_on = ["Fishr+NAME", "", "Fishr's penalty added to another"]
    return [["algorithm", "fidelity", "paper"], *rows, add_on]


def _readings(algorithm: str) -> str:
    """The values of its option `fidelity`, the default first; empty where there is one reading."""
    from domainbed.algorithms import ALGORITHMS, declared_options

    option = declared_options(ALGORITHMS[algorithm]).get("fidelity")
    if option is None:
        return ""
    return ", ".join(sorted(option.values, key=lambda value: value != option.default))


def _datasets() -> list[list[str]]:
    from domainbed.datasets import DATASETS

    header = ["dataset", "domains", "tested on", "classes", "images", "steps"]
    header += ["folder", "licence", "citation"]
    return [header, *[_dataset_row(name, DATASETS[name]) for name in DATASETS]]


def _dataset_row(name: str, dataset: Any) -> list[str]:
    domains, steps, info = ", ".join(dataset.ENVIRONMENTS), str(dataset.N_STEPS), dataset.info
    chosen = dataset.test_domains
    tested = "each" if chosen is None else ", ".join(dataset.ENVIRONMENTS[i] for i in chosen)
    if info is None:
        return [name, domains, tested, "?", "?", steps, "", "", ""]
    images = f"{sum(info.images):,}" if info.images else "not stated"
    facts = [info.folder or "(none)", info.licence, info.citation]
    return [name, domains, tested, str(info.num_classes), images, steps, *facts]


def _protocols() -> list[list[str]]:
    from domainbed.config.protocols import (
        DEFAULT_PROTOCOL,
        differences,
        get_protocol,
        protocol_names,
    )

    rows = [["protocol", "version", "what it is", "different from the default"]]
    for name in protocol_names():
        protocol = get_protocol(name)
        changes = differences(get_protocol(DEFAULT_PROTOCOL), protocol)
        said = ", ".join(f"{what}: {_said(value)}" for what, _, value in changes)
        rows.append([name, str(protocol.version), protocol.title, said])
    return rows


def _said(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _hparams(algorithm: str, dataset: str, features: bool) -> list[list[str]]:
    from domainbed.core.names import dataset_label
    from domainbed.datasets import get_dataset_class
    from domainbed.hparams import options, search_space

    get_dataset_class(dataset)
    label = dataset_label(dataset)
    space: dict[str, Any] = search_space(algorithm, label, features)
    declared = options(algorithm, label, features)
    space |= {k: option for k, option in declared.items() if k not in space}
    rows = [[name, str(d.default), d.describe(), d.doc] for name, d in space.items()]
    return [["name", "default", "random draw", "meaning"], *rows]


_LISTS = {"algorithms": _algorithms, "datasets": _datasets, "protocols": _protocols}
