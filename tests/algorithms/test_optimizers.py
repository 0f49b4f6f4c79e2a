"""Optimizers by name, schedules of their rates, clipped gradients: for every algorithm."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from helpers import CLASSES, SHAPE, random_minibatches, resumed, small_hparams, switching_at
from torch.optim import lr_scheduler

from domainbed.algorithms import ALGORITHMS, DANN, ERM, Algorithm, get_algorithm_class
from domainbed.algorithms.optimizers import (
    OPTIMIZER_OPTIONS,
    OPTIMIZERS,
    OptimizerGuard,
    check_optimizer_options,
    rate_factor,
)
from domainbed.config.dimensions import Fixed, with_defaults
from domainbed.config.run_facts import HParams, RunFacts
from domainbed.errors import UserError
from domainbed.hparams import Space

STEPS = 20
VECTORS = {"mlp_width": 16, "mlp_depth": 2}
MINIBATCHES = {shape: random_minibatches([6, 6], shape=shape) for shape in ((5,), SHAPE)}
BATCH = tuple(map(torch.cat, zip(*MINIBATCHES[5,])))


def made(name: str, cls: Any = None, **hparams: Any) -> Any:
    """An algorithm of a run of `STEPS` updates."""
    torch.manual_seed(0)
    facts, cls = RunFacts(steps=STEPS), cls or get_algorithm_class(name)
    chosen, shape = small_hparams(name, **VECTORS, **hparams), SHAPE if cls.needs_images else (5,)
    return cls(shape, CLASSES, 2, HParams(chosen, facts))


def train(algorithm: Any, steps: range) -> None:
    for step in steps:
        algorithm.facts.begin(step)
        algorithm.update(MINIBATCHES[SHAPE if algorithm.needs_images else (5,)])


def optimizers_of(algorithm: Any) -> Iterator[torch.optim.Optimizer]:
    for module in algorithm.modules():
        for value in vars(module).values():
            listed = value if isinstance(value, list) else [value]
            yield from (each for each in listed if isinstance(each, torch.optim.Optimizer))


def rates_of(algorithm: Any) -> list[float]:
    return [group["lr"] for each in optimizers_of(algorithm) for group in each.param_groups]


def test_every_algorithm_takes_the_options() -> None:
    """Those made at a switch, too; the rates of all optimizers fall together."""
    chosen = {"optimizer": "sgd", "lr_schedule": "linear", "gradient_clip": 0.5}
    for name in [each for each in ALGORITHMS if ALGORITHMS[each].uses_optimizer] + ["Fishr+DANN"]:
        switch = switching_at(2, name.removeprefix("Fishr+"))
        plain, algorithm = made(name, **switch), made(name, **switch, **chosen)
        guard = OptimizerGuard(algorithm, chosen)
        with guard:
            train(algorithm, range(4))
        guard.require_steps()
        found = list(optimizers_of(algorithm))
        assert {type(each) for each in found} == {torch.optim.SGD}, name
        after = getattr(algorithm, "lr_after", "lr")
        base = [algorithm.hparams[after]] if after != "lr" else rates_of(plain)
        for rate, first in zip(rates_of(algorithm), base, strict=True):
            # That of its latest step: discriminators do not take one in each update.
            assert any(rate == pytest.approx(first * (1 - s / STEPS)) for s in range(4)), name
        assert rates_of(algorithm) != base, name


@pytest.mark.parametrize("name", ["CORAL", "IRM", "Fish", "MLDG"])
def test_all_rates_of_an_update_are_those_of_its_step(name: str) -> None:
    chosen: dict[str, Any] = {"lr_schedule": "cosine", "warmup": 0.2, **switching_at(6, name)}
    algorithm = made(name, **chosen)
    options = with_defaults(OPTIMIZER_OPTIONS, algorithm.hparams)
    for step in range(9):  # Fish takes two steps in each, IRM has another Adam from 6 on
        train(algorithm, range(step, step + 1))
        (rate,) = rates_of(algorithm)
        assert rate == algorithm.hparams["lr"] * rate_factor(step, STEPS, options)
    assert [rate_factor(s, STEPS, options) for s in range(5)] == [0.25, 0.5, 0.75, 1, 1]


def test_schedules_are_those_of_torch() -> None:
    """Closed forms, of which PyTorch's schedulers take differences from step to step."""
    cases: list[tuple[dict[str, Any], Any]] = [
        ({"lr_schedule": "cosine"}, lambda o: lr_scheduler.CosineAnnealingLR(o, STEPS)),
        ({"lr_schedule": "linear"}, lambda o: lr_scheduler.LinearLR(o, 1, 0, STEPS)),
        ({"lr_schedule": "step"}, lambda o: lr_scheduler.MultiStepLR(o, [10, 15], 0.1)),
        (
            {"lr_schedule": "step", "lr_milestones": [0.25], "lr_gamma": 0.5},
            lambda o: lr_scheduler.StepLR(o, 5, 0.5),
        ),
        ({"warmup": 0.2}, lambda o: lr_scheduler.LinearLR(o, 1 / 4, 1, 3)),
    ]
    for chosen, scheduler_of in cases:
        optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.3)
        scheduler, options = scheduler_of(optimizer), with_defaults(OPTIMIZER_OPTIONS, chosen)
        for step in range(STEPS if "lr_gamma" not in chosen else 10):
            (rate,) = scheduler.get_last_lr()
            assert 0.3 * rate_factor(step, STEPS, options) == pytest.approx(rate), (chosen, step)
            optimizer.step()
            scheduler.step()


