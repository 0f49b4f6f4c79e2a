"""An update of ERM as it is, beside the same one compiled, and on a GPU captured as a CUDA graph.

What `torch.compile` takes is the featurizer. A captured update has no work for Python left, but
takes minibatches of one size, which have to be copied to where they were when it was captured.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from side_by_side import Row, add_device, in_turns, machine, ratio, table
from train_step import NAMES, NETWORKS, Case

WARM_UP = 3  # updates before a capture, as PyTorch's documentation has it


def compiled(case: Case, mode: str) -> tuple[Callable[[], Any], float]:
    """The update of a compiled ERM, and the seconds of the first, which compiles."""
    erm, minibatches = case.algorithm("ERM"), case.minibatches()
    erm.get_submodule("featurizer").compile(mode=mode)
    began = time.perf_counter()
    erm.update(minibatches)
    case.wait()
    return lambda: erm.update(minibatches), time.perf_counter() - began


def captured(case: Case) -> Callable[[], None]:
    """Copies a minibatch, and does an update of ERM that was captured: on a GPU."""
    erm, drawn, static = case.algorithm("ERM"), case.minibatches(), case.minibatches()
    for group in erm.optimizer.param_groups:
        group["capturable"] = True
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARM_UP):
            erm.update(static)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        erm.update(static)

    def update() -> None:
        for target, source in zip(static, drawn):
            for t, s in zip(target, source):
                t.copy_(s)
        graph.replay()

    return update


def rows(case: Case, rounds: int) -> list[Row]:
    """All ways take turns; each starts from weights of its own."""
    erm, minibatches = case.algorithm("ERM"), case.minibatches()
    on_gpu = case.device.startswith("cuda")
    tasks: dict[str, Callable[[], Any]] = {"as it is": lambda: erm.update(minibatches)}
    first = {}
    for mode in ("default", *(["reduce-overhead"] if on_gpu else [])):
        tasks[f"compiled, {mode}"], first[f"compiled, {mode}"] = compiled(case, mode)
    if on_gpu:
        tasks["captured as a CUDA graph"] = captured(case)
    seconds = in_turns(tasks, rounds, case.wait)
    what = f"update, {NAMES[case.network]}, ERM, {case.domains} × {case.size}"
    return [
        Row(f"{what}, {name}; as it is", 1e3 * median(taken), 1e3 * median(seconds["as it is"]),
            "ms", f"{ratio(seconds, 'as it is', name):.2f} times{_told(first.get(name))}")
        for name, taken in seconds.items()
        if name != "as it is"
    ]  # fmt: skip


def _told(first: float | None) -> str:
    return "" if first is None else f", first update {first:.0f} s"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--networks", nargs="+", choices=list(NETWORKS), default=["mnist"])
    parser.add_argument("--rounds", type=int, default=9)
    add_device(parser)
    args = parser.parse_args()
    found = [
        row for name in args.networks for row in rows(Case(name, None, args.device), args.rounds)
    ]
    print(machine(args.device), table(found), sep="\n\n")


if __name__ == "__main__":
    main()
