"""What Fishr costs: its penalty by several methods, and its update beside ERM's.

Time is that of the penalty and its backward pass to features and classifier, with the methods
taking turns and medians compared. Memory is the peak that one penalty adds to a fresh process
(on a GPU: to PyTorch's allocator).
"""

from __future__ import annotations

import argparse
import gc
import multiprocessing
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
from backpack import backpack, extend
from backpack.extensions import BatchGrad, SumGradSquared
from torch import nn

from domainbed.algorithms import get_algorithm_class
from domainbed.algorithms.fishr import fishr_penalty
from domainbed.gradients import gradient_variances
from domainbed.hparams import default_hparams

SIZES = {  # features, classes, domains, images a domain
    "ColoredMNIST": (128, 2, 2, 64),
    "PACS": (2048, 7, 3, 32),
    "OfficeHome": (2048, 65, 3, 32),
    "DomainNet": (2048, 345, 5, 32),
}
Problem = tuple[nn.Linear, torch.Tensor, torch.Tensor, list[int]]


def batch_grad(head: nn.Linear, z: torch.Tensor, y: torch.Tensor, sizes: list[int]) -> torch.Tensor:
    """All gradients of all samples, as Fishr's authors do it."""
    extended = extend(head)
    loss = nn.functional.cross_entropy(extended(z), y, reduction="sum")
    with backpack(BatchGrad()):
        loss.backward(inputs=[*head.parameters(), z], create_graph=True, retain_graph=True)
    rows = torch.cat([p.grad_batch.flatten(1) for p in head.parameters()], dim=1)
    return torch.stack([(g - g.mean(0)).square().mean(0) for g in rows.split(sizes)])


def summed(head: nn.Linear, z: torch.Tensor, y: torch.Tensor, sizes: list[int]) -> torch.Tensor:
    """Sums of squares alone, one backward pass a domain."""
    extended, variances = extend(head), []
    for z_e, y_e in zip(z.split(sizes), y.split(sizes)):
        loss = nn.functional.cross_entropy(extended(z_e), y_e, reduction="sum")
        targets = [*head.parameters(), z_e]
        with backpack(SumGradSquared()):
            means = torch.autograd.grad(loss / len(z_e), targets, create_graph=True)
        squares = [p.sum_grad_squared * len(z_e) for p in head.parameters()]
        variances.append(torch.cat([(s - m.square()).flatten() for s, m in zip(squares, means)]))
    return torch.stack(variances)


def func(head: nn.Linear, z: torch.Tensor, y: torch.Tensor, sizes: list[int]) -> torch.Tensor:
    return gradient_variances(head, z, y, sizes, method="func")


METHODS: dict[str, Callable[..., torch.Tensor]] = {
    "BackPACK BatchGrad": batch_grad,
    "BackPACK sums": summed,
    "torch.func": func,
    "domainbed": gradient_variances,
}


def make(size: tuple[int, int, int, int], device: str) -> Problem:
    width, classes, domains, batch = size
    torch.manual_seed(0)
    head = nn.Linear(width, classes).to(device)
    z = torch.randn(domains * batch, width, device=device).relu().requires_grad_()
    y = torch.randint(classes, (domains * batch,), device=device)
    return head, z, y, [batch] * domains


def penalty_and_backward(method: str, problem: Problem) -> None:
    """One penalty, with its derivatives left at features and classifier."""
    head, z, *_ = problem
    fishr_penalty(METHODS[method](*problem)).backward(inputs=[z, *head.parameters()])


def clear(problem: Problem) -> None:
    head, z, *_ = problem
    for tensor in (z, *head.parameters()):
        tensor.grad = None
        for left in ("grad_batch", "sum_grad_squared"):
            if hasattr(tensor, left):
                delattr(tensor, left)
    gc.collect()  # BackPACK leaves cycles


