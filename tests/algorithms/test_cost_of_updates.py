"""What an update costs, counted and not timed: passes through the network, and waiting."""

from __future__ import annotations

import copy
import math
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from fractions import Fraction

import pytest
import torch
from far_device import FAR, sent_far
from helpers import build, random_minibatches, switching_at
from torch.nn.modules.module import register_module_forward_hook
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from domainbed.algorithms import ALGORITHMS, base
from domainbed.core import names

SHAPE, SIZES = (2, 8, 8), (2, 2, 2)
LAYERS = 4  # convolutions of the network
CYCLE = 6  # updates after which all kinds have come as often as they do

NAMES = [name for name in ALGORITHMS if not ALGORITHMS[name].needs_features]

WAITING = {"_local_scalar_dense", "nonzero", "masked_select", "equal", "_unique2", "unique_dim"}
"""Operators whose result a GPU has to have before Python goes on."""

MEMBERS = "draws permutations of the samples of each class, so it needs the labels on the CPU"
DOUBLE = "divides its loss in double precision, which not all devices have"
SEARCH = "decides after each place that it looks at"
WAITS = {"SelfReg": MEMBERS, "ADRMX": MEMBERS, "MLDG": DOUBLE, "GGA": SEARCH}
"""The methods that wait in each update, and why."""

TWO_PASS = ("SAM", "ASAM", "GSAM", "SAGM")
ONE = (1, 1)
PASSES = {
    "DANN": (1, Fraction(1, 2)),  # the discriminator's steps reach no featurizer
    "CDANN": (1, Fraction(1, 2)),
    "MLDG": (Fraction(2, 3), Fraction(2, 3)),  # of three domains one pair
    "SagNet": (3, 2),
    "ARM": (Fraction(7, 4), 1),  # three convolutions of the context network, which is not trained
    "IGA": (1, 2),  # gradients of gradients
    "Transfer": (3, 2),
    **dict.fromkeys(TWO_PASS, (2, 2)),
    "MIRO": (2, 1),
    # Of four turns one is of all domains, and trains the featurizer.
    "IRMGames": (Fraction(4, 9), Fraction(1, 6)),
    "GGA": (3, 3),  # the step's, and those of two places
    "FACT": (4, 2),  # of images and their mixed versions; the teacher's has no gradient
    "JTT": (2, 1),
    "LfF": (2, 2),
    "ADRMX": (2, Fraction(2, 3)),  # two featurizers, and the discriminator's steps
}
"""Forward and backward passes of all images per update, where there is not one of each."""


class Watch(TorchDispatchMode):
    """Counts convolved images and operators that wait, but for those on tensors of the CPU."""

    def __init__(self, counters: set[int]) -> None:
        super().__init__()
        self.kept, self.is_stepping = counters, False
        self.forward, self.backward = 0, 0
        self.waited: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._schema.name.removeprefix("aten::")
        if name == "convolution_backward":
            self.backward += len(args[0])
        # PyTorch's optimizers count their steps on the CPU.
        elif not self.is_stepping and self._waits(name, args):
            self.waited[name] += 1
        return func(*args, **(kwargs or {}))

    def _waits(self, name: str, args: tuple) -> bool:
        if name in ("index", "index_put", "index_put_"):
            return any(each is not None and each.dtype == torch.bool for each in args[1])
        return name in WAITING and args[0].data_ptr() not in self.kept


@contextmanager
def watched(algorithm: torch.nn.Module) -> Iterator[Watch]:
    kept = {
        buffer.data_ptr()
        for module in algorithm.modules()
        for name, buffer in module.named_buffers(recurse=False)
        if name in getattr(module, "counters", ())
    }
    watch = Watch(kept)

    def count_forward(module, inputs, output):
        watch.forward += len(inputs[0]) if isinstance(module, torch.nn.Conv2d) else 0

    hooks = [
        register_module_forward_hook(count_forward),
        register_optimizer_step_pre_hook(lambda *_: setattr(watch, "is_stepping", True)),
        register_optimizer_step_post_hook(lambda *_: setattr(watch, "is_stepping", False)),
    ]
    try:
        with watch:
            yield watch
    finally:
        for hook in hooks:
            hook.remove()


