"""What a run of seconds spends its processor time on, in a worker that stays; and in two checkouts.

The runs are ERM's of a released baseline's config, on all test domains and the first trials. Each
checkout has a process of its own, which has done one run before it is measured. The processes take
turns, one round of all runs each; medians of the rounds are compared, and the ratio is the median
of the rounds' ratios. Time is the processor's, so that other programs on the machine count little.

    python benchmarks/short_runs.py --data_dir data            # this checkout
    python benchmarks/short_runs.py --data_dir data OLD .      # and another one
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

CONFIG = Path(__file__).parents[1] / "results/baselines/pacs-features/config.yaml"
UPDATES, ALL = "updates", "all"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkouts", nargs="*", default=["."])
    parser.add_argument("--data_dir", default=os.environ.get("DOMAINBED_DATA_DIR", "data"))
    parser.add_argument("--config", default=str(CONFIG))
    parser.add_argument("--trials", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--measure", action="store_true", help="what each process is started with")
    args = parser.parse_args()
    if args.measure:
        serve(args.config, args.data_dir, args.trials)
        return
    asked = ["--data_dir", os.path.abspath(args.data_dir), "--config", os.path.abspath(args.config)]
    asked += ["--trials", str(args.trials), "--measure"]
    workers = [
        subprocess.Popen(
            [sys.executable, __file__, *asked],
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.path.abspath(checkout)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for checkout in args.checkouts
    ]
    found = []
    for _ in range(args.rounds):
        found.append([answer(worker) for worker in workers])
        print("seconds of a run:", *(f"{each[ALL]:.3f}" for each in found[-1]), flush=True)
    for worker in workers:
        worker.communicate()
    for checkout, rounds in zip(args.checkouts, zip(*found)):
        named = dict.fromkeys(part for each in rounds for part in each)
        seconds = {part: median(each.get(part, 0.0) for each in rounds) for part in named}
        print(f"\n{checkout}: {60 / seconds[ALL]:.1f} runs per minute\n")
        print("| part | ms of a run | share |\n|:--|--:|--:|")
        for part, each in sorted(seconds.items(), key=lambda item: -item[1]):
            print(f"| {part} | {1000 * each:.0f} | {each / seconds[ALL]:.1%} |")
    for place, checkout in enumerate(args.checkouts[1:], start=1):
        ratio = median(each[0][ALL] / each[place][ALL] for each in found)
        print(f"\n{checkout} does {ratio:.3f} times as many runs as {args.checkouts[0]}")


def answer(worker: subprocess.Popen[str]) -> dict[str, float]:
    """What a process measures in a round: seconds of one run, by part."""
    assert worker.stdin is not None
    assert worker.stdout is not None
    worker.stdin.write("measure\n")
    worker.stdin.flush()
    return dict(json.loads(worker.stdout.readline()))


class Parts:
    """The processor's seconds by part; what a part calls that is another part counts there."""

    def __init__(self) -> None:
        self.seconds: Counter[str] = Counter()
        self._inner = [0.0]  # of each part under way, what others in it took

    def of(self, part: str, call: Callable[[], Any]) -> Any:
        self._inner.append(0.0)
        began = time.process_time()
        try:
            return call()
        finally:
            took = time.process_time() - began
            self.seconds[part] += took - self._inner.pop()
            self._inner[-1] += took

    def watch(self, owner: Any, name: str, part: str) -> None:
        function = getattr(owner, name)
        setattr(owner, name, lambda *a, **k: self.of(part, lambda: function(*a, **k)))

    def watch_iterator(self, owner: Any, name: str, part: str) -> None:
        function = getattr(owner, name)

        def items(*args: Any) -> Iterator[Any]:
            each = iter(function(*args))
            while (found := self.of(part, lambda: next(each, None))) is not None:
                yield found

        setattr(owner, name, items)


def serve(config: str, data_dir: str, trials: int) -> None:
    """Does a round of runs for each line of the standard input, and prints its times."""
    from domainbed.launchers.base import perform
    from domainbed.sweeps.config import load_config
    from domainbed.sweeps.launch import common_of, prepare
    from domainbed.training import experiment, trainer

    fields = {"algorithms": ["ERM"], "hparams": {}, "data_dir": data_dir, "trials": trials}
    parts = Parts()
    parts.watch(trainer.Trainer, "_updated", UPDATES)
    parts.watch_iterator(experiment.Experiment, "minibatches", "minibatches")
    parts.watch(experiment.Experiment, "evaluate", "evaluation")
    parts.watch(trainer.Trainer, "_record", "records, written")
    parts.watch(trainer.Trainer, "_save_checkpoint", "checkpoints")
    parts.watch(experiment, "load_dataset", "loading the dataset")
    parts.watch(experiment, "data_facts", "looking at its files")

    def round_of(root: Path, most: int | None = None) -> dict[str, float]:
        launch = prepare(load_config(config, {**fields, "output_dir": str(root)}))
        launch.store.write_plan(launch.config, launch.planned, [], common_of(launch.runs))
        runs = [launch.runs[run_id] for run_id in launch.todo[:most]]
        parts.seconds.clear()
        began = time.process_time()
        for index, spec in enumerate(runs):
            perform(launch._job, index, spec, lambda event: None)
        whole = time.process_time() - began
        assert all(launch.store.folder(spec.run_id).is_done() for spec in runs)
        parts.seconds["the rest"] = whole - sum(parts.seconds.values())
        return {part: each / len(runs) for part, each in {**parts.seconds, ALL: whole}.items()}

    with tempfile.TemporaryDirectory() as folder:
        round_of(Path(folder) / "first", most=1)
        for number, _ in enumerate(sys.stdin):
            print(json.dumps(round_of(Path(folder) / str(number))), flush=True)


if __name__ == "__main__":
    main()
