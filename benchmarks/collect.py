"""Time and memory of `domainbed collect` on a large sweep, beside a loop that only parses it.

Makes a sweep of random records, then takes turns: the plain loop, `collect` with nothing cached,
and `collect` again. Medians are compared; the processor time is steadier than the clock where a
machine is shared.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import islice, product
from pathlib import Path
from statistics import median
from typing import NamedTuple

DOMAINS = {"VLCS": 4, "PACS": 4, "OfficeHome": 4, "TerraIncognita": 4, "DomainNet": 6}
HPARAMS_SEEDS, TRIALS = 20, 3

# What a person writes first: every line parsed, the hyper-parameters and arguments flattened.
PLAIN = """
import json, sys
from pathlib import Path
records = []
for file in sorted(Path(sys.argv[1]).glob("*/results.jsonl")):
    for line in file.open():
        record = json.loads(line)
        args = record.pop("args")
        record.pop("hparams")
        names = ("dataset", "algorithm", "test_envs", "hparams_seed", "trial_seed")
        records.append({**record, **{name: args[name] for name in names}})
print(len(records))
"""


class Cost(NamedTuple):
    """Of one process and its children: seconds by the clock, of the processor, peak GB of one."""

    seconds: float
    cpu: float
    gigabytes: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=20_000)
    parser.add_argument("--records", type=int, default=17, help="of each run")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", help="make the sweep there and keep it (default: a temporary)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        sweep = Path(args.folder or Path(temporary) / "sweep")
        if not sweep.exists():
            make_sweep(sweep, args.runs, args.records)
        os.environ["DOMAINBED_CACHE_DIR"] = temporary
        costs = measure(sweep, Path(temporary), args.rounds)
    print(f"{args.runs} runs of {args.records} records, {args.rounds} rounds, medians")
    print(f"{'':16}  {'seconds':>8}  {'cpu s':>8}  {'peak GB':>8}  {'cpu / plain':>11}")
    for name, cost in costs.items():
        ratio = cost.cpu / costs["plain loop"].cpu
        print(f"{name:16}  {cost.seconds:8.2f}  {cost.cpu:8.2f}  {cost.gigabytes:8.2f}"
              f"  {ratio:11.2f}")  # fmt: skip


def make_sweep(folder: Path, runs: int, records: int) -> None:
    """Writes random records as a sweep of a zoo of algorithms does, in folders of run ids."""
    rng = random.Random(0)
    folder.mkdir(parents=True)
    for number, args in enumerate(islice(grid(), runs)):
        run = folder / f"{number * 2654435761 % 2**32:08x}{number:08x}"
        run.mkdir()
        args["output_dir"] = str(run)
        (run / "results.jsonl").write_text("".join(lines(rng, args, records)))
        named = ("dataset", "algorithm", "test_envs", "hparams_seed", "trial_seed")
        (run / "run.json").write_text(json.dumps({name: args[name] for name in named}))
        (run / "done").write_text("done")


def grid() -> Iterator[dict]:
    """The args of endless runs: algorithm by algorithm the whole grid of all datasets."""
    for algorithm in range(10**9):
        for dataset, domains in DOMAINS.items():
            for env, seed, trial in product(range(domains), range(HPARAMS_SEEDS), range(TRIALS)):
                yield {
                    "algorithm": "ERM" if algorithm == 0 else f"Algorithm{algorithm}",
                    "dataset": dataset,
                    "test_envs": [env],
                    "hparams_seed": seed,
                    "trial_seed": trial,
                    "steps": 5001,
                    "checkpoint_freq": 300,
                    "holdout_fraction": 0.2,
                    "uda_holdout_fraction": 0.0,
                    "task": "domain_generalization",
                    "protocol": "domainbed-2020",
                    "protocol_version": 1,
                    "torch": "2.5.1",
                    "precision": "float32",
                    "hparams": None,
                    "data_dir": "data",
                    "skip_model_save": True,
                }


def lines(rng: random.Random, args: dict, records: int) -> Iterator[str]:
    hparams = {
        "lr": 10 ** rng.uniform(-5, -3.5),
        "batch_size": int(2 ** rng.uniform(3, 5.5)),
        "weight_decay": 10 ** rng.uniform(-6, -2),
        "resnet_dropout": rng.choice([0.0, 0.1, 0.5]),
        "data_augmentation": True,
        "class_balanced": False,
        "resnet18": False,
        "nonlinear_classifier": False,
        "penalty_weight": 10 ** rng.uniform(-1, 5),
    }
    shared = json.dumps({"args": args, "hparams": hparams}, sort_keys=True)[1:]
    for number in range(records):
        record = {
            f"env{env}_{split}_acc": rng.random()
            for env in range(DOMAINS[args["dataset"]])
            for split in ("in", "out")
        }
        record |= {"step": 300 * number, "epoch": rng.random(), "loss": rng.random()}
        record |= {"step_time": rng.random(), "mem_gb": rng.random()}
        yield json.dumps(record)[:-1] + ", " + shared + "\n"


def measure(sweep: Path, cache: Path, rounds: int) -> dict[str, Cost]:
    """The median cost of each way to read the sweep."""
    collect = [sys.executable, "-m", "domainbed", "collect", str(sweep), "--format", "csv"]
    collect += ["--selection", "training-domain", "oracle"]
    seen: dict[str, list[Cost]] = {"plain loop": [], "collect": [], "collect again": []}
    for _ in range(rounds):
        shutil.rmtree(cache / "records", ignore_errors=True)
        seen["plain loop"].append(cost([sys.executable, "-c", PLAIN, str(sweep)]))
        seen["collect"].append(cost(collect))
        seen["collect again"].append(cost(collect))
    return {name: Cost(*map(median, zip(*costs))) for name, costs in seen.items()}


def cost(command: list[str]) -> Cost:
    began = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{command} failed")
    process.returncode = status
    seconds = time.perf_counter() - began
    return Cost(seconds, used.ru_utime + used.ru_stime, used.ru_maxrss / 1e6)


if __name__ == "__main__":
    main()