@pytest.mark.parametrize("name", NAMES)
def test_passes_and_waiting(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "_AT_HAND", ())  # as on a GPU
    algorithm = build(name, len(SIZES), shape=SHAPE, **switching_at(0, name))
    minibatches = random_minibatches(SIZES, shape=SHAPE)
    algorithm.update(minibatches)  # sets up
    with watched(algorithm) as watch:
        for _ in range(CYCLE):
            algorithm.update(minibatches)
    images = CYCLE * LAYERS * sum(SIZES)
    passes = Fraction(watch.forward, images), Fraction(watch.backward, images)
    assert passes == PASSES.get(name, ONE)
    assert bool(watch.waited) == (name in WAITS), watch.waited


@pytest.mark.parametrize("name", NAMES)
def test_counts_stay_on_the_cpu(name: str) -> None:
    algorithm = copy.deepcopy(build(name, 2)).to("meta").double()
    named = {
        key: own
        for module in algorithm.modules()
        for key, own in module.named_buffers(recurse=False)
        if key.endswith("update_count")
    }
    assert {own.device.type for own in named.values()} <= {"cpu"}
    assert all(p.device.type == "meta" for p in algorithm.parameters())


ASKED = "Cannot copy out of meta|Tensor.item"


@pytest.mark.parametrize("name", NAMES)
def test_nothing_waits_for_what_is_sent_to_a_gpu(name: str) -> None:
    algorithm = build(name, len(SIZES), shape=SHAPE, **switching_at(0, name))
    names = {id(p): own for own, p in algorithm.named_parameters()}
    moved = dict(algorithm.to(FAR).named_parameters())
    if name in TWO_PASS:  # which move what their optimizer steps; on a GPU these stay the same
        for group in algorithm.optimizer.param_groups:
            group["params"] = [moved[names[id(p)]] for p in group["params"]]
    minibatches = [(x.to(FAR), y.to(FAR)) for x, y in random_minibatches(SIZES, shape=SHAPE)]
    asks = pytest.raises((NotImplementedError, RuntimeError), match=ASKED)
    with sent_far() as sent:
        with asks if name in WAITS else nullcontext():
            for _ in range(3):
                algorithm.update(minibatches)
        if name != "T3A":  # keeps as many templates as their content tells
            base.predictor_of(algorithm.eval())(minibatches[0][0])
    assert sent.waited == []


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", NAMES)
def test_nothing_waits_for_a_gpu(name: str) -> None:
    algorithm = build(name, len(SIZES), shape=SHAPE, **switching_at(0, name)).to("cuda")
    minibatches = [(x.cuda(), y.cuda()) for x, y in random_minibatches(SIZES, shape=SHAPE)]
    algorithm.update(minibatches)
    torch.cuda.set_sync_debug_mode("error")
    try:
        with pytest.raises(RuntimeError) if name in WAITS else nullcontext():
            for _ in range(CYCLE):
                algorithm.update(minibatches)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize(
    "waits",
    [
        lambda x, far: x.to(far),
        lambda x, far: far.new_empty(3).copy_(x),
        lambda x, far: far[x.long()],
        lambda x, far: torch.tensor([1.0], device=far.device),
    ],
)
def test_what_waits_is_found(waits: Callable[[torch.Tensor, torch.Tensor], None]) -> None:
    x, far = torch.ones(3), torch.ones(3, device=FAR)
    with sent_far() as sent:
        x.to(FAR, non_blocking=True) + far[x.to(FAR, non_blocking=True).long()]
        assert sent.waited == []
        waits(x, far)
    assert len(sent.waited) == 1


def test_the_passes_that_tables_show_are_those_counted_here() -> None:
    counted = {
        name: PASSES.get(name, ONE) for name in NAMES if name not in ("GGA", "JTT", "IRMGames")
    }
    passes = {
        name: float(forward + 2 * backward) / 3 for name, (forward, backward) in counted.items()
    }
    passes |= {"ARM": 1.0, "IGA": 3.0}  # without its context network; see below
    assert pytest.approx(passes, abs=0.005) == names.PASSES
    assert names.passes("SAM+Fishr+CORAL") == names.passes("SAM + SWAD") == 2
    assert all(map(math.isnan, map(names.passes, ("GGA", "KNN", "SAM+Mine"))))


def test_gradients_of_gradients_take_three_times_the_operations() -> None:
    operations = {}
    for name in ("ERM", "IGA"):
        algorithm, minibatches = build(name, 3, shape=SHAPE), random_minibatches(SIZES, shape=SHAPE)
        with FlopCounterMode(display=False) as counter:
            algorithm.update(minibatches)
        operations[name] = counter.get_total_flops()
    assert operations["IGA"] / operations["ERM"] == pytest.approx(3, rel=0.05)
