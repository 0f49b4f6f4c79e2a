"""Commands that list names, hyper-parameters, and what a config may say."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from typing import Any

from domainbed.cli.common import Parser, Run, add_shared
from domainbed.core.text_table import text_table


def algorithms(parser: Parser) -> Run:
    """List algorithms: names, readings of the paper and of DomainBed's code, papers."""
    return _listing(parser, lambda args: _algorithms())


def datasets(parser: Parser) -> Run:
    """List datasets: names, domains, classes, images, licences."""
    return _listing(parser, lambda args: _datasets())


def protocols(parser: Parser) -> Run:
    """List named protocols, and how they differ from the default."""
    return _listing(parser, lambda args: _protocols())


def hparams(parser: Parser) -> Run:
    """List an algorithm's hyper-parameters on a dataset: defaults and ranges of random draws."""
    parser.add_argument("algorithm", metavar="ALGORITHM")
    parser.add_argument("dataset", metavar="DATASET")
    parser.add_argument("--features", action="store_true", help="on frozen features of images")
    return _listing(parser, lambda args: _hparams(args.algorithm, args.dataset, args.features))


def _listing(parser: Parser, rows: Callable[[argparse.Namespace], list[list[str]]]) -> Run:
    add_shared(parser, "plugins")

    def show(args: argparse.Namespace) -> int:
        print("\n".join(text_table(rows(args))))
        return 0

    return show


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


def config(parser: Parser) -> Run:
    """Print what the config of a sweep may say.

    `schema` is its JSON schema, by which editors complete and check YAML files; `table` is a
    Markdown table of the fields.
    """
    parser.add_argument("what", choices=("schema", "table"), help="the form of it")
    return _config


def _config(args: argparse.Namespace) -> int:
    from domainbed.config.flags import docs_table, json_schema
    from domainbed.sweeps.config import SweepConfig

    if args.what == "table":
        print(docs_table(SweepConfig), end="")
    else:
        print(json.dumps(json_schema(SweepConfig), indent=2, ensure_ascii=False))
    return 0
