"""Trains the same specs with two checkouts and compares every number of every record, bit for bit.

    python benchmarks/same_numbers.py ../before                # all cases, the checkout around this
    python benchmarks/same_numbers.py ../before --only bf16    # the cases whose names contain this

Records are compared as they stand in `results.jsonl`, so each float64 digit counts; what names the
machine, the version or the time of a run is left out. Run ids are compared as well. PACS is read
from `DOMAINBED_DATA_DIR`, and its features are computed by each checkout for itself.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parents[1]
METHODS = (
    *("ERM", "CORAL", "IRM", "VREx", "Fish", "Fishr", "DANN", "ERMPlusPlus", "GroupDRO", "Mixup"),
    *("MLDG", "MMD", "CDANN", "MTL", "SagNet", "ARM", "RSC", "SD", "ANDMask", "SANDMask", "IGA"),
    *("SelfReg", "TRM", "IB_ERM", "IB_IRM", "CAD", "CondCAD", "Transfer", "CausIRL_CORAL"),
    *("CausIRL_MMD", "EQRM", "RDM", "ADRMX", "URM"),
)
OF_FEATURES = ("T3A", "LinearProbe", "NearestMean", "KNN")
EARLY = {
    "IRM": {"irm_penalty_anneal_iters": 5},
    "VREx": {"vrex_penalty_anneal_iters": 5},
    "Fishr": {"penalty_anneal_iters": 5},
    "IB_ERM": {"ib_penalty_anneal_iters": 5},
    "IB_IRM": {"ib_penalty_anneal_iters": 5, "irm_penalty_anneal_iters": 5},
    "ERMPlusPlus": {"linear_steps": 4, "sma_start": 6},
    "TRM": {"iters": 5},
    "EQRM": {"eqrm_burnin_iters": 5},
    "RDM": {"rdm_penalty_anneal_iters": 5},
}
"""What would otherwise begin after the end of so short a run."""

AVERAGES = {"averages": ["ema", "sma", "swad", "wise"], "sma_start": 4, "ema_decay": 0.9}
SWAD = {"swad_n_converge": 2, "swad_n_tolerance": 2, "swad_ratio": 1.0}
UNLABELLED = {"task": "domain_adaptation", "uda_holdout_fraction": 0.3}
OF_PACS = {"dataset": "PACS", "features": "efficientnet_lite0"}
TIMES = ("step_time", "mem_gb")
FOLDERS = ("data_dir", "output_dir")


def cases() -> Iterator[tuple[str, dict[str, Any]]]:
    """The arguments of `RunSpec.create`, by name."""
    for method in METHODS:
        yield f"digits {method}", _case(method)
        yield f"rotated {method}", _case(method, dataset="RotatedDigits", test_envs=[0])
        yield f"two test domains {method}", _case(method, test_envs=[1, 2], **_rotated())
        yield f"features {method}", _case(method, **OF_PACS)
        for seed in (1, 2):
            yield f"draw {seed} {method}", _drawn(method, seed)
    for method in OF_FEATURES:
        yield f"features {method}", _case(method, **OF_PACS)
    for reading in ("domainbed", "paper"):
        for method in ("TRM", "SelfReg", "IGA", "Transfer", "MLDG", "SagNet", "Fishr"):
            yield f"{reading} {method}", _case(method, hparams={"fidelity": reading})
    for method in ("ERM", "CORAL", "IRM", "DANN", "Fishr", "Mixup"):
        yield f"averages {method}", _case(method, steps=25, **AVERAGES, **SWAD)
        yield f"averages of features {method}", _case(method, **OF_PACS, **AVERAGES)
        yield f"bf16 {method}", _case(method, precision="bf16")
    for method in ("ERM", "DANN", "CORAL", "Fishr", "ARM"):
        yield f"adaptation {method}", _case(method, **UNLABELLED)
    for method in ("CORAL", "IRM", "GroupDRO"):
        yield f"Fishr+{method}", _case(f"Fishr+{method}", hparams={"fishr_penalty_anneal_iters": 5})
    for weights in ("shared", "linear-probe"):
        yield f"weights {weights}", _case("ERM", initial_weights=weights)
    for protocol in ("domainbed-2020", "domainbed-2024", "fishr-2022"):
        for method in ("ERM", "IRM", "MLDG", "Fishr"):
            yield f"{protocol} {method}", _case(method, protocol=protocol)


def _case(method: str, hparams: Mapping[str, Any] | None = None, **fields: Any) -> dict[str, Any]:
    fixed = {"batch_size": 16, **EARLY.get(method, {}), **(hparams or {})}
    usual = {"dataset": "ColoredDigits", "test_envs": [1], "steps": 13, "checkpoint_freq": 4}
    usual["metrics"] = ["accuracy", "loss"]
    return {**usual, "algorithm": method, "hparams": fixed, **fields}


def _rotated() -> dict[str, Any]:
    return {"dataset": "RotatedDigits"}


def _drawn(method: str, seed: int) -> dict[str, Any]:
    """A random draw of all but the batch size, which would take minutes, in another trial."""
    drawn = {**_case(method), "hparams": {"batch_size": 16}}
    return {**drawn, "hparams_seed": seed, "trial_seed": seed}


def train(names: list[str], results: Path) -> None:
    """Trains the named cases with the `domainbed` of this process; a line of JSON for each."""
    import torch

    from domainbed.errors import UserError
    from domainbed.spec import RunSpec
    from domainbed.training import RunOptions, run

    torch.set_num_threads(1)
    options = RunOptions(data_dir=os.environ.get("DOMAINBED_DATA_DIR", "data"), device="cpu")
    arguments = dict(cases())
    with results.open("w") as lines:
        for name in names:
            with tempfile.TemporaryDirectory() as folder:
                try:
                    spec = RunSpec.create(**arguments[name])
                    run(spec, folder, options)
                    text = (Path(folder) / "results.jsonl").read_text()
                    records = [json.loads(line) for line in text.splitlines()]
                    found = {"run_id": spec.run_id, "records": list(map(_numbers, records))}
                except UserError as error:
                    found = {"refused": str(error)}
            lines.write(json.dumps({"name": name, **found}) + "\n")
            lines.flush()


def _numbers(record: dict[str, Any]) -> dict[str, Any]:
    said = {key: value for key, value in record["args"].items() if key not in FOLDERS}
    return {key: value for key, value in {**record, "args": said}.items() if key not in TIMES}


def trained(checkout: Path, names: list[str], jobs: int, folder: Path) -> dict[str, Any]:
    """What `train` found with a checkout, by name; `jobs` processes share the cases."""
    folder.mkdir(parents=True)
    # Each checkout computes features for itself, the first process for all.
    names = sorted(names, key=lambda name: "features" not in name)
    shares = [names[i::jobs] for i in range(jobs)]
    with ThreadPoolExecutor(jobs) as pool:
        files = list(pool.map(lambda i: _process(checkout, shares[i], folder, i), range(jobs)))
    lines = [json.loads(line) for file in files for line in file.read_text().splitlines()]
    return {line.pop("name"): line for line in lines}


def _process(checkout: Path, names: list[str], folder: Path, number: int) -> Path:
    results = folder / f"{number}.jsonl"
    environment = {
        **os.environ,
        "PYTHONPATH": str(checkout),
        "DOMAINBED_CACHE_DIR": str(folder / "cache"),
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, str(Path(__file__).resolve()), "--train", str(results), *names]
    subprocess.run(command, env=environment, check=True, cwd=checkout, stdout=subprocess.DEVNULL)
    return results


def differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """What differs between two results of a case, each with its largest relative size."""
    for key in ("refused", "run_id"):
        if before.get(key) != after.get(key):
            yield f"{key}: {before.get(key)} / {after.get(key)}", math.inf
    old, new = before.get("records", []), after.get("records", [])
    if len(old) != len(new):
        yield f"{len(old)} records / {len(new)}", math.inf
    for one, other in zip(old, new):
        for key in sorted({*one, *other}):
            if _said(one.get(key), other.get(key)) != _said(other.get(key), one.get(key)):
                yield f"step {one.get('step')}: {key}", _relative(one.get(key), other.get(key))


def _said(value: Any, beside: Any) -> Any:
    """A value, or of `args` the fields that both have: a later version has more of them."""
    if isinstance(value, dict) and isinstance(beside, dict):
        return {key: one for key, one in value.items() if key in beside}
    return value


def _relative(one: Any, other: Any) -> float:
    if not all(isinstance(value, (int, float)) for value in (one, other)):
        return math.inf
    return abs(one - other) / max(abs(one), abs(other), 1e-30)


def main() -> None:
    """Compares two checkouts; ends with 1 if any number differs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("before", type=Path, nargs="?", help="the checkout to compare with")
    parser.add_argument("--after", type=Path, default=HERE, help="the other one (default: this)")
    parser.add_argument("--only", default="", help="cases whose names contain this")
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    parser.add_argument("--keep", type=Path, help="keep the first checkout's numbers in this file")
    parser.add_argument("--train", type=Path, nargs="+", help=argparse.SUPPRESS)
    arguments, names = parser.parse_known_args()
    if arguments.train:
        results, *names = arguments.train
        train(list(map(str, names)), results)
        return
    names = [name for name, _ in cases() if arguments.only in name]
    with tempfile.TemporaryDirectory() as folder:
        if arguments.keep and arguments.keep.is_file():
            before = json.loads(arguments.keep.read_text())
        else:
            before = trained(
                arguments.before.resolve(), names, arguments.jobs, Path(folder, "before")
            )
            if arguments.keep:
                arguments.keep.write_text(json.dumps(before))
        after = trained(arguments.after.resolve(), names, arguments.jobs, Path(folder, "after"))
    numbers = changed = 0
    for name in names:
        found = list(differences(before[name], after[name]))
        numbers += sum(len(record) for record in before[name].get("records", []))
        changed += bool(found)
        if found:
            size = max(size for _, size in found)
            print(f"{name}: {len(found)} differ, at most {size:.1e}; first {found[0][0]}")
    refused = sum("refused" in before[name] for name in names)
    print(f"{len(names)} runs ({refused} refused by both), {numbers} values: {changed} runs differ")
    sys.exit(changed > 0)


if __name__ == "__main__":
    main()
