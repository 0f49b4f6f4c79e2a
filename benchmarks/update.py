"""Time of one update of every algorithm, as a multiple of ERM's.

The algorithms take turns, and medians are compared, because machines are noisy.
"""

from __future__ import annotations

import argparse
import time
from statistics import median

import torch

from domainbed.algorithms import ALGORITHMS
from domainbed.hparams import default_hparams

PENALTY_FROM_THE_START = {
    "irm_penalty_anneal_iters": 0,
    "vrex_penalty_anneal_iters": 0,
    "penalty_anneal_iters": 0,
}
CYCLE = 2  # DANN's updates alternate between two kinds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--domains", type=int, default=2)
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--size", type=int, default=28, help="side of the images")
    args = parser.parse_args()
    shape = (2, args.size, args.size)
    torch.manual_seed(0)
    minibatches = [
        (torch.rand(args.batch_size, *shape), torch.randint(2, (args.batch_size,)))
        for _ in range(args.domains)
    ]
    algorithms = {}
    for name in ALGORITHMS:
        hparams = {**default_hparams(name, "ColoredMNIST"), **PENALTY_FROM_THE_START}
        algorithm = ALGORITHMS[name](shape, 2, args.domains, hparams)
        algorithms[name] = algorithm.to(memory_format=torch.channels_last)
    times = measure(algorithms, minibatches, args.rounds)
    print(f"{args.domains} domains of {args.batch_size} images {shape}, "
          f"{torch.get_num_threads()} threads, {args.rounds} rounds")  # fmt: skip
    print(f"{'algorithm':10}  {'ms/update':>10}  {'x ERM':>6}")
    for name, seconds in times.items():
        print(f"{name:10}  {1e3 * seconds:10.1f}  {seconds / times['ERM']:6.2f}")


def measure(algorithms: dict, minibatches: list, rounds: int) -> dict[str, float]:
    """Median seconds of an update, by algorithm; the first round warms up."""
    seen: dict[str, list[float]] = {name: [] for name in algorithms}
    for _ in range(rounds + 1):
        for name, algorithm in algorithms.items():
            began = time.perf_counter()
            for _ in range(CYCLE):
                algorithm.update(minibatches)
            seen[name].append((time.perf_counter() - began) / CYCLE)
    return {name: median(values[1:]) for name, values in seen.items()}


if __name__ == "__main__":
    main()
