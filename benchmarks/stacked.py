"""Runs of ERM with one network and batch size: as one batched model, one by one, by processes.

Each run has its own seed, minibatches, learning rate and weight decay. That the stacked runs end
with the weights of separate ones is checked first, in double precision. Minibatches are drawn
within what is timed.
"""

from __future__ import annotations

import argparse
import copy
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from statistics import median

import torch
from side_by_side import Row, add_device, in_turns, machine, ratio, table
from torch.func import functional_call, stack_module_state, vmap
from torch.nn import functional as F

from domainbed.algorithms.base import Minibatches, concatenate
from domainbed.config.run_fields import RunOptions
from domainbed.core.cores import usable_cores
from domainbed.spec import RunSpec
from domainbed.training.experiment import Experiment, build

STEPS = range(10**9)
BETAS, EPS = (0.9, 0.999), 1e-8  # of PyTorch's Adam


@dataclass(frozen=True)
class Setting:
    """What is trained where."""

    dataset: str
    runs: int
    batch_size: int
    device: str
    data_dir: str

    def experiment(self, number: int) -> Experiment:
        """Of one run, whose hyper-parameters are its own."""
        hparams = {
            "batch_size": self.batch_size,
            "lr": 10 ** (-4 + number / self.runs),
            "weight_decay": 10.0 ** (-6 + number % 4),
        }
        spec = RunSpec.create(self.dataset, "ERM", [2], hparams_seed=number, hparams=hparams)
        return build(spec, RunOptions(device=self.device, data_dir=self.data_dir))

    def wait(self) -> None:
        if self.device.startswith("cuda"):
            torch.cuda.synchronize()


class Separate:
    """Runs that take turns in this process."""

    def __init__(self, setting: Setting, numbers: range) -> None:
        self._setting = setting
        self._runs = [setting.experiment(number) for number in numbers]
        self._minibatches = [run.minibatches(STEPS) for run in self._runs]

    def advance(self, steps: int) -> None:
        for run, minibatches in zip(self._runs, self._minibatches):
            for _ in range(steps):
                run.algorithm.update(next(minibatches))
        self._setting.wait()


class Stacked:
    """One model whose parameters have the run as their first axis, (R, …), with its Adam."""

    def __init__(self, experiments: list[Experiment]) -> None:
        self._minibatches = [each.minibatches(STEPS) for each in experiments]
        networks = [each.algorithm.network for each in experiments]
        stacked, buffers = stack_module_state(networks)
        assert not buffers  # a network with buffers would need them updated
        self.parameters = {name: p.detach().requires_grad_() for name, p in stacked.items()}
        self._network = copy.deepcopy(networks[0]).to("meta")
        self._moments = [
            (torch.zeros_like(p), torch.zeros_like(p)) for p in self.parameters.values()
        ]
        self._rates, self._decays = (
            next(networks[0].parameters()).new_tensor([e.spec.hparams[name] for e in experiments])
            for name in ("lr", "weight_decay")
        )
        self._steps = 0

    def advance(self, steps: int) -> None:
        for _ in range(steps):
            self.update([next(minibatches) for minibatches in self._minibatches])

    def update(self, minibatches: list[Minibatches]) -> None:
        """One step of each run, on its own minibatches."""
        x, y = (torch.stack(each) for each in zip(*map(concatenate, minibatches)))
        risks = vmap(self._risk)(self.parameters, x, y)
        self._descend(torch.autograd.grad(risks.sum(), list(self.parameters.values())))

    def _risk(
        self, parameters: dict[str, torch.Tensor], x: torch.Tensor, y: torch.Tensor
    ) -> torch.Tensor:
        return F.cross_entropy(functional_call(self._network, parameters, (x,)), y)

    @torch.no_grad()
    def _descend(self, gradients: tuple[torch.Tensor, ...]) -> None:
        """Adam (Kingma & Ba 2015), with a learning rate and weight decay for each run."""
        self._steps += 1
        first, second = (1 - beta**self._steps for beta in BETAS)
        for p, gradient, (m, v) in zip(self.parameters.values(), gradients, self._moments):
            rate, decay = (
                own.view(-1, *[1] * (p.dim() - 1)) for own in (self._rates, self._decays)
            )
            g = gradient + decay * p
            m.lerp_(g, 1 - BETAS[0])
            v.mul_(BETAS[1]).addcmul_(g, g, value=1 - BETAS[1])
            p -= rate / first * m / (v.sqrt() / second**0.5 + EPS)


