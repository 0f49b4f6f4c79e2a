"""ERM++: empirical risk minimisation with a warm-up of the head and averaged weights."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import ReduceLROnPlateau

from domainbed.algorithms.base import (
    Metrics,
    Minibatches,
    Objective,
    Stage,
    Unlabeled,
    as_numbers,
    concatenate,
    register_algorithm,
    step,
)
from domainbed.algorithms.erm import ERM, ForwardPass, trains_batch_norm
from domainbed.algorithms.fish import move_towards
from domainbed.algorithms.optimizers import OPTIMIZERS
from domainbed.config.dimensions import (
    DatasetFacts,
    Dimension,
    LogUniform,
    Option,
    learning_rate,
)
from domainbed.errors import UserError


@OPTIMIZERS.register(name="lars")
class LARS(torch.optim.Optimizer):
    """You, Gitman, Ginsburg, Large Batch Training of Convolutional Networks, arXiv 1708.03888.

        g' = g + weight_decay · θ,    g'' = g' · trust_coefficient · ‖θ‖ / ‖g'‖
        μ ← momentum · μ + g'',       θ ← θ − lr · μ

    That is for matrices and kernels; where a norm is zero, g'' is g'. Vectors (biases,
    normalisation) take their gradient as it is, without weight decay, as is usual in
    self-supervised training. timm's LARS differs: without weight decay it adapts no tensor.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        lr: float,
        weight_decay: float = 0.0,
        momentum: float = 0.9,
        trust_coefficient: float = 0.001,
    ) -> None:
        super().__init__(
            params,
            {
                "lr": lr,
                "weight_decay": weight_decay,
                "momentum": momentum,
                "trust_coefficient": trust_coefficient,
            },
        )

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One step on the gradients that are there."""
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None:
                    self._move(weight, weight.grad, group)

    def _move(self, weight: nn.Parameter, gradient: torch.Tensor, group: dict[str, Any]) -> None:
        if weight.dim() > 1:
            gradient = gradient.add(weight, alpha=group["weight_decay"])
            own, other = weight.norm(), gradient.norm()
            trusted = group["trust_coefficient"] * own / other
            gradient = gradient * torch.where((own > 0) & (other > 0), trusted, 1.0)
        mu = self.state[weight].setdefault("mu", torch.zeros_like(weight))
        mu.mul_(group["momentum"]).add_(gradient)
        weight.add_(mu, alpha=-group["lr"])


FALLS = 3  # of the rate, after which a training by plateau ends


class PlateauRates:
    """Learning rates that fall when the loss at the records reaches a plateau.

    The rate falls to a tenth after the second record in a row whose loss is no improvement (by a
    ten-thousandth of the best so far).

    Attributes:
        rates: for each record so far, the rate from there on.
        to_come: the rates of another training that are still to be used.
    """

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self._optimizer = optimizer
        self._scheduler = ReduceLROnPlateau(optimizer, factor=0.1, patience=1)
        self.rates: list[float] = []
        self.to_come: list[float] = []

    @property
    def rate(self) -> float:
        """The optimizer's current rate."""
        return float(self._optimizer.param_groups[0]["lr"])

    def follow(self, loss: float) -> bool:
        """Sets the rate by a record's loss; whether it has fallen for the last time."""
        self._scheduler.step(loss)
        self.rates.append(self.rate)
        return sum(one != next_one for one, next_one in pairwise(self.rates)) == FALLS

    def replay(self) -> bool:
        """Sets the next rate of another training; whether it was the last one."""
        for group in self._optimizer.param_groups:
            group["lr"] = self.to_come.pop(0)
        return not self.to_come


def mean_rate(update: int, start: int) -> float:
    """The rate that makes the average an arithmetic mean.

    With it after each update, `move_towards(average, network, rate)` gives the weights as they are
    until update `start` − 1 (counted from 1), and from update `start` on the mean of those after
    the updates `start` − 1, …, `update`.
    """
    return 1 / max(1, update - start + 2)


def _search_space(facts: DatasetFacts) -> dict[str, Dimension]:
    doc = "step size of the warm-up of the head"
    published = LogUniform(5e-5, -5, -3.5, doc, above=0)
    return {"linear_lr": learning_rate(facts, doc) if facts.features else published}