def test_a_step_with_clipping_is_torchs() -> None:
    chosen = {"optimizer": "sgd", "momentum": 0.5, "gradient_clip": 0.01, "weight_decay": 0.1}
    algorithm, naive = made("ERM", **chosen), made("ERM").network
    optimizer = torch.optim.SGD(
        naive.parameters(), lr=algorithm.hparams["lr"], momentum=0.5, weight_decay=0.1
    )
    train(algorithm, range(3))
    for _ in range(3):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(naive(BATCH[0]), BATCH[1]).backward()
        norm = torch.nn.utils.clip_grad_norm_(naive.parameters(), 0.01)
        assert norm > 0.01
        optimizer.step()
    for own, other in zip(algorithm.network.parameters(), naive.parameters(), strict=True):
        assert torch.equal(own, other)


def test_every_name_is_an_optimizer_of_torch() -> None:
    for name in set(OPTIMIZERS) - {"lars"}:
        algorithm = made("CORAL", optimizer=name, weight_decay=0.25)
        train(algorithm, range(1))
        assert type(algorithm.optimizer).__name__.lower() == name
        (group,) = algorithm.optimizer.param_groups
        assert (group["lr"], group["weight_decay"]) == (algorithm.hparams["lr"], 0.25)
    (group,) = made("ERM", optimizer="sgd").optimizer.param_groups
    assert group["momentum"] == 0.9
    dann = made("DANN", optimizer="adamw", beta1=0.25)
    assert dann.disc_opt.param_groups[0]["betas"] == (0.25, 0.9)


def test_nothing_changes_where_nothing_is_set() -> None:
    for name in ("ERM", "DANN", "ERMPlusPlus"):
        for optimizer in optimizers_of(made(name)):
            assert type(optimizer) is torch.optim.Adam
            assert not optimizer._optimizer_step_pre_hooks
            assert "initial_lr" not in optimizer.param_groups[0]


class Unfreezing(ERM):
    """Its updates make another optimizer, of other parameters, which a constructor does not."""

    def build(self) -> None:
        super().build()
        self.optimizer = self.new_optimizer(self.classifier)

    def update(self, minibatches: Any, unlabeled: Any = None) -> Any:
        if self.facts.step == 2:
            self.optimizer = self.new_optimizer(self.network.parameters())
        return super().update(minibatches)


def test_an_optimizer_that_updates_made_resumes_with_its_schedule() -> None:
    chosen: dict[str, Any] = {"lr_schedule": "cosine", "optimizer": "adamw", "gradient_clip": 0.1}
    whole, pieces = made("ERM", Unfreezing, **chosen), made("ERM", Unfreezing, **chosen)
    train(whole, range(6))
    train(pieces, range(4))
    pieces = resumed(pieces, made("ERM", Unfreezing, **chosen))
    train(pieces, range(4, 6))
    for own, other in zip(whole.parameters(), pieces.parameters(), strict=True):
        assert torch.equal(own, other)


class DomainBeds(Algorithm):
    """As they are written for DomainBed."""

    def __init__(self, input_shape: Any, num_classes: Any, num_domains: Any, hparams: Any) -> None:
        super().__init__(input_shape, num_classes, num_domains, hparams)
        self.network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.LazyLinear(num_classes))
        self.network(torch.zeros(1, *input_shape))
        self.optimizer = torch.optim.Adam(self.network.parameters(), lr=hparams["lr"])

    def objective(self, minibatches: Any, unlabeled: Any = None) -> Any:
        x, y = zip(*minibatches)
        return torch.nn.functional.cross_entropy(self.network(torch.cat(x)), torch.cat(y)), {}


class Switching(ERM):
    """DomainBed's IRM makes another Adam in the middle."""

    def update(self, minibatches: Any, unlabeled: Any = None) -> Any:
        self.optimizer = torch.optim.Adam(self.network.parameters(), lr=0.1)
        return super().update(minibatches)