class Processes:
    """Runs shared out to processes that stay; on the CPU each has its share of the cores."""

    def __init__(self, setting: Setting, count: int) -> None:
        context = get_context("spawn")
        shares = [range(setting.runs)[first::count] for first in range(count)]
        threads = max(1, usable_cores() // count)
        self._pools = [
            ProcessPoolExecutor(1, context, _begin, (setting, share, threads)) for share in shares
        ]

    def advance(self, steps: int) -> None:
        for future in [pool.submit(_advance, steps) for pool in self._pools]:
            future.result()

    def end(self) -> None:
        for pool in self._pools:
            pool.shutdown()


_here: list[Separate] = []
"""Of a process of `Processes`: its runs."""


def _begin(setting: Setting, numbers: range, threads: int) -> None:
    torch.set_num_threads(threads)
    _here.append(Separate(setting, numbers))


def _advance(steps: int) -> None:
    _here[0].advance(steps)


def difference(setting: Setting, steps: int = 3) -> float:
    """The largest of a weight between stacked and separate runs, in double precision."""
    runs = [setting.experiment(number) for number in range(setting.runs)]
    for run in runs:
        run.algorithm.double()
    stacked = Stacked(runs)
    sources = [run.minibatches(STEPS) for run in runs]
    for _ in range(steps):
        minibatches = [[(x.double(), y) for x, y in next(source)] for source in sources]
        stacked.update(minibatches)
        for run, own in zip(runs, minibatches):
            run.algorithm.update(own)
    return max(
        (p[number] - own).abs().max().item()
        for number, run in enumerate(runs)
        for p, own in zip(stacked.parameters.values(), run.algorithm.network.parameters())
    )


def rows(setting: Setting, steps: int, rounds: int, processes: int) -> list[Row]:
    """Updates a second of all runs together."""
    apart = difference(setting)
    assert apart < 1e-9, f"weights of stacked runs are {apart:.0e} from those of separate ones"
    numbers = range(setting.runs)
    stacked = Stacked([setting.experiment(number) for number in numbers])
    separate, shared = Separate(setting, numbers), Processes(setting, processes)
    tasks: dict[str, Callable[[], None]] = {
        "one by one": lambda: separate.advance(steps),
        "stacked": lambda: stacked.advance(steps),
        f"{processes} processes": lambda: shared.advance(steps),
    }
    try:
        seconds = in_turns(tasks, rounds, setting.wait)
    finally:
        shared.end()
    rates = {name: setting.runs * steps / median(taken) for name, taken in seconds.items()}
    what = f"{setting.runs} runs of ERM, {setting.dataset}, 2 × {setting.batch_size}"
    return [
        Row(f"{what}, {name}; one by one", rates[name], rates["one by one"], "updates/s",
            f"{ratio(seconds, 'one by one', name):.2f} times")
        for name in tasks
        if name != "one by one"
    ]  # fmt: skip


def settings(runs: int, batch_size: int, device: str, data_dir: str) -> Iterator[Setting]:
    """The embedded digits, and ColoredMNIST where it is."""
    for dataset in ("ColoredDigits", "ColoredMNIST"):
        if dataset == "ColoredDigits" or (Path(data_dir) / "MNIST").is_dir():
            yield Setting(dataset, runs, batch_size, device, data_dir)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=8)
    parser.add_argument("--batch_size", type=int, default=64, help="per domain")
    parser.add_argument("--steps", type=int, default=2, help="of each run, in a round")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--processes", type=int, help="default: one per core, on a GPU per run")
    parser.add_argument("--data_dir", default=os.environ.get("DOMAINBED_DATA_DIR", "data"))
    add_device(parser)
    args = parser.parse_args()
    usual = usable_cores() if args.device == "cpu" else args.runs
    found = [
        row
        for setting in settings(args.runs, args.batch_size, args.device, args.data_dir)
        for row in rows(setting, args.steps, args.rounds, args.processes or usual)
    ]
    print(machine(args.device), table(found), sep="\n\n")


if __name__ == "__main__":
    main()
