"""Commands that list names, say what a config may say, and write a first one."""

import argparse
import json
import shlex
import shutil
from pathlib import Path
from typing import Any

from domainbed.cli.common import argument, command
from domainbed.config.protocols import (
    DEFAULT_PROTOCOL,
    differences,
    get_protocol,
    protocol_names,
)
from domainbed.core.names import is_manifest
from domainbed.core.text_table import text_table
from domainbed.errors import UserError

Rows = list[list[str]]


@command("--plugins")
def algorithms(_: argparse.Namespace) -> int:
    """List algorithms by what they do: names, years, readings (of paper and code), papers."""
    from domainbed.algorithms import ADD_ONS, ALGORITHMS, KINDS, declared_options
    from domainbed.core.names import year_of

    kinds = {name: kind for kind, names in KINDS.items() for name in names}
    order = [*KINDS, "other"]
    rows = [["kind", "algorithm", "year", "fidelity", "paper"]]
    for name in sorted(ALGORITHMS, key=lambda name: order.index(kinds.get(name, "other"))):
        algorithm = ALGORITHMS[name]
        fidelity = declared_options(algorithm).get("fidelity")
        # The default is listed first.
        readings = dict.fromkeys([fidelity.default, *fidelity.values]) if fidelity else ()
        facts = year_of(algorithm.paper), ", ".join(readings), algorithm.paper
        rows.append([kinds.get(name, "other"), name, *facts])
    rows += [["", f"{add_on}+NAME", "", "", f"{add_on} added to another"] for add_on in ADD_ONS]
    return _show(rows)


@command("--plugins")
def datasets(_: argparse.Namespace) -> int:
    """List datasets: names, domains, classes, images, licences."""
    from domainbed.datasets import DATASETS

    header = ["dataset", "domains", "tested on", "classes", "images", "steps"]
    rows = [[*header, "folder", "licence", "citation"]]
    for name, dataset in DATASETS.items():
        names, chosen, info = dataset.ENVIRONMENTS, dataset.test_domains, dataset.info
        tested = "each" if chosen is None else ", ".join(names[i] for i in chosen)
        classes = images = "?"
        facts = ["", "", ""]
        if info is not None:
            classes = str(info.num_classes)
            images = f"{sum(info.images):,}" if info.images else "not stated"
            facts = [info.folder or "(none)", info.licence, info.citation]
        rows.append([name, ", ".join(names), tested, classes, images, str(dataset.N_STEPS), *facts])
    return _show(rows)


@command("--plugins")
def protocols(_: argparse.Namespace) -> int:
    """List named protocols, and how they differ from the default."""
    rows = [["protocol", "version", "what it is", "different from the default"]]
    for protocol in map(get_protocol, protocol_names()):
        changes = differences(get_protocol(DEFAULT_PROTOCOL), protocol)
        values = [(what, str(v).lower() if isinstance(v, bool) else v) for what, _, v in changes]
        said = ", ".join(f"{what}: {value}" for what, value in values)
        rows.append([protocol.name, str(protocol.version), protocol.title, said])
    return _show(rows)


@command(
    argument("algorithm", metavar="ALGORITHM"),
    argument("dataset", metavar="DATASET"),
    argument("--features", action="store_true", help="for frozen features of images"),
    "--plugins",
)
def hparams(args: argparse.Namespace) -> int:
    """List an algorithm's hyper-parameters on a dataset: defaults and ranges of random draws."""
    from domainbed.datasets import get_dataset_class
    from domainbed.hparams import options, search_space

    # The columns of tables and manifests may have any names.
    if not is_manifest(args.dataset) and not args.dataset.startswith("table:"):
        get_dataset_class(args.dataset)
    place = (args.algorithm, args.dataset, args.features)
    space: dict[str, Any] = search_space(*place)
    space |= {k: v for k, v in options(*place).items() if k not in space}
    rows = [[name, str(d.default), d.describe(), d.doc] for name, d in space.items()]
    return _show([["name", "default", "random draw", "meaning"], *rows])


@command(
    argument("path", metavar="PATH", help="a fork's folder, or one of its files"),
)
def plugin(args: argparse.Namespace) -> int:
    """List the classes of a fork: which run here, with what, and why others do not.

    Each algorithm is trained for two updates on small random images.
    """
    from domainbed.algorithms import ALGORITHMS
    from domainbed.core.plugins import import_plugins, named, plugins_of
    from domainbed.datasets import DATASETS
    from domainbed.training.trial import trial

    path = str(Path(args.path).absolute())
    import_plugins([path])
    (plugin,) = named([path])
    own = [n for n, algorithm in ALGORITHMS.items() if plugin in plugins_of([algorithm])]
    data = [name for name, dataset in DATASETS.items() if plugin in plugins_of([dataset])]
    width = max(map(len, (*own, *data)), default=0)
    for name in own:
        result, note = trial(name)
        print(f"{name:{width}}  {result}{': ' * bool(note)}{note}", flush=True)
    for name in data:
        print(f"{name:{width}}  is a dataset of {len(DATASETS[name].ENVIRONMENTS)} domains")
    return 0


def _show(rows: Rows) -> int:
    print("\n".join(text_table(rows)))
    return 0


@command(
    argument("what", choices=("schema", "table"), help="its form"),
)
def config(args: argparse.Namespace) -> int:
    """Print the fields of a sweep's config.

    `schema` is a JSON schema, with which editors complete and check YAML files; `table` is a
    Markdown table.
    """
    from domainbed.core.flags import docs_table, json_schema
    from domainbed.sweeps.config import SweepConfig

    if args.what == "table":
        print(docs_table(SweepConfig), end="")
    else:
        print(json.dumps(json_schema(SweepConfig), indent=2, ensure_ascii=False))
    return 0


@command(
    argument("folder", metavar="FOLDER", help="a new folder"),
)
def init(args: argparse.Namespace) -> int:
    """Write a config, a plug-in and a manifest to start from, with a few images.

    They run as they are: `cd FOLDER`, then `domainbed sweep launch sweep.yaml`.
    """
    from domainbed.sweeps.config import shipped_config

    if Path(args.folder).exists():
        raise UserError(f"{args.folder!r} exists: name a new folder")
    shutil.copytree(
        Path(shipped_config("start/sweep")).parent,
        args.folder,
        ignore=shutil.ignore_patterns("__pycache__"),
    )
    print(f"Next: cd {shlex.quote(args.folder)} && domainbed sweep launch sweep.yaml")
    return 0