class ByHand(ERM):
    """Without an optimizer."""

    def descend(self, loss: torch.Tensor) -> None:
        loss.backward()
        with torch.no_grad():
            for parameter in self.network.parameters():
                parameter -= 0.1 * parameter.grad


def train_watched(algorithm: Any, guard: OptimizerGuard) -> None:
    with guard:
        train(algorithm, range(1))
    guard.require_steps()


def test_a_class_that_ignores_the_options_is_refused() -> None:
    for cls, reason in (
        (DomainBeds, "'gradient_clip' has no effect: DomainBeds makes Adam by itself"),
        (Switching, "'gradient_clip' has no effect: Switching makes Adam by itself"),
        (ByHand, "'gradient_clip' has no effect: ByHand trains without an optimizer"),
    ):
        algorithm = made("ERM", cls)
        with OptimizerGuard(algorithm, {}):  # no option is set
            train(algorithm, range(1))
        guard = OptimizerGuard(algorithm, {"gradient_clip": 1.0})
        before = copy.deepcopy(algorithm.network.state_dict())
        with pytest.raises(UserError, match=reason):
            train_watched(algorithm, guard)
        after = algorithm.network.state_dict()
        assert all(torch.equal(after[k], v) for k, v in before.items()) == (cls is not ByHand)
        train(algorithm, range(1))  # the guard watches no longer


class SlowFeaturizer(DANN):
    def new_optimizer(self, *parts: Any, role: str = "main", **settings: Any) -> Any:
        if role != "main":
            return super().new_optimizer(*parts, role=role, **settings)
        featurizer, classifier = parts
        groups = [{"params": featurizer.parameters(), "lr": settings["lr"] / 10}]
        groups.append({"params": classifier.parameters()})
        return super().new_optimizer(groups, **settings)


def test_groups_with_rates_of_their_own_follow_the_schedule() -> None:
    algorithm = made("DANN", SlowFeaturizer, lr_schedule="linear", d_steps_per_g_step=1)
    train(
        algorithm, range(11)
    )  # the last step of the discriminator is in the update before the last
    rate, rate_d = algorithm.hparams["lr_g"], algorithm.hparams["lr_d"]
    expected = [0.55 * rate_d, 0.05 * rate, 0.5 * rate]
    assert rates_of(algorithm) == pytest.approx(expected)


class Own(ERM):
    search_space = {"warmup": Fixed(500, "its own, in updates")}

    def build(self) -> None:
        super().build()
        self.roles = [self.new_optimizer(self.classifier, role="probe", lr=0.5)]


def test_a_name_that_a_class_declares_is_its_own() -> None:
    algorithm = made("ERM", Own, warmup=500, gradient_clip=0.1)
    train(algorithm, range(1))
    assert algorithm.optimizer.param_groups[0]["lr"] == algorithm.hparams["lr"]
    assert algorithm.roles[0].param_groups[0]["lr"] == 0.5
    Space.of("Own", Own, "ColoredMNIST").check({"warmup": 500, "gradient_clip": 0.1})


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        ({"momentum": 0.5}, "'momentum' is 0.5, but the optimizer adam has none"),
        ({"lr_gamma": 0.5, "lr_schedule": "cosine"}, "but the schedule cosine does not use it"),
        ({"lr_milestones": [0.5, 7], "lr_schedule": "step"}, "expected numbers between 0 and 1"),
        ({"optimizer": "sdg"}, "cannot be 'sdg': expected one of adam, adamw"),
        ({"warmup": 500}, "cannot be 500: expected a number from 0 on, below 1"),
    ],
)
def test_a_wrong_option_is_refused(chosen: dict[str, Any], message: str) -> None:
    space = Space.of("ERM", ERM, "ColoredMNIST")
    with pytest.raises(UserError) as raised:
        space.check(chosen)
    assert message in str(raised.value)
    assert next(iter(chosen)) in str(raised.value)


def test_options_that_decide_the_same_are_refused() -> None:
    for chosen in ({"lars": True, "optimizer": "sgd"}, {"auto_lr": True, "warmup": 0.1}):
        with pytest.raises(UserError, match="decide the same"):
            made("ERMPlusPlus", **chosen)
    with pytest.raises(UserError, match="unknown hyper-parameter 'optimizer' of LinearProbe"):
        Space.of("LinearProbe", ALGORITHMS["LinearProbe"], "ColoredMNIST").check(
            {"optimizer": "sgd"}
        )
    check_optimizer_options({"optimizer": "sgd", "momentum": 0.5, "lr_schedule": "linear"})
    with pytest.raises(ValueError, match="takes no lr"):
        OPTIMIZERS.register(lambda params, weight_decay: None, name="without a rate")
