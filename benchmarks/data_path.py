"""Images per second and core, augmented, in minibatches: plain PIL, the exact and the fast path.

All work in this process, on one thread, on PACS in the folder that DOMAINBED_DATA_DIR (or
--data_dir) names. They take turns, and medians of the processor's time are compared. With a GPU,
a training step of ResNet-50 fed by the fast path is compared with the same step on one minibatch
that stays.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import torch
from side_by_side import Row, in_turns, ratio, table
from torch.utils.data import DataLoader, RandomSampler
from torchvision import transforms
from torchvision.datasets import ImageFolder

from domainbed.core.cores import usable_cores
from domainbed.datasets import domains_of, load_dataset
from domainbed.training.sampling import IndexDraws, minibatches

DOMAINS = range(3)
GPU_STEPS = 10  # in a round
STEPS = range(10**9)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data_dir", default=os.environ.get("DOMAINBED_DATA_DIR", "data"))
    parser.add_argument("--batch_size", type=int, default=32, help="images per domain")
    parser.add_argument("--steps", type=int, default=1, help="per round")
    parser.add_argument("--rounds", type=int, default=15)
    args = parser.parse_args()
    if not (Path(args.data_dir) / "PACS").is_dir():
        print(f"no PACS in {args.data_dir!r}: nothing is measured")
        return
    torch.set_num_threads(1)
    with own_cache():
        place = (args.data_dir, args.batch_size, "cpu")
        sources = {
            "plain PIL": plain(args),
            "exact": ours(*place),
            "fast, raw": ours(*place, data_path="fast"),
            "fast, jpeg": ours(*place, data_path="fast", packed_format="jpeg"),
        }
        images = args.batch_size * len(DOMAINS) * args.steps
        seconds = measure(sources, args.steps, args.rounds, time.process_time)
        print_table({name: images / each for name, each in seconds.items()})
        if torch.cuda.is_available():
            rows = rows_on_a_gpu(args.data_dir, args.batch_size, args.rounds)
            print(table(rows))


@contextmanager
def own_cache() -> Iterator[None]:
    """Where packed images go, and are removed at the end."""
    with tempfile.TemporaryDirectory() as cache:
        os.environ["DOMAINBED_CACHE_DIR"] = cache
        yield


def plain(args: argparse.Namespace) -> Iterator[Any]:
    """The published transforms over PIL images, and one loader per domain."""
    transform = transforms.Compose(
        [
            transforms.RandomResizedCrop(224, scale=(0.7, 1.0)),
            transforms.RandomHorizontalFlip(),
            transforms.ColorJitter(0.3, 0.3, 0.3, 0.3),
            transforms.RandomGrayscale(0.1),
            transforms.ToTensor(),
            transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ]
    )
    loaders = []
    for folder in sorted((Path(args.data_dir) / "PACS").iterdir())[: len(DOMAINS)]:
        data = ImageFolder(str(folder), transform)
        sampler = RandomSampler(data, replacement=True, num_samples=10**7)
        loaders.append(DataLoader(data, args.batch_size, sampler=sampler))
    return zip(*loaders)


def ours(
    data_dir: str, batch_size: int, device: str, threads: int = 0, **hparams: Any
) -> Iterator[Any]:
    dataset = load_dataset("PACS", data_dir, [3], hparams, trial_seed=0)
    domains = [domain.to(torch.device(device)) for domain in domains_of(dataset)]
    draws = [IndexDraws(range(len(domains[i])), batch_size, 0, i) for i in DOMAINS]
    return minibatches(domains, draws, STEPS, DOMAINS, workers=threads)


def measure(
    sources: dict[str, Iterator[Any]], steps: int, rounds: int, clock: Callable[[], float]
) -> dict[str, float]:
    """Median seconds of `steps` steps, by source; the first round warms up."""
    seen: dict[str, list[float]] = {name: [] for name in sources}
    for _ in range(rounds + 1):
        for name, source in sources.items():
            began = clock()
            for _ in range(steps):
                next(source)
            seen[name].append(clock() - began)
    return {name: median(values[1:]) for name, values in seen.items()}


def print_table(rates: dict[str, float]) -> None:
    print("| path | images/s | ratio |\n|:--|--:|--:|")
    for name, rate in rates.items():
        print(f"| {name} | {rate:.0f} | {rate / rates['plain PIL']:.1f} |")


def rows_on_a_gpu(data_dir: str, batch_size: int, rounds: int) -> list[Row]:
    """A step of ResNet-50 with minibatches of the fast path, beside one with one that stays."""
    from torchvision.models import resnet50

    network = resnet50().cuda().to(memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(network.parameters(), lr=5e-5)
    threads = min(8, usable_cores())
    fast = ours(data_dir, batch_size, "cuda", threads=threads, data_path="fast")

    def step(batches: Any) -> None:
        x, y = (torch.cat(tensors) for tensors in zip(*batches))
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(network(x), y).backward()
        optimizer.step()

    stays = next(fast)
    tasks = {
        "stays": lambda: [step(stays) for _ in range(GPU_STEPS)],
        "fast": lambda: [step(next(fast)) for _ in range(GPU_STEPS)],
    }
    seconds = in_turns(tasks, rounds, torch.cuda.synchronize)
    here, there = (1e3 * median(seconds[name]) / GPU_STEPS for name in ("fast", "stays"))
    what = f"step of ResNet-50, {len(DOMAINS)} × {batch_size} of PACS: fast path, {threads} threads"
    said = f"{ratio(seconds, 'stays', 'fast'):.2f} times"
    return [Row(f"{what}; one minibatch that stays", here, there, "ms", said)]


if __name__ == "__main__":
    main()
