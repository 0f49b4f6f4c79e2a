"""Time and memory of one update of every algorithm, beside the passes that its mathematics needs.

A pass is measured in the same run, on the same network: forward and backward of all domains' images
at once or of one domain's, the derivatives of gradients, a step of Adam, the additional networks.
`PASSES` counts what the equations of a method ask for, on average over its kinds of updates. Passes
and algorithms take turns, and medians are compared, because machines are noisy.
"""

from __future__ import annotations

import argparse
import copy
import multiprocessing
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from side_by_side import add_device
from torch import nn
from torch.nn import functional as F

from domainbed.algorithms import ALGORITHMS, ERM
from domainbed.algorithms.base import Algorithm, Minibatches
from domainbed.hparams import default_hparams

Counts = Mapping[str, float]

ONE_PASS: Counts = {"pass": 1, "step": 1}
"""ERM's; that of every method that is not named below."""

PASSES: dict[str, Callable[[int], Counts]] = {
    **dict.fromkeys(
        ("SAM", "ASAM", "GSAM", "SAGM"), lambda domains: {"pass": 2, "step": 1, "copy": 4}
    ),
    "LfF": lambda domains: {"pass": 2, "step": 2},
    **dict.fromkeys(("MIRO", "JTT"), lambda domains: {**ONE_PASS, "forward": 1}),
    # A step, and two places of a search.
    "GGA": lambda domains: {"pass": 1, "domain pass": 2 * domains, "step": 1, "copy": 2},
    "GGA_L": lambda domains: {"domain pass": domains, "step": 1},
    # Of E + 1 turns one is of the featurizer, the others are of a head.
    "IRMGames": lambda domains: {
        **{"pass": 1 / (domains + 1), "forward": 1 / (domains + 1), "step": 1},
        "head pass": 1 / (domains + 1),
    },
    "FACT": lambda domains: {"pass": 2, "forward": 2, "step": 1, "copy": 1},
    "Fish": lambda domains: {"domain pass": domains, "step": domains, "copy": 2},
    "ERMPlusPlus": lambda domains: {"pass": 1, "step": 1, "copy": 1},
    "DANN": lambda domains: {"pass": 0.5, "forward": 0.5, "step": 0.5, "discriminator": 1},
    "CDANN": lambda domains: {"pass": 0.5, "forward": 0.5, "step": 0.5, "discriminator": 1},
    "SagNet": lambda domains: {"pass": 2, "forward": 1, "step": 2, "head pass": 1},
    "ADRMX": lambda domains: {
        **{"pass": 2 / 3, "forward": 4 / 3, "step": 2 / 3, "deep discriminator": 1, "head pass": 1}
    },
    "URM": lambda domains: {"pass": 1, "step": 1, "noise discriminator": 2},
    "ARM": lambda domains: {**ONE_PASS, "context map": 1},
    "RSC": lambda domains: {**ONE_PASS, "head pass": 2},
    "SelfReg": lambda domains: {**ONE_PASS, "projection": 1},
    # One meta-test domain of two, two of more; the inner step of each pair is one of Adam.
    "MLDG": lambda domains: (
        {"domain pass": 2 * max(1, domains - 2), "step": 1 + max(1, domains - 2)}
    ),
    "ANDMask": lambda domains: {"domain pass": domains, "step": 1},
    "SANDMask": lambda domains: {"domain pass": domains, "step": 1},
    "IGA": lambda domains: {"second-order domain pass": domains, "step": 1},
    # 30 steps of the heads, their risks on each domain, and ten products with Hessians.
    "TRM": lambda domains: {"pass": 1, "step": 1, "head pass": 30 + domains + 2 * 10},
    "Transfer": lambda domains: {"pass": 2, "forward": 1, "step": 2, "head pass": 10},
}
"""By the number of training domains: of which pass how many, on average over a cycle of updates."""

CYCLE = 6  # a multiple of the lengths of all cycles: DANN's kinds of updates alternate, say


