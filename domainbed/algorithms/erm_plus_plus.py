"""ERM++: empirical risk minimisation with a warm-up of the head and averaged weights."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from domainbed.algorithms.averaging import gather_statistics, mean_rate, move_towards
from domainbed.algorithms.base import (
    Metrics,
    Minibatches,
    Objective,
    as_numbers,
    concatenate,
    register_algorithm,
    step,
)
from domainbed.algorithms.erm import ERM
from domainbed.algorithms.lars import LARS
from domainbed.algorithms.plateau import PlateauRates
from domainbed.algorithms.pooled import ForwardPass, trains_batch_norm
from domainbed.algorithms.stages import Stage
from domainbed.config.dimensions import (
    DatasetFacts,
    Dimension,
    LogUniform,
    Option,
    learning_rate,
    with_defaults,
)


def _search_space(facts: DatasetFacts) -> dict[str, Dimension]:
    doc = "step size of the warm-up of the head"
    if facts.features:
        return {"linear_lr": learning_rate(facts, doc)}
    return {"linear_lr": LogUniform(5e-5, -5, -3.5, doc, above=0)}


@register_algorithm
class ERMPlusPlus(ERM):
    """ERM that predicts with the mean of its weights.

        update t = 1 … linear_steps + 1:  w    ← Adam(w, ∇ CE(w(φ(x)), y)),          rate linear_lr
        update t > linear_steps + 1:      φ, w ← Adam((φ, w), ∇ CE(w(φ(x)), y)),     rate lr
        θ̄ = θ_t                                    for t < sma_start
        θ̄ = mean of θ_s, s = sma_start − 1 … t     from t = sma_start on

    x: (N, *input_shape) of all domains, θ the weights and the running statistics of w ∘ φ. The
    warm-up is one update longer than its name says, as in DomainBed. θ̄ predicts. Where batch norm
    layers train, θ̄ also sees each minibatch, in training mode, so that its statistics are those
    of its own activations.

    With `auto_lr` a run has two stages, as DomainBed's `train_autolr`, minibatches without
    replacement in both. In the first, at each record after the warm-up, the validation loss of θ̄
    decides the rate for the updates that follow, see `PlateauRates`; the third fall ends it. In the
    second a fresh model trains on all images, as long as the first, with the same rates.

    Of DomainBed's: the pass for the statistics needs no gradient, and is left out where no
    statistics change; the number of updates is saved with the model; LARS can be chosen (there
    `lars` raises); the second stage ends where the list of rates does (there it raises, unless
    the rate fell three times, and else stops two records before).

    Attributes:
        network: w ∘ φ.
        network_sma: its average θ̄, always in evaluation mode.
        optimizer, linear_optimizer: over the network, and over w alone.
        update_count: updates so far, a buffer.
    """

    paper = (
        "Teterwak, Saito, Tsiligkaridis, Saenko, Plummer, ERM++: An Improved Baseline for Domain "
        "Generalization, WACV 2025, arXiv 2304.01973"
    )
    search_space = staticmethod(_search_space)
    options = {
        "linear_steps": Option(500, "updates of the head alone, but for one", least=0),
        "sma_start": Option(600, "update from which on weights are averaged", least=1),
        "lars": Option(False, "LARS instead of Adam"),
        "auto_lr": Option(False, "two stages: rates by plateau, then all images with these rates"),
    }
    kept_on_cpu = ("update_count",)

    def __init__(
        self,
        input_shape: Sequence[int],
        num_classes: int,
        num_domains: int,
        hparams: Mapping[str, Any],
    ) -> None:
        super().__init__(input_shape, num_classes, num_domains, hparams)
        self.chosen = with_defaults(ERMPlusPlus.options, hparams)
        self.optimizer = self._optimizer_over(self.network, "lr")
        self.linear_optimizer = self._optimizer_over(self.classifier, "linear_lr")
        self.schedule = PlateauRates(self.optimizer)
        self.network_sma = copy.deepcopy(self.network).requires_grad_(False).eval()
        self.update_count: torch.Tensor
        self.register_buffer("update_count", torch.tensor([0]))

    def _optimizer_over(self, network: nn.Module, rate: str) -> torch.optim.Optimizer:
        optimizer = LARS if self.chosen["lars"] else torch.optim.Adam
        decay = self.hparams["weight_decay"]
        return optimizer(network.parameters(), lr=self.hparams[rate], weight_decay=decay)

    def updates_done(self) -> int:
        return int(self.update_count.item())

    def forward_pass(self, minibatches: Minibatches) -> ForwardPass:
        """Through the network that is trained, and not the one that predicts."""
        self.require_samples(minibatches)
        return ForwardPass(minibatches, self.featurizer, self.classifier)

    def update_on(
        self,
        objective: Objective,
        minibatches: Minibatches,
        unlabeled: Sequence[torch.Tensor] | None = None,
    ) -> Metrics:
        done = self.updates_done()  # now, as it would wait for the forward pass after it
        loss, metrics = objective(minibatches, unlabeled)
        if done <= self.chosen["linear_steps"]:
            self._descend_head(loss)
        else:
            step(self.optimizer, loss)
        self.update_count += 1
        move_towards(self.network_sma, self.network, mean_rate(done + 1, self.chosen["sma_start"]))
        if trains_batch_norm(self.network):
            gather_statistics(self.network_sma, concatenate(minibatches)[0])
        return as_numbers({"loss": loss, **metrics})

    def _descend_head(self, loss: torch.Tensor) -> None:
        self.linear_optimizer.zero_grad()
        loss.backward(inputs=list(self.classifier.parameters()))  # none of the featurizer's
        self.linear_optimizer.step()

    def training_stages(self) -> Sequence[Stage]:
        if not self.chosen["auto_lr"]:
            return super().training_stages()
        return Stage(replacement=False, validation=("loss",)), Stage("all", replacement=False)

    def take_over(self, before: ERMPlusPlus) -> None:
        self.schedule.to_come = [*before.schedule.rates]

    def on_record(self, metrics: dict[str, float]) -> bool:
        if not self.chosen["auto_lr"]:
            return False
        metrics["lr"] = self.schedule.rate
        if self.updates_done() <= self.chosen["linear_steps"]:
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
