"""Minibatches per second: gathered from tensors, against one `DataLoader` per domain.

The loaders sample with replacement and run worker processes, as is common practice and as in
DomainBed. The two take turns in chunks, and medians are compared.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from statistics import median

import torch
from torch.utils.data import DataLoader, RandomSampler, TensorDataset

from domainbed.datasets.domain import TensorDomain
from domainbed.training.sampling import IndexDraws, minibatches


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=18_666, help="per domain")
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--domains", type=int, default=2)
    parser.add_argument("--workers", type=int, default=2, help="worker processes per loader")
    parser.add_argument("--chunk", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    shape = (2, 28, 28)
    domains = [
        (torch.rand(args.images, *shape), torch.randint(2, (args.images,)))
        for _ in range(args.domains)
    ]
    sources = {"gathered": gathered(domains, args), "one loader per domain": loaded(domains, args)}
    rates = measure(sources, args.chunk, args.rounds)
    print(f"{args.domains} domains, {args.batch_size} images of {shape} each, "
          f"{args.workers} workers per loader")  # fmt: skip
    for name, rate in rates.items():
        print(f"{name:22}  {rate:8.0f} steps/s")
    print(f"ratio {rates['gathered'] / rates['one loader per domain']:.1f}")


def gathered(domains: list, args: argparse.Namespace) -> Iterator:
    draws = [
        IndexDraws(range(args.images), args.batch_size, seed=0, domain=i)
        for i in range(len(domains))
    ]
    return minibatches([TensorDomain(x, y) for x, y in domains], draws, range(10**9))


def loaded(domains: list, args: argparse.Namespace) -> Iterator:
    loaders = []
    for x, y in domains:
        data = TensorDataset(x, y)
        sampler = RandomSampler(data, replacement=True, num_samples=10**7)
        loaders.append(DataLoader(data, args.batch_size, sampler=sampler, num_workers=args.workers))
    return zip(*loaders)


def measure(sources: dict[str, Iterator], chunk: int, rounds: int) -> dict[str, float]:
    """Median steps per second, by source; the first chunk warms up."""
    seen: dict[str, list[float]] = {name: [] for name in sources}
    for _ in range(rounds + 1):
        for name, source in sources.items():
            began = time.perf_counter()
            for _ in range(chunk):
                next(source)
            seen[name].append(chunk / (time.perf_counter() - began))
    return {name: median(values[1:]) for name, values in seen.items()}


if __name__ == "__main__":
    main()
