"""Many short runs on the embedded digits: by workers that stay, by one, and a process for each."""

from __future__ import annotations

import argparse
import json
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median
from typing import Any

from side_by_side import Row, in_turns, machine, process, ratio, table

from domainbed.core.cores import usable_cores


def launched(config: dict[str, Any], *flags: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "sweep.yaml"
        whole = {"keep": "none", "output_dir": str(Path(folder) / "sweep"), **config}
        file.write_text(json.dumps(whole))
        process("-m", "domainbed", "sweep", "launch", str(file), "--skip_confirmation", *flags)


def by_workers(runs: int, steps: int, workers: int) -> None:
    config = {
        "datasets": ["ColoredDigits"],
        "algorithms": ["ERM"],
        "test_envs": [[0], [1], [2]],
        "trials": 1,
        "hparams_seeds": runs // 3,
        "steps": steps,
        "checkpoint_freq": steps,
        "hparams": {"batch_size": 32},
    }
    launched(config, "--workers", str(workers))


def on_a_gpu(runs: int, steps: int, at_a_time: int, data_dir: str) -> None:
    config = {
        "datasets": ["ColoredMNIST"],
        "algorithms": ["ERM"],
        "test_envs": [[2]],
        "trials": 1,
        "hparams_seeds": runs,
        "steps": steps,
        "checkpoint_freq": steps,
        "hparams": {"batch_size": 64},
        "data_dir": data_dir,
        "device": "cuda",
        "launcher": {"name": "local", "gpu_ids": [0], "runs_per_gpu": at_a_time},
    }
    launched(config)


def by_processes(runs: int, steps: int) -> None:
    """As many at a time as there are cores, each with one thread."""

    def one(number: int) -> None:
        process(
            *("benchmarks/plain.py", "--dataset", "ColoredDigits", "--test_env", str(number % 3)),
            *("--steps", str(steps), "--checkpoint_freq", str(steps), "--batch_size", "32"),
            OMP_NUM_THREADS="1",
        )

    with ThreadPoolExecutor(usable_cores()) as pool:
        list(pool.map(one, range(runs)))


def rows(runs: int, steps: int, rounds: int) -> list[Row]:
    cores = usable_cores()
    tasks = {
        "plain": lambda: by_processes(runs, steps),
        "workers": lambda: by_workers(runs, steps, cores),
        "one": lambda: by_workers(runs, steps, 1),
    }
    seconds = in_turns(tasks, rounds, warm=False)
    medians = {name: median(taken) for name, taken in seconds.items()}
    what = f"{runs} runs of {steps} steps on embedded digits"
    return [
        Row(f"{what}, {cores} workers; {cores} processes of one run at a time",
            medians["workers"], medians["plain"], "s",
            f"{ratio(seconds, 'plain', 'workers'):.2f} times", "3.5 times"),
        Row(f"{what}, one worker", medians["one"], medians["plain"], "s",
            f"{ratio(seconds, 'plain', 'one'):.2f} times"),
    ]  # fmt: skip


def rows_on_a_gpu(runs: int, steps: int, rounds: int, data_dir: str) -> list[Row]:
    """Runs that share a GPU, beside one at a time; from the start of the sweep to its end."""
    tasks = {
        "one": lambda: on_a_gpu(runs, steps, 1, data_dir),
        "shared": lambda: on_a_gpu(runs, steps, runs, data_dir),
    }
    seconds = in_turns(tasks, rounds, warm=False)
    medians = {name: median(taken) for name, taken in seconds.items()}
    what = f"{runs} runs of {steps} steps on ColoredMNIST, one GPU, runs_per_gpu {runs}; 1"
    said = f"{ratio(seconds, 'one', 'shared'):.2f} times"
    return [Row(what, medians["shared"], medians["one"], "s", said)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=48, help="a multiple of 3")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=2)
    args = parser.parse_args()
    print(machine("cpu"), table(rows(args.runs, args.steps, args.rounds)), sep="\n\n")


if __name__ == "__main__":
    main()
