"""Files, bytes and seconds of a large sweep, before and after packing, and of its export.

The runs are generated: the files that a run without weights leaves, with as many records of PACS as
DomainBed's protocol asks for, of random numbers. Seconds are by the clock and, in brackets, of the
processor, of commands in new processes; `collect` is timed without a cache of records and with one.

    python benchmarks/packing.py --runs 36960 --folder /a/disk/with/room
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from itertools import product
from pathlib import Path

from domainbed.core.files import sealed_json
from domainbed.runs.folder import RunFolder
from domainbed.runs.ownership import owning

ALGORITHMS = 28
TEST_ENVS = ([0], [1], [2], [3])
TRIALS = 3
DOMAINS, RECORDS = 4, 17
HPARAMS = {"lr": 5e-5, "batch_size": 32, "weight_decay": 1e-5, "resnet_dropout": 0.1,
           "resnet18": False, "class_balanced": False, "data_augmentation": True}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=36_960)
    parser.add_argument("--folder", type=Path, help="for the sweep (default: a temporary one)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        root = Path(folder) / "sweep"
        generate(root, args.runs)
        print(
            f"{args.runs:,} runs{'':14}inodes  MB on disk       status      collect  collect again"
        )
        tables = [_measured("in folders", root)]
        seconds = _command("pack", str(root))[0]
        tables.append(_measured("packed", root))
        print(f"packing took {seconds} s; the tables are {_told(tables)}")
        seconds = _command("export", str(root), f"{folder}/sweep.parquet")[0]
        size = os.path.getsize(f"{folder}/sweep.parquet") / args.runs
        print(f"exporting took {seconds} s, and {size:.0f} bytes per run")


def generate(root: Path, runs: int) -> None:
    """Writes the folders of finished runs, and the plan."""
    random.seed(0)
    seeds = range(-(-runs // (ALGORITHMS * len(TEST_ENVS) * TRIALS)))
    grid = list(product(range(ALGORITHMS), TEST_ENVS, range(TRIALS), seeds))[:runs]
    planned = {}
    for algorithm, envs, trial, seed in grid:
        run_id = f"{random.getrandbits(128):032x}"
        args = {"dataset": "PACS", "algorithm": f"Method{algorithm}", "test_envs": envs,
                "hparams_seed": seed, "trial_seed": trial, "steps": 5001}  # fmt: skip
        planned[run_id] = args
        folder = RunFolder(root / run_id)
        folder.path.mkdir(parents=True)
        records = "".join(_record(args, 300 * number) for number in range(RECORDS))
        folder.results.write_text(records)
        folder.mark_done(records)
        facts = {"seconds": 1000.0, "threads": 1, "device": "cuda", "plugins": {}, "torch": "2.6.0"}
        folder.spec.write_text(
            sealed_json({**args, "hparams": HPARAMS, "run_id": run_id}, indent=2)
        )
        folder.environment.write_text(sealed_json(facts, indent=2))
        folder.out.write_text("".join(f"{n:<12}{'0.1234':12}{'0.5678':12}\n" for n in range(20)))
        with owning(folder.path):  # which leaves an owner's file
            pass
    (root / "plan.json").write_text(sealed_json({"version": 1, "runs": planned}))
    (root / "sweep.yaml").write_text("datasets: [PACS]\n")


def _record(args: dict[str, object], step: int) -> str:
    measured = {f"env{domain}_{split}_{name}": random.random()
                for domain in range(DOMAINS) for split in ("in", "out")
                for name in ("acc", "loss")}  # fmt: skip
    others = {"step": step, "epoch": step / 45, "loss": random.random(), "step_time": 0.2}
    record = {**others, **measured, "mem_gb": 6.5, "hparams": HPARAMS, "args": args}
    return json.dumps(record, sort_keys=True) + "\n"


def _measured(what: str, root: Path) -> str:
    """Prints a line of figures; returns what `collect` prints."""
    inodes, size = 0, 0
    for folder, _, files in os.walk(root):
        inodes += 1 + len(files)
        size += os.stat(folder).st_blocks * 512
        size += sum(os.lstat(os.path.join(folder, name)).st_blocks * 512 for name in files)
    status, _ = _command("status", str(root))
    first, table = _command("collect", str(root))
    again, _ = _command("collect", str(root))
    print(
        f"{what:24}{inodes:10,}{size / 1e6:12,.0f}{status:>13}{first:>13}{again:>15}",
        flush=True,
    )
    for cache in (root / "cache").rglob("*.arrow"):
        cache.unlink()
    return table


def _command(name: str, root: str, *more: str) -> tuple[str, str]:
    """The seconds that a command takes, by the clock and of the processor; and what it prints."""
    words = [name] if name == "collect" else ["sweep", name]
    began, cpu_began = time.monotonic(), _cpu_seconds()
    done = subprocess.run(
        [sys.executable, "-m", "domainbed", *words, root, *more],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    seconds, cpu = time.monotonic() - began, _cpu_seconds() - cpu_began
    return f"{seconds:.1f} ({cpu:.1f})", done.stdout


def _cpu_seconds() -> float:
    """Of all commands so far."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _told(tables: list[str]) -> str:
    return "the same" if len(set(tables)) == 1 else "DIFFERENT"


if __name__ == "__main__":
    main()