@dataclass(frozen=True)
class Setting:
    """What all algorithms update on."""

    domains: int
    batch_size: int
    shape: tuple[int, int, int]
    classes: int
    device: str

    def minibatches(self) -> Minibatches:
        torch.manual_seed(0)
        pairs = []
        for _ in range(self.domains):
            x = torch.rand(self.batch_size, *self.shape, device=self.device)
            y = torch.randint(self.classes, (self.batch_size,), device=self.device)
            pairs.append((x.contiguous(memory_format=torch.channels_last), y))
        return pairs

    def build(self, name: str) -> Algorithm:
        """With everything that begins late begun."""
        hparams = default_hparams(name, "ColoredMNIST") | {"weights": "none", "resnet18": True}
        hparams |= {key: 0 for key in hparams if key.endswith("iters")}
        hparams |= {"linear_steps": 0, "sma_start": 1, "jtt_first": 0.0}
        hparams |= {"gga_start": 0, "gga_searches": 1}
        algorithm = ALGORITHMS[name](self.shape, self.classes, self.domains, hparams)
        return algorithm.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--algorithms", nargs="*", default=list(ALGORITHMS), metavar="NAME")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--domains", type=int, default=2)
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--channels", type=int, default=2)
    parser.add_argument("--size", type=int, default=28, help="side of the images")
    parser.add_argument("--classes", type=int, default=2)
    add_device(parser)
    args = parser.parse_args()
    shape = (args.channels, args.size, args.size)
    setting = Setting(args.domains, args.batch_size, shape, args.classes, args.device)
    names = list(dict.fromkeys(["ERM", *args.algorithms]))
    memory = {name: peak_memory(setting, name) for name in names}
    passes, updates = measure(setting, names, args.rounds)
    print(f"{args.domains} domains of {args.batch_size} images {shape}, {args.classes} classes, "
          f"{args.device}, {torch.get_num_threads()} threads, {args.rounds} rounds")  # fmt: skip
    print_passes(passes)
    print_updates(setting, passes, updates, memory)


def print_passes(passes: Mapping[str, float]) -> None:
    print("\n| pass | ms |\n| --- | ---: |")
    for name, seconds in passes.items():
        print(f"| {name} | {1e3 * seconds:.2f} |")


def print_updates(
    setting: Setting,
    passes: Mapping[str, float],
    updates: Mapping[str, float],
    memory: Mapping[str, float],
) -> None:
    print("\n| algorithm | ms/update | x ERM | x its passes | peak MB | passes |")
    print("| --- | ---: | ---: | ---: | ---: | --- |")
    for name, seconds in updates.items():
        counts = counts_of(name, setting.domains)
        expected = sum(count * passes[each] for each, count in counts.items())
        said = ", ".join(f"{count:g} {each}" for each, count in counts.items())
        print(
            f"| {name} | {1e3 * seconds:.1f} | {seconds / updates['ERM']:.2f} | "
            f"{seconds / expected:.2f} | {memory[name]:.0f} | {said} |"
        )


def counts_of(name: str, domains: int) -> Counts:
    return PASSES[name](domains) if name in PASSES else ONE_PASS


def measure(
    setting: Setting, names: list[str], rounds: int
) -> tuple[dict[str, float], dict[str, float]]:
    """Median seconds of every pass that is needed, and of an update; the first round warms up."""
    minibatches = setting.minibatches()
    algorithms = {name: setting.build(name) for name in names}
    needed = {each for name in names for each in counts_of(name, setting.domains)}
    known = {
        name: work for name, work in all_passes(setting, minibatches).items() if name in needed
    }
    work = {f"pass {name}": (each, 1) for name, each in known.items()}
    for name, algorithm in algorithms.items():
        work[f"update {name}"] = (lambda own=algorithm: own.update(minibatches), CYCLE)
    seconds: dict[str, list[float]] = {name: [] for name in work}
    for _ in range(rounds + 1):
        for name, (each, times) in work.items():
            seconds[name].append(timed(each, times, setting.device))
    medians = {name: median(values[1:]) for name, values in seconds.items()}
    return tuple(
        {n.removeprefix(kind): v for n, v in medians.items() if n.startswith(kind)}
        for kind in ("pass ", "update ")
    )  # type: ignore[return-value]


def timed(work: Callable[[], Any], times: int, device: str) -> float:
    """Seconds of one call, the mean of several."""
    wait(device)
    began = time.perf_counter()
    for _ in range(times):
        work()
    wait(device)
    return (time.perf_counter() - began) / times


def wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def all_passes(setting: Setting, minibatches: Minibatches) -> dict[str, Callable[[], Any]]:
    """Each pass by its name, on the network of ERM and the networks that methods add to it."""
    erm = setting.build("ERM")
    assert isinstance(erm, ERM)
    network, parameters = erm.network, list(erm.network.parameters())
    x, y = torch.cat([x for x, _ in minibatches]), torch.cat([y for _, y in minibatches])
    clone = copy.deepcopy(network)
    with torch.no_grad():
        z = erm.featurizer(x)

    def forward() -> None:
        with torch.no_grad():
            erm.featurizer(x)

    def one_pass() -> None:
        network.zero_grad()
        F.cross_entropy(network(x), y).backward()

    def domain_pass() -> None:
        own_x, own_y = minibatches[0]
        torch.autograd.grad(F.cross_entropy(network(own_x), own_y), parameters)

    def second_order_pass() -> None:
        own_x, own_y = minibatches[0]
        loss = F.cross_entropy(network(own_x), own_y)
        gradients = torch.autograd.grad(loss, parameters, create_graph=True)
        torch.autograd.grad(sum(g.square().sum() for g in gradients), parameters)

    def head_pass() -> None:
        features = z.detach().requires_grad_()
        F.cross_entropy(erm.classifier(features), y).backward()

    def step() -> None:
        erm.optimizer.step()

    def copy_weights() -> None:
        clone.load_state_dict(network.state_dict())

    one_pass()
    return {
        "pass": one_pass,
        "forward": forward,
        "domain pass": domain_pass,
        "second-order domain pass": second_order_pass,
        "head pass": head_pass,
        "step": step,
        "copy": copy_weights,
        **added_networks(setting, x, z),
    }


def added_networks(
    setting: Setting, x: torch.Tensor, z: torch.Tensor
) -> dict[str, Callable[[], Any]]:
    """Of the networks that single methods have besides: what each update does with them."""
    owners = {
        "discriminator": ("DANN", "discriminator", z, _trained),
        "deep discriminator": ("ADRMX", "discriminator", z, _trained),
        "noise discriminator": ("URM", "discriminator", z, _trained),
        "context map": ("ARM", "context_net", x, _forward),
        "projection": ("SelfReg", "cdpl", z, _forward_and_backward),
    }
    return {
        name: work(getattr(setting.build(owner), attribute), inputs)
        for name, (owner, attribute, inputs, work) in owners.items()
        if owner in ALGORITHMS
    }


def _forward(network: nn.Module, inputs: torch.Tensor) -> Callable[[], None]:
    def work() -> None:
        with torch.no_grad():
            network(inputs)

    return work


def _forward_and_backward(network: nn.Module, inputs: torch.Tensor) -> Callable[[], None]:
    def work() -> None:
        network.zero_grad()
        network(inputs.detach().requires_grad_()).square().mean().backward()

    return work


def _trained(network: nn.Module, inputs: torch.Tensor) -> Callable[[], None]:
    optimizer = torch.optim.Adam(network.parameters())

    def work() -> None:
        optimizer.zero_grad()
        network(inputs.detach().requires_grad_()).square().mean().backward()
        optimizer.step()

    return work


def peak_memory(setting: Setting, name: str) -> float:
    """MB that an algorithm and a cycle of its updates take, in a process of their own."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        return pool.apply(_peak_memory, (setting, name))


def _peak_memory(setting: Setting, name: str) -> float:
    minibatches = setting.minibatches()
    before = _resident("VmRSS")
    algorithm = setting.build(name)
    for _ in range(CYCLE):
        algorithm.update(minibatches)
    if setting.device.startswith("cuda"):
        return torch.cuda.max_memory_allocated() / 2**20
    return (_resident("VmHWM") - before) / 2**10


def _resident(field: str) -> int:
    """kB of memory of this process, from Linux' account of it."""
    status = Path("/proc/self/status").read_text()
    found = re.search(rf"^{field}:\s+(\d+)", status, re.MULTILINE)
    assert found
    return int(found.group(1))


if __name__ == "__main__":
    main()
