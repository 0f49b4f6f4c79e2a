"""Time of planning a large sweep, of its status, and of launching it again when all is done.

Seconds are by the clock and, in brackets, of the processor: steadier where a machine is shared.
Each size is a sweep of runs that are finished, with folders as runs leave them, of random records.
The last column is the growth of the processor's seconds from the smallest to the largest: 100 times
the runs, 100 times the time, if nothing grows faster than the sweep.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from io import StringIO
from typing import NamedTuple

from domainbed.cli.launching import launch_sweep
from domainbed.spec import RunSpec
from domainbed.sweeps.config import SweepConfig
from domainbed.sweeps.launch import Launch, prepare
from domainbed.sweeps.status import status_lines, status_of
from domainbed.sweeps.store import Store


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1_000, 10_000, 100_000])
    parser.add_argument("--rounds", type=int, default=3, help="of which the fastest counts")
    args = parser.parse_args()
    times = {size: _times(size, args.rounds) for size in args.sizes}
    print(f"{'seconds for':12}" + "".join(f"{size:>16,} runs" for size in times) + "    growth")
    for name in next(iter(times.values())):
        row = [times[size][name] for size in times]
        cells = "".join(f"{cost.seconds:12.2f} ({cost.cpu:.2f})".rjust(21) for cost in row)
        print(f"{name:12}{cells}{row[-1].cpu / row[0].cpu:9.0f}×")


class Cost(NamedTuple):
    """Seconds by the clock, and of the processor."""

    seconds: float
    cpu: float


def _times(size: int, rounds: int) -> dict[str, Cost]:
    with tempfile.TemporaryDirectory() as folder:
        config = _config(size, folder)
        launch = prepare(config)
        launch.store.write_plan(config, launch.planned)
        _finish(launch)
        work: Mapping[str, Callable[[], object]] = {
            "planning": config.plan,
            "status": lambda: status_lines(status_of(Store(folder), Store(folder).planned())),
            "resuming": lambda: launch_sweep(config, skip_confirmation=True),
        }
        return {name: _fastest(each, rounds) for name, each in work.items()}


def _fastest(work: Callable[[], object], rounds: int) -> Cost:
    costs = []
    for _ in range(rounds):
        began, cpu_began = time.perf_counter(), time.process_time()
        with redirect_stdout(StringIO()):
            work()
        costs.append(Cost(time.perf_counter() - began, time.process_time() - cpu_began))
    return min(costs, key=lambda cost: cost.cpu)


def _config(size: int, folder: str) -> SweepConfig:
    return SweepConfig(
        datasets=("PACS",),
        algorithms=("ERM", "Fishr", "CORAL", "GroupDRO", "Mixup"),
        test_envs=((0,), (1,), (2,), (3,)),
        trials=tuple(range(5)),
        hparams_seeds=tuple(range(size // 100)),
        output_dir=folder,
        device="cpu",
    )


def _finish(launch: Launch) -> None:
    for run in launch.runs.values():
        folder = launch.store.folder(run.run_id)
        folder.path.mkdir()
        folder.spec.write_text(json.dumps(run.as_json()))
        folder.results.write_text(_record(run))
        folder.environment.write_text('{"seconds": 100.0, "threads": 1, "device": "cpu"}\n')
        folder.done.write_text("done")


def _record(run: RunSpec) -> str:
    accuracies = {f"env{e}_{split}_acc": 0.5 for e in range(4) for split in ("in", "out")}
    return json.dumps({"step": 5000, **accuracies, "args": run.as_json(), "hparams": {}}) + "\n"


if __name__ == "__main__":
    main()
