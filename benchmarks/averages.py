"""What averages of weights add to an update: ERM with and without each, on one thread.

The networks of the published protocol, on random images in minibatches of 32 per domain. Updates
and averages take turns, and medians are compared: of the processor's time, or on a GPU of the
clock's.
"""

from __future__ import annotations

import argparse
import time
from statistics import median

import torch

from domainbed.algorithms import ERM
from domainbed.hparams import default_hparams
from domainbed.training.averages import EMA, SMA, SWAD

CASES = {
    "ColoredMNIST, MNIST CNN": ("ColoredMNIST", (2, 28, 28), 2, {"batch_size": 32}),
    "PACS, ResNet-18": ("PACS", (3, 224, 224), 7, {"resnet18": True, "weights": "none"}),
    "PACS, ResNet-50": ("PACS", (3, 224, 224), 7, {"weights": "none"}),
}
DOMAINS, IMAGES = 3, 32


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--images", type=int, default=IMAGES, help="per domain")
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES))
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{'':24} {'update':>10} {'EMA':>8} {'SMA':>8} {'SWAD':>8}  of an update")
    for name in args.cases:
        update, *added = measure(name, args.images, args.rounds)
        shares = " ".join(f"{100 * each / update:7.2f}%" for each in added)
        print(f"{name:24} {1000 * update:7.1f} ms {shares}", flush=True)


def measure(case: str, images: int, rounds: int) -> list[float]:
    """Seconds of an update, and of taking its weights into each of the averages."""
    dataset, shape, classes, chosen = CASES[case]
    hparams = {**default_hparams("ERM", dataset), **chosen}
    algorithm = ERM(shape, classes, DOMAINS, hparams)
    minibatches = [
        (torch.randn(images, *shape), torch.randint(classes, (images,))) for _ in range(DOMAINS)
    ]
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    algorithm.to(device)
    minibatches = [(x.to(device), y.to(device)) for x, y in minibatches]
    weights = [each.detach() for each in algorithm.parameters()]
    averages = [EMA(weights, 0.999), SMA(weights, 1), SWAD(weights, 3, 6, 1.3)]

    def take_in(average: EMA | SMA | SWAD) -> None:
        """As the trainer does: with the search for the tensors."""
        named = dict(algorithm.named_parameters()) | dict(algorithm.named_buffers())
        average.add([named[name].detach() for name, _ in algorithm.named_parameters()])

    tasks = [lambda: algorithm.update(minibatches)]
    tasks += [lambda average=average: take_in(average) for average in averages]
    seconds: list[list[float]] = [[] for _ in tasks]
    now = time.perf_counter if device.type == "cuda" else time.process_time
    for _ in range(rounds + 1):
        for task, taken in zip(tasks, seconds):
            began = now()
            task()
            if device.type == "cuda":
                torch.cuda.synchronize()
            taken.append(now() - began)
    return [median(taken[1:]) for taken in seconds]


if __name__ == "__main__":
    main()
