"""An update of ERM beside the plain baseline's, and of all algorithms, with what is convolutions.

The profiler says which share of a step convolutions take; the same convolutions alone, on the same
shapes and in the same layout, say what rate the machine reaches.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from plain import PlainCNN, PlainERM, plain_resnet
from side_by_side import Row, add_device, in_turns, machine, ratio, table
from torch import nn

from domainbed.algorithms import ALGORITHMS
from domainbed.algorithms.base import Algorithm, Minibatches
from domainbed.hparams import default_hparams
from domainbed.training.machine import to_device

NETWORKS: dict[str, dict[str, Any]] = {
    "mnist": {
        "dataset": "ColoredMNIST",
        "shape": (2, 28, 28),
        "classes": 2,
        "domains": 2,
        "size": 64,
    },
    "resnet18": {"dataset": "PACS", "shape": (3, 224, 224), "classes": 7, "domains": 3, "size": 8},
    "resnet50": {"dataset": "PACS", "shape": (3, 224, 224), "classes": 7, "domains": 3, "size": 32},
}
NAMES = {"mnist": "MNIST CNN", "resnet18": "ResNet-18, 224 px", "resnet50": "ResNet-50, 224 px"}
NEAR_ERM = ("CORAL", "IRM", "VREx", "Fishr")


class Case:
    """A network, minibatches for it, and what trains on them."""

    def __init__(self, network: str, size: int | None, device: str) -> None:
        facts = NETWORKS[network]
        self.network, self.device, self.dataset = network, device, facts["dataset"]
        self.shape, self.classes, self.domains = facts["shape"], facts["classes"], facts["domains"]
        self.size = size or facts["size"]

    def minibatches(self, channels_last: bool = True) -> Minibatches:
        torch.manual_seed(0)
        layout = torch.channels_last if channels_last else torch.contiguous_format
        return [
            (
                torch.rand(self.size, *self.shape, device=self.device).contiguous(
                    memory_format=layout
                ),
                torch.randint(self.classes, (self.size,), device=self.device),
            )
            for _ in range(self.domains)
        ]

    def algorithm(self, name: str, precision: str = "float32") -> Algorithm:
        """With the penalties of methods that begin with none."""
        hparams = default_hparams(name, self.dataset) | {"weights": "none"}
        hparams["resnet18"] = self.network == "resnet18"
        hparams |= {key: 0 for key in hparams if key.endswith("iters")}
        made = ALGORITHMS[name](self.shape, self.classes, self.domains, hparams)
        to_device(made, self.device, precision)
        return made

    def plain(self) -> PlainERM:
        if self.network == "mnist":
            return PlainERM(PlainCNN(self.shape[0], self.classes), self.device)
        return PlainERM(plain_resnet(int(self.network[6:]), self.classes), self.device)

    def autocast(self, precision: str, update: Callable[[], Any]) -> Callable[[], Any]:
        def step() -> None:
            kind = torch.device(self.device).type
            with torch.autocast(kind, torch.bfloat16, precision == "bf16", cache_enabled=False):
                update()

        return step

    def wait(self) -> None:
        if self.device.startswith("cuda"):
            torch.cuda.synchronize()


def beside_plain(case: Case, rounds: int) -> list[Row]:
    """ERM's update in both precisions, and the plain one."""
    erm, in_bf16, plain = case.algorithm("ERM"), case.algorithm("ERM", "bf16"), case.plain()
    ours, theirs = case.minibatches(), case.minibatches(channels_last=False)
    tasks = {
        "plain": lambda: plain.update(theirs),
        "float32": lambda: erm.update(ours),
        "bf16": case.autocast("bf16", lambda: in_bf16.update(ours)),
    }
    seconds = in_turns(tasks, rounds, case.wait)
    targets = {"float32": "not slower", "bf16": "1.8 times"}
    if case.network == "resnet50":
        targets["bf16"] = "2.5 times on a GPU"
    return [
        Row(
            f"update, {NAMES[case.network]}, ERM, {case.domains} × {case.size}, {precision}",
            1e3 * median(seconds[precision]),
            1e3 * median(seconds["plain"]),
            "ms",
            f"{ratio(seconds, 'plain', precision):.2f} times",
            target,
        )
        for precision, target in targets.items()
    ]