def seconds(method: str, size: tuple[int, int, int, int], device: str) -> float:
    problem = make(size, device)
    began = time.perf_counter()
    penalty_and_backward(method, problem)
    if device == "cuda":
        torch.cuda.synchronize()
    taken = time.perf_counter() - began
    clear(problem)
    return taken


def peak_mib(method: str, size: tuple[int, int, int, int], device: str) -> float:
    """Peak extra memory of one penalty; on the CPU in this process, which must be fresh."""
    warm_up = make((8, 3, size[2], 4), device)
    penalty_and_backward(method, warm_up)
    clear(warm_up)
    problem = make(size, device)
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        penalty_and_backward(method, problem)
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = _status("VmRSS")
    penalty_and_backward(method, problem)
    return (_status("VmHWM") - before) / 2**10


def _status(field: str) -> int:
    """A field of Linux's account of this process, in KiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field))


def penalty_table(rounds: int, device: str) -> None:
    print(f"{'size':13} {'method':19} {'ms':>9} {'faster':>7} {'MiB':>8} {'leaner':>7}")
    for name, size in SIZES.items():
        times: dict[str, list[float]] = {method: [] for method in METHODS}
        for _ in range(rounds + 1):
            for method in METHODS:
                times[method].append(seconds(method, size, device))
        middle = {method: median(values[1:]) for method, values in times.items()}
        peaks = {}
        for method in METHODS:
            with multiprocessing.get_context("spawn").Pool(1) as fresh:
                peaks[method] = fresh.apply(peak_mib, (method, size, device))
        first = next(iter(METHODS))
        for method in METHODS:
            print(
                f"{name:13} {method:19} {1e3 * middle[method]:9.2f} "
                f"{middle[first] / middle[method]:7.1f} {peaks[method]:8.1f} "
                f"{peaks[first] / max(peaks[method], 0.1):7.1f}"
            )


def update_table(rounds: int, device: str) -> None:
    """Whole updates of Fishr and ERM, the penalty on from the start."""
    cases = {
        "MNIST CNN": ("ColoredMNIST", (2, 28, 28), 2, 64, {}),
        "ResNet-18": ("PACS", (3, 224, 224), 3, 8, {"resnet18": True, "weights": "none"}),
    }
    print(f"\n{'network':10} {'batch':>7} {'ERM ms':>9} {'Fishr ms':>9} {'ratio':>6}")
    for network, (dataset, shape, domains, batch, hparams) in cases.items():
        classes = 2 if dataset == "ColoredMNIST" else 7
        minibatches = [
            (
                torch.rand(batch, *shape, device=device).to(memory_format=torch.channels_last),
                torch.randint(classes, (batch,), device=device),
            )
            for _ in range(domains)
        ]
        algorithms = {}
        for name in ("ERM", "Fishr"):
            chosen = {**default_hparams(name, dataset), **hparams, "penalty_anneal_iters": 0}
            algorithm = get_algorithm_class(name)(shape, classes, domains, chosen)
            algorithms[name] = algorithm.to(device, memory_format=torch.channels_last)
        times: dict[str, list[float]] = {name: [] for name in algorithms}
        for round_ in range(rounds + 1):
            order = list(algorithms) if round_ % 2 else list(algorithms)[::-1]
            for name in order:
                began = time.perf_counter()
                algorithms[name].update(minibatches)
                times[name].append(time.perf_counter() - began)
        erm, fishr = (median(values[1:]) for values in times.values())
        ratios = [f / e for e, f in zip(times["ERM"][1:], times["Fishr"][1:])]
        print(
            f"{network:10} {domains:>3} x {batch} {1e3 * erm:9.1f} {1e3 * fishr:9.1f} "
            f"{median(ratios):6.3f}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    print(f"{args.device}, {torch.get_num_threads()} threads, medians of {args.rounds} rounds")
    penalty_table(args.rounds, args.device)
    update_table(args.rounds, args.device)


if __name__ == "__main__":
    main()
