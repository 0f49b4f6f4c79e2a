"""Mixes runs of other settings and of other data, and counts what is said of it.

Every field of a run that can have another value: a launch of further trials with it must refuse, or
the tables of both must name it. Every change of a dataset under its name: a resumed run, what is
made of finished runs, and the tables must refuse it, name it or tell the datasets apart. Whatever
passes without a word is silent. The last line counts.

    python tests/faults/mixtures.py
"""

from __future__ import annotations

import argparse
import logging
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from domainbed import datasets
from domainbed.config.run_fields import RunFields, RunOptions
from domainbed.diagnostics import DiagnosisOptions, diagnose
from domainbed.errors import UserError
from domainbed.reporting import build_report, load_records
from domainbed.runs.folder import RunFolder
from domainbed.spec import RunSpec
from domainbed.sweeps.config import load_config
from domainbed.sweeps.finished import adapt_runs, average_runs
from domainbed.sweeps.launch import common_of, prepare
from domainbed.training import predictions, run

REFUSED, NAMED, APART, SILENT = "refused", "named", "told apart", "SILENT"
MACHINE = RunOptions(device="cpu", num_workers=0)
USUAL: dict[str, Any] = {"steps": 2, "checkpoint_freq": 1, "hparams": {"batch_size": 4}}
OTHERS: dict[str, dict[str, Any]] = {
    "protocol": {"protocol": "domainbed-2024"},
    "steps": {"steps": 3},
    "checkpoint_freq": {"checkpoint_freq": 2},
    "holdout_fraction": {"holdout_fraction": 0.3},
    "split": {"split": "stratified"},
    "task": {"task": "domain_adaptation", "uda_holdout_fraction": 0.5},
    "draws": {"draws": "in-sequence"},
    "shared_draws": {"shared_draws": True},
    "data_seed": {"data_seed": "run"},
    "augment_validation": {"augment_validation": True},
    "eval_splits": {"eval_splits": "all"},
    "record_last_step": {"record_last_step": False},
    "metrics": {"metrics": ["accuracy", "loss"]},
    "precision": {"precision": "bf16"},
    "on_divergence": {"on_divergence": "continue"},
    "initial_weights": {"initial_weights": "shared"},
    "averages": {"averages": ["ema"]},
    "ema_decay": {"ema_decay": 0.9},
    "sma_start": {"sma_start": 5},
    "swad_n_converge": {"swad_n_converge": 2},
    "swad_n_tolerance": {"swad_n_tolerance": 7},
    "swad_ratio": {"swad_ratio": 1.5},
    "swad_rule": {"swad_rule": "authors"},
    "wise_alpha": {"wise_alpha": 0.3},
    "fixed hyper-parameter": {"hparams": {"batch_size": 8}},
    "other hyper-parameter": {"hparams": {"batch_size": 4, "lr": 0.1}},
}
"""Other values, by field; `uda_holdout_fraction` goes with the task."""
# Of features, of data of your own, and what goes with another field.
NOT_HERE = {"features", "labels", "columns", "classes", "missing_classes", "uda_holdout_fraction"}