def convolution_share(case: Case, update: Callable[[], Any]) -> float:
    """Of the time that the operators of an update take, which has been done before; 0 to 1."""
    from torch.profiler import ProfilerActivity, profile

    on_gpu = case.device.startswith("cuda")
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    for _ in range(2):  # the first profile of a process counts what it takes to begin
        with profile(activities=activities) as profiled:
            update()
            case.wait()
    events = profiled.key_averages()
    total = sum(e.self_device_time_total if on_gpu else e.self_cpu_time_total for e in events)
    names = ("aten::convolution", "aten::convolution_backward")
    own = [e.device_time_total if on_gpu else e.cpu_time_total for e in events if e.key in names]
    return sum(own) / total


def convolutions_alone(case: Case) -> tuple[Callable[[], None], float]:
    """A task: the convolutions of an update of ERM; and their floating-point operations."""
    erm, calls = case.algorithm("ERM"), []
    handles = [
        module.register_forward_hook(
            lambda own, x, y: calls.append((own, x[0].detach(), y.detach()))
        )
        for module in erm.modules()
        if isinstance(module, nn.Conv2d)
    ]
    erm.update(case.minibatches())
    for handle in handles:
        handle.remove()
    operations = 0.0
    for number, (module, _, y) in enumerate(calls):
        each = 2 * y.numel() * module.weight[0].numel()
        operations += each * (2 if number == 0 else 3)  # the images have no gradient

    def task() -> None:
        for number, (module, x, y) in enumerate(calls):
            x = x.requires_grad_(number > 0)
            wanted = [p for p in (x, *module.parameters()) if p.requires_grad]
            torch.autograd.grad(module(x), wanted, y)

    return task, operations


def rates(case: Case, rounds: int) -> list[Row]:
    """The share of convolutions in ERM's update, and their rate there and alone."""
    erm, minibatches = case.algorithm("ERM"), case.minibatches()
    alone, operations = convolutions_alone(case)
    tasks = {"update": lambda: erm.update(minibatches), "alone": alone}
    seconds = in_turns(tasks, rounds, case.wait)
    share = convolution_share(case, tasks["update"])
    within = operations / (share * median(seconds["update"])) / 1e9
    bare = operations / median(seconds["alone"]) / 1e9
    target = "85 %" if case.network == "mnist" else ""
    name = NAMES[case.network]
    rate = f"rate of convolutions, {name}: in the update, and alone"
    said = f"{100 * share:.0f} %"
    return [
        Row(f"share of convolutions, {name}, ERM", None, ratio=said, target=target),
        Row(rate, within, bare, "GFLOP/s", f"{100 * within / bare:.0f} %"),
    ]


def all_algorithms(case: Case, names: list[str], rounds: int) -> list[Row]:
    """Their updates beside ERM's; those of several kinds alternate, so the mean of six counts."""
    minibatches = case.minibatches()
    algorithms = {name: case.algorithm(name) for name in dict.fromkeys(["ERM", *names])}

    def six(algorithm: Algorithm) -> Callable[[], None]:
        return lambda: [algorithm.update(minibatches) for _ in range(6)] and None  # type: ignore[func-returns-value]

    seconds = in_turns({name: six(each) for name, each in algorithms.items()}, rounds, case.wait)
    return [
        Row(
            f"update, {NAMES[case.network]}, {name}",
            1e3 * median(taken) / 6,
            unit="ms",
            ratio=f"{ratio(seconds, name, 'ERM'):.2f} of ERM's, "
            f"{100 * convolution_share(case, six(algorithms[name])):.0f} % convolutions",
            target="1.05 of ERM's" if name in NEAR_ERM else "",
        )
        for name, taken in seconds.items()
        if name != "ERM"
    ]


def trained() -> list[str]:
    return [name for name in ALGORITHMS if not ALGORITHMS[name].needs_features]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--networks", nargs="+", choices=list(NETWORKS), default=["mnist", "resnet18"]
    )
    parser.add_argument("--batch_sizes", nargs="+", type=int, default=[None], help="per domain")
    parser.add_argument("--algorithms", nargs="*", choices=trained(), default=trained())
    add_device(parser)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    rows: list[Row] = []
    for network in args.networks:
        for size in args.batch_sizes:
            rows += beside_plain(Case(network, size, args.device), args.rounds)
        case = Case(network, None, args.device)
        rows += rates(case, args.rounds)
        rows += all_algorithms(case, args.algorithms, args.rounds)
    print(machine(args.device), table(rows), sep="\n\n")


if __name__ == "__main__":
    main()
