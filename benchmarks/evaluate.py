"""Evaluating images of ColoredMNIST's shape, per image and as one record of all 70,000 of them."""

from __future__ import annotations

import argparse
from statistics import median

import torch
from plain import PlainCNN, PlainERM
from side_by_side import Row, add_device, in_turns, machine, ratio, table
from torch.utils.data import TensorDataset
from train_step import Case

from domainbed.datasets.small_images import ByteImages
from domainbed.training.evaluation import EvaluationSplit, Evaluator

ALL = 70_000
TARGETS = {"float32": "", "bf16": "2 times"}


def rows(images: int, rounds: int, device: str = "cpu") -> list[Row]:
    """The seconds of a record of all images, from those of some."""
    generator = torch.Generator().manual_seed(0)
    levels = torch.randint(256, (images, 28, 28), dtype=torch.uint8, generator=generator)
    shown = torch.rand(images, 1, generator=generator) < 0.5
    kept = ByteImages(levels, torch.randint(2, (images,)), torch.cat([shown, ~shown], 1))
    case = Case("mnist", None, device)
    erm, in_bf16 = case.algorithm("ERM"), case.algorithm("ERM", "bf16")
    plain = PlainERM(PlainCNN(2, 2), device)
    evaluator = Evaluator([kept.to(torch.device(device))])
    split, data = EvaluationSplit(0, "in", list(range(images))), TensorDataset(*kept.tensors)
    tasks = {
        "plain": lambda: plain.accuracy(data),
        "float32": lambda: evaluator.evaluate(erm, [split], 0),
        "bf16": case.autocast("bf16", lambda: evaluator.evaluate(in_bf16, [split], 0)),
    }
    seconds = in_turns(tasks, rounds, case.wait)
    whole = {name: ALL / images * median(taken) for name, taken in seconds.items()}
    return [
        Row(
            f"evaluating {ALL:,} images, {precision}",
            whole[precision],
            whole["plain"],
            ratio=f"{ratio(seconds, 'plain', precision):.2f} times",
            target=target,
        )
        for precision, target in TARGETS.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=2048, help="that are timed")
    parser.add_argument("--rounds", type=int, default=5)
    add_device(parser)
    args = parser.parse_args()
    print(machine(args.device), table(rows(args.images, args.rounds, args.device)), sep="\n\n")


if __name__ == "__main__":
    main()