class Heard(logging.Handler):
    """What was logged."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


HEARD = Heard()


def fate(do: Callable[[], Any]) -> str:
    """What becomes of it: refused, or named in a warning, or SILENT."""
    HEARD.lines.clear()
    try:
        do()
    except UserError:
        return REFUSED
    said = [
        line for line in HEARD.lines if any(w in line for w in ("mix", "other images", "share"))
    ]
    apart = [line for line in HEARD.lines if "told apart" in line]
    return NAMED if said else APART if apart else SILENT


def settings(root: Path, outcome: dict[str, Counter[str]]) -> None:
    """Further trials with each other value, launched and read."""
    unknown = set(RunFields.model_fields) - set(OTHERS) - NOT_HERE
    assert not unknown, f"no other value of {unknown}"
    grid = {"datasets": ["ColoredDigits"], "algorithms": ["ERM"], "test_envs": [[0]]}
    grid |= {"hparams_seeds": [0], "selection": ["oracle"], "output_dir": str(root / "sweep")}
    first = prepare(load_config(None, {**grid, **USUAL, "trials": [0]}))
    first.store.write_plan(first.config, first.planned, (), common_of(first.runs))
    (usual,) = first.runs.values()
    run(usual, root / "usual", MACHINE)
    for field, other in OTHERS.items():
        fields = {**USUAL, **other}
        launched = fate(lambda f=fields: prepare(load_config(None, {**grid, **f, "trials": [1]})))
        mixed = root / field
        shutil.copytree(root / "usual", mixed / "0")
        spec = RunSpec.create("ColoredDigits", "ERM", [0], trial_seed=1, **fields)
        run(spec, mixed / "1", MACHINE)
        read = fate(lambda folder=mixed: build_report(load_records(folder), ["oracle"]))
        outcome["launching"][launched if launched == REFUSED else read] += 1
        outcome["reading"][read] += 1
        if read == SILENT:
            print(f"SILENT: {field}")


def write_images(root: Path, seed: int = 0) -> None:
    """Files of one size, whatever the seed."""
    source = np.random.RandomState(seed)
    for place in ("a/cat", "a/dog", "b/cat", "b/dog", "c/cat", "c/dog"):
        (root / place).mkdir(parents=True, exist_ok=True)
        for i in range(3):
            pixels = source.randint(0, 256, (16, 16, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / place / f"{i}.bmp")


def _swap(one: Path, other: Path) -> None:
    aside = one.with_name("aside")
    one.rename(aside)
    other.rename(one)
    aside.rename(other)


def _add_class(root: Path) -> None:
    for domain in "abc":
        shutil.copytree(root / domain / "cat", root / domain / "emu")


CHANGES: dict[str, Callable[[Path], Any]] = {
    "every image replaced": lambda root: write_images(root, seed=1),
    "one image replaced": lambda root: shutil.copy(root / "a/cat/0.bmp", root / "b/dog/2.bmp"),
    "one image more": lambda root: shutil.copy(root / "a/cat/0.bmp", root / "a/cat/9.bmp"),
    "one image less": lambda root: (root / "c/dog/2.bmp").unlink(),
    "two labels swapped": lambda root: _swap(root / "a/cat/1.bmp", root / "a/dog/1.bmp"),
    "two images swapped": lambda root: _swap(root / "a/cat/1.bmp", root / "b/cat/1.bmp"),
    "a domain renamed": lambda root: (root / "b").rename(root / "d"),
    "domains swapped": lambda root: _swap(root / "a", root / "b"),
    "a domain more": lambda root: shutil.copytree(root / "a", root / "d"),
    "a domain less": lambda root: shutil.rmtree(root / "c"),
    "a class renamed": lambda root: [(root / d / "dog").rename(root / d / "fox") for d in "abc"],
    "a class more": _add_class,
}


def data(root: Path, outcome: dict[str, Counter[str]]) -> None:
    """Each change of a dataset under its name, where it is resumed, used and read."""
    hparams = {"backbone": "squeezenet1_1", "weights": "none", "batch_size": 2}
    machine = MACHINE.model_copy(update={"data_dir": str(root / "data")})

    def trained(images: Path, folder: Path, trial: int) -> None:
        datasets._shared.clear()  # as in another process
        spec = RunSpec.create(
            f"folder:{images}", "ERM", [0], trial_seed=trial, steps=1, hparams=hparams
        )
        run(spec, folder, machine)

    write_images(root / "pets")
    trained(root / "pets", root / "sweep/0", 0)
    for number, (name, change) in enumerate(CHANGES.items()):
        images, sweep = root / f"changed{number}" / "pets", root / f"sweep{number}"
        shutil.copytree(root / "pets", images)
        shutil.copytree(root / "sweep", sweep)
        change(images)
        where, folder = f"folder:{images}", RunFolder(sweep / "0")
        options = DiagnosisOptions(
            dataset=where, data_dir=machine.data_dir, landscape=None, samples=4, device="cpu",
            curvatures=("variance",),
        )  # fmt: skip
        fates = {
            "predict": fate(lambda f=folder, w=where: list(predictions(f, machine, w, 1, "out"))),
            "diagnose": fate(lambda f=folder, o=options: diagnose(f.path, o)),
            "average": fate(
                lambda s=sweep, w=where: list(
                    average_runs(s, "ensemble", machine=machine, dataset=w)
                )
            ),
            "adapt": fate(lambda s=sweep, w=where: list(adapt_runs(s, machine=machine, dataset=w))),
        }
        (sweep / "0/done").unlink()
        fates["resume"] = fate(lambda i=images, f=folder: trained(i, f.path, 0))
        mixed = root / f"mixed{number}"
        shutil.copytree(root / "sweep/0", mixed / "0")
        trained(images, mixed / "1", 1)
        fates["tables"] = fate(lambda m=mixed: build_report(load_records(m), ["oracle"]))
        told = ", ".join(f"{reader} {found}" for reader, found in fates.items())
        print(f"{name}: {told}", file=sys.stderr, flush=True)
        for reader, found in fates.items():
            outcome[reader][found] += 1
            if found == SILENT:
                print(f"SILENT: {name}, {reader}")


PARTS = {"settings": settings, "data": data}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=list(PARTS))
    args = parser.parse_args()
    logging.getLogger("domainbed").addHandler(HEARD)
    logging.getLogger("domainbed").propagate = False
    readers = (
        "launching",
        "reading",
        "resume",
        "predict",
        "average",
        "adapt",
        "diagnose",
        "tables",
    )
    outcome: dict[str, Counter[str]] = {reader: Counter() for reader in readers}
    with tempfile.TemporaryDirectory() as folder:
        said = StringIO()
        with redirect_stdout(said):  # the progress of runs
            for name in args.parts:
                PARTS[name](Path(folder) / name, outcome)
    print(*(line for line in said.getvalue().splitlines() if line.startswith(SILENT)), sep="\n")
    for reader, counts in outcome.items():
        print(f"{reader}: {', '.join(f'{n} {what}' for what, n in sorted(counts.items()))}")
    silent = sum(counts[SILENT] for counts in outcome.values())
    cases = sum(counts.total() for counts in outcome.values())
    print(f"mixtures: {cases} cases, {silent} silent")
    return int(silent > 0)


if __name__ == "__main__":
    sys.exit(main())
