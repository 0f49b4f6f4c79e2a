"""A whole run of ERM, each in a process of its own: from its start to its end, and 5,001 steps.

The long run is put together from three short ones: of 1 step and of some more with two records, and
of 1 step without them. Here a record evaluates what selection can read, which changes no table; the
plain baseline evaluates all splits.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path
from statistics import median

from side_by_side import Cost, Row, machine, process, table

LONG, RECORDS = 5001, 51
NEW_BESTS = 13
"""Records before the last at which validation was at a new best, in such a run with seed 0."""
FIRST_STEP = """
import os, sys
from domainbed.algorithms import ERM
update = ERM.update
def first(self, *args):
    update(self, *args)
    os._exit(0)
ERM.update = first
from domainbed.cli import main
main(sys.argv[1:])
"""


def plain(dataset: str, data_dir: str, steps: int) -> Cost:
    return process(
        *("benchmarks/plain.py", "--dataset", dataset, "--data_dir", data_dir),
        *("--steps", str(steps), "--checkpoint_freq", str(10**9)),
    )


def ours(dataset: str, data_dir: str, steps: int, precision: str = "float32", *code: str) -> Cost:
    with tempfile.TemporaryDirectory() as folder:
        command = code or ("-m", "domainbed")
        return process(
            *(*command, "train", "--dataset", dataset, "--algorithm", "ERM", "--test_envs", "0"),
            *("--data_dir", data_dir, "--steps", str(steps), "--checkpoint_freq", str(10**9)),
            *("--hparams", '{"batch_size": 64}', "--precision", precision, "--device", "cpu"),
            *("--eval_splits", "best", "--keep", "none", "--output_dir", str(Path(folder) / "run")),
        )


def whole_runs(dataset: str, data_dir: str, steps: int, rounds: int) -> list[Row]:
    """From the start of a process to its end."""
    kinds = {"plain": [], "float32": [], "bf16": []}
    for _ in range(rounds):
        kinds["plain"].append(plain(dataset, data_dir, steps))
        for precision in ("float32", "bf16"):
            kinds[precision].append(ours(dataset, data_dir, steps, precision))
    medians = {name: median(cost.seconds for cost in costs) for name, costs in kinds.items()}
    memory = {name: median(cost.gigabytes for cost in costs) for name, costs in kinds.items()}
    found = [
        Row(
            f"run of {steps} steps and 2 records, {dataset}, {name}",
            medians[name],
            medians["plain"],
        )
        for name in ("float32", "bf16")
    ]
    target = "1.2 GB" if dataset == "ColoredMNIST" else ""
    peak = Row(f"peak memory of it, {dataset}, float32", memory["float32"], memory["plain"], "GB")
    return [*found, Row(peak.what, peak.ours, peak.plain, peak.unit, target=target)]


def start_up(data_dir: str, rounds: int) -> list[Row]:
    """Of the command, and until the first training step has been taken."""
    told = [process("-m", "domainbed", "--help") for _ in range(rounds)]
    rows = [started("`domainbed --help`", told, target="0.3 s")]
    for dataset in ("ColoredDigits", "ColoredMNIST"):
        steps = [ours(dataset, data_dir, 1, "float32", "-c", FIRST_STEP) for _ in range(rounds + 1)]
        rows.append(started(f"first step after the command, {dataset}", steps[:1]))
        rows.append(started(f"the same again, {dataset}", steps[1:]))
    return rows


def started(what: str, costs: list[Cost], target: str = "") -> Row:
    """The processor's time stands beside that of the clock, which a busy machine stretches."""
    cpu = f"{median(cost.cpu for cost in costs):.2f} s of the processor"
    return Row(what, median(cost.seconds for cost in costs), ratio=cpu, target=target)


def extrapolated(update: Row, evaluation: Row, start: float) -> Row:
    """5,001 steps and 51 records, of an update and of evaluating all images, as measured.

    Of three domains here 0.2 of two are evaluated at a record, 0.8 of the third where validation
    is at a new best, and everything at the last.
    """
    records = ((RECORDS - 1) * 2 * 0.2 + NEW_BESTS * 0.8) / 3 + 1
    here = start + LONG * (update.ours or 0) / 1e3 + records * (evaluation.ours or 0)
    there = start + LONG * (update.plain or 0) / 1e3 + RECORDS * (evaluation.plain or 0)
    precision = update.what.rpartition(", ")[2]
    target = {"float32": "2 times", "bf16": "3.5 times"}[precision]
    return Row(f"run of 5,001 steps and 51 records, ColoredMNIST, {precision}, extrapolated",
               here / 60, there / 60, "min", target=target)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--dataset", choices=("ColoredMNIST", "ColoredDigits"), default="ColoredMNIST"
    )
    parser.add_argument("--data_dir", default=os.environ.get("DOMAINBED_DATA_DIR", "data"))
    parser.add_argument("--steps", type=int, default=11)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    rows = whole_runs(args.dataset, args.data_dir, args.steps, args.rounds)
    print(machine("cpu"), table(rows + start_up(args.data_dir, args.rounds)), sep="\n\n")


if __name__ == "__main__":
    main()
