"""Summaries of released baselines for the package, from their exports.

    python results/baselines/summarize.py          # of all folders beside this file
    python results/baselines/summarize.py NAME

A folder has the config of a sweep, `config.yaml`, and what it recorded, one or several exports. The
first line of its README.md that begins with `domainbed` is the command that made it.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from pathlib import Path
from typing import Any

import domainbed.config.baselines as package
from domainbed.core.files import file_digest, write_text
from domainbed.core.names import average_in, is_provisional, order_algorithms, order_datasets
from domainbed.reporting.mixtures import protocols
from domainbed.runs.load import load_records
from domainbed.runs.records import Records
from domainbed.selection import SELECTION_METHODS
from domainbed.selection.judging import judged

CHOOSES = "training-domain"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="(default: all)")
    parser.add_argument("--folder", type=Path, default=Path(__file__).parent)
    parser.add_argument("--package", type=Path, default=Path(package.__file__).parent)
    args = parser.parse_args()
    names = args.names or sorted(file.parent.name for file in args.folder.glob("*/config.yaml"))
    for name in names:
        text = json.dumps(summary(args.folder / name), indent=1)
        write_text(args.package / f"{name}.json", text + "\n")
        print(f"{args.package / name}.json: {len(text) / 1000:.0f} kB")


def summary(folder: Path) -> dict[str, Any]:
    """What `domainbed.config.baselines.summaries` describes."""
    files = sorted(folder.glob("*.parquet"))
    records = load_records(files)
    runs = records.runs[[not average_in(name) for name in records.runs["algorithm"]]]
    cells = runs.groupby(["dataset", "algorithm"])
    lines = (folder / "README.md").read_text(encoding="utf-8").splitlines()
    datasets, algorithms = order_datasets(runs["dataset"]), order_algorithms(runs["algorithm"])
    features = _one(folder, "features", set(runs["features"]))
    about = {
        "datasets": ", ".join(datasets),
        "features": features,
        "protocol": _one(folder, "protocols", set(protocols(runs.assign(features="")))),
        "steps": ", ".join(map(str, sorted({args["steps"] for args in runs["args"]}))),
        "algorithms": len(algorithms),
        "provisional": sum(map(is_provisional, algorithms)),
        "trials": _most(cells["trial_seed"].nunique()),
        "draws": _most(cells["hparams_seed"].nunique()),
        "runs": len(runs),
    }
    return {
        "about": about,
        "datasets": datasets,
        "features": features,
        "algorithms": algorithms,
        "command": next(line for line in lines if line.startswith("domainbed ")),
        "files": {file.name: file_digest(file) for file in files},
        "tuned": _tuned(records),
    }


def _one(folder: Path, what: str, values: set[str]) -> str:
    if len(values) > 1:
        raise SystemExit(f"{folder} mixes {what}: {', '.join(sorted(values))}")
    return values.pop()


def _most(counts: Any) -> int:
    return Counter(counts.tolist()).most_common(1)[0][0]


def _tuned(records: Records) -> dict[str, dict[str, dict[str, Any]]]:
    """By dataset, algorithm and test domain the hyper-parameters of the best choice of all trials.

    As `sweep rerun-best` takes them: those with the highest validation. None of averages, and of
    algorithms with the default hyper-parameters only.
    """
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for part in judged(records):
        runs = part.runs[part.runs["test_envs"].map(len) == 1]
        draws = runs.groupby("algorithm")["hparams_seed"].nunique()
        keys = ["dataset", "algorithm", "test_env", "hparams_seed", "trial_seed"]
        runs = runs.assign(test_env=runs["test_envs"].str[0]).set_index(keys)["hparams"]
        chosen = SELECTION_METHODS[CHOOSES].select(part)
        order = [part.lower_is_better, True]
        chosen = chosen.sort_values(["val", "trial_seed"], ascending=order, kind="stable")
        for row in chosen.drop_duplicates(keys[:3]).to_dict("records"):
            if not average_in(row["algorithm"]) and draws[row["algorithm"]] > 1:
                of_algorithm = found.setdefault(row["dataset"], {}).setdefault(row["algorithm"], {})
                of_algorithm[str(row["test_env"])] = runs.loc[tuple(row[key] for key in keys)]
    return found


if __name__ == "__main__":
    main()