@register_algorithm
class ERMPlusPlus(ERM):
    """ERM that predicts with the mean of its weights.

        update t = 1 … linear_steps + 1:  w    ← Adam(w, ∇ CE(w(φ(x)), y)),          rate linear_lr
        update t > linear_steps + 1:      φ, w ← Adam((φ, w), ∇ CE(w(φ(x)), y)),     rate lr
        θ̄ = θ_t                                    for t < sma_start
        θ̄ = mean of θ_s, s = sma_start − 1 … t     from t = sma_start on

    x: (N, *input_shape) of all domains, θ: the weights and the running statistics of w ∘ φ. The
    warm-up is one update longer than its name says, as in DomainBed. θ̄ predicts. Where batch norm
    layers train, θ̄ also sees each minibatch, in training mode, so that its statistics are those
    of its own activations.

    With `auto_lr` a run has two stages, as DomainBed's `train_autolr`, minibatches without
    replacement in both. In the first, at each record after the warm-up, the validation loss of θ̄
    decides the rate for the updates that follow, see `PlateauRates`; the third fall ends it. In the
    second a fresh model trains on all images, as long as the first, with the same rates.

    Differences from DomainBed: the pass that gathers statistics needs no gradient, and is skipped
    where no statistics change; the number of updates is saved with the model; LARS can be chosen
    (in DomainBed `lars` raises); the second stage ends with the list of rates (in DomainBed it
    raises unless the rate fell three times, and otherwise stops two records earlier).

    Attributes:
        network: w ∘ φ.
        network_sma: its average θ̄, always in evaluation mode.
        optimizer, linear_optimizer: over the network, and over w alone.
    """

    paper = (
        "Teterwak, Saito, Tsiligkaridis, Saenko, Plummer, ERM++: An Improved Baseline for Domain "
        "Generalization, WACV 2025, arXiv 2304.01973"
    )
    search_space = staticmethod(_search_space)
    options = {
        "linear_steps": Option(500, "updates of the head alone, minus one", least=0),
        "sma_start": Option(600, "update from which weights are averaged", least=1),
        "lars": Option(False, "LARS instead of Adam"),
        "auto_lr": Option(False, "two stages: rates by plateau, then all images with these rates"),
    }
    counters = ("update_count",)
    needs_classes = False

    def build(self) -> None:
        for name, other in (
            ("lars", "optimizer"),
            ("auto_lr", "lr_schedule"),
            ("auto_lr", "warmup"),
        ):
            if self.option(name) and other in self.hparams:
                raise UserError(
                    f"hyper-parameters {name!r} and {other!r} are both set, and decide the same: "
                    "leave one out",
                    *("hparams", other),
                )
        super().build()
        self.optimizer = self._optimizer_over(self.network, "lr")
        self.linear_optimizer = self._optimizer_over(self.classifier, "linear_lr")
        self.schedule = PlateauRates(self.optimizer)
        self.network_sma = copy.deepcopy(self.network).requires_grad_(False).eval()

    def _optimizer_over(self, network: nn.Module, rate: str) -> torch.optim.Optimizer:
        return self.new_optimizer(
            network,
            role="main" if rate == "lr" else "head",
            lr=self.hparams[rate],
            optimizer="lars" if self.option("lars") else None,
        )

    def forward_pass(self, minibatches: Minibatches) -> ForwardPass:
        """Through the network that is trained, and not the one that predicts."""
        self.require_samples(minibatches)
        return ForwardPass(
            minibatches, self.featurizer, self.classifier, label_type=self.label_type
        )

    def update_on(
        self,
        objective: Objective,
        minibatches: Minibatches,
        unlabeled: Unlabeled = None,
    ) -> Metrics:
        done = self.updates_done()  # now, as it would wait for the forward pass after it
        loss, metrics = objective(minibatches, unlabeled)
        if done <= self.option("linear_steps"):
            # None of the featurizer's gradients are computed.
            step(self.linear_optimizer, loss, of=list(self.classifier.parameters()))
        else:
            step(self.optimizer, loss)
        self.update_count += 1
        move_towards(self.network_sma, self.network, mean_rate(done + 1, self.option("sma_start")))
        if trains_batch_norm(self.network):
            self.network_sma.train()
            self.network_sma(concatenate(minibatches)[0])
            self.network_sma.eval()
        return as_numbers({"loss": loss, **metrics})

    def training_stages(self) -> Sequence[Stage]:
        if not self.option("auto_lr"):
            return super().training_stages()
        return Stage(replacement=False, validation=("loss",)), Stage("all", replacement=False)

    def take_over(self, before: ERMPlusPlus) -> None:
        self.schedule.to_come = [*before.schedule.rates]

    def on_record(self, metrics: dict[str, float]) -> bool:
        if not self.option("auto_lr"):
            return False
        metrics["lr"] = self.schedule.rate
        if self.updates_done() <= self.option("linear_steps"):
            return False
        if metrics["stage"] == 1:
            return self.schedule.follow(metrics["val_loss"])
        return self.schedule.replay()

    def predict(self, x: torch.Tensor) -> torch.Tensor:
        return self.network_sma(x)

    def predicting_parts(self) -> tuple[nn.Module, nn.Module]:
        return self.network_sma[0], self.network_sma[1]

    def train(self, mode: bool = True) -> ERMPlusPlus:
        super().train(mode)
        self.network_sma.eval()
        return self
