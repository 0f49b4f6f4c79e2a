"""All of speed in one table, which `make bench` writes: for docs/speed.md."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import compiled
import data_path
import evaluate
import run
import stacked
import sweep
from side_by_side import Row, add_device, machine, table
from train_step import Case, all_algorithms, beside_plain, rates, trained

SIZES = (8, 32, 128, 512)


def of_a_gpu(args: argparse.Namespace) -> Iterator[list[Row]]:
    """What only a GPU can tell."""
    yield compiled.rows(Case("mnist", None, args.device), args.rounds)
    for setting in stacked.settings(8, 64, args.device, args.data_dir):
        yield stacked.rows(setting, 20, args.rounds, setting.runs)
    if (Path(args.data_dir) / "MNIST").is_dir():
        yield sweep.rows_on_a_gpu(8, 300, 1 + args.rounds // 3, args.data_dir)
    if (Path(args.data_dir) / "PACS").is_dir():
        with data_path.own_cache():
            yield data_path.rows_on_a_gpu(args.data_dir, 32, args.rounds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", default="results/speed.md")
    parser.add_argument("--data_dir", default=os.environ.get("DOMAINBED_DATA_DIR", "data"))
    add_device(parser)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    rows: list[Row] = []

    def add(more: list[Row]) -> list[Row]:
        rows.extend(more)
        print(table(more), file=sys.stderr, flush=True)
        return more

    small = Case("mnist", None, args.device)
    of_update = add(beside_plain(small, args.rounds))
    of_evaluation = add(evaluate.rows(2048, args.rounds, args.device))
    start = 5.0
    if (Path(args.data_dir) / "MNIST").is_dir():
        started = add(run.start_up(args.data_dir, args.rounds))
        start = started[-1].ours or start
        add(run.whole_runs("ColoredMNIST", args.data_dir, 11, 1 + args.rounds // 3))
    add([run.extrapolated(*pair, start) for pair in zip(of_update, of_evaluation)])
    add(sweep.rows(48, 50, 1 + args.rounds // 3))
    for size in SIZES:
        add(beside_plain(Case("mnist", size, args.device), args.rounds))
    add(rates(small, args.rounds))
    add(all_algorithms(small, trained(), args.rounds))
    for network in ("resnet18", *(["resnet50"] if args.device.startswith("cuda") else [])):
        large = Case(network, None, args.device)
        add(beside_plain(large, args.rounds) + rates(large, args.rounds))
        add(all_algorithms(large, trained(), 1 + args.rounds // 3))
    if args.device.startswith("cuda"):
        for more in of_a_gpu(args):
            add(more)
    text = f"{machine(args.device)}. Medians of {args.rounds} rounds in turns.\n\n{table(rows)}\n"
    Path(args.output).parent.mkdir(parents=True, exist_ok=True)
    Path(args.output).write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
