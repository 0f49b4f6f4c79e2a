"""What methods share that change at a switch: weights of penalties, and a fresh Adam."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from domainbed.algorithms.base import Metrics, Minibatches, Objective
from domainbed.algorithms.erm import ERM


@dataclass(frozen=True)
class AnnealedWeight:
    """λ, one value for the first updates and another after.

    Attributes:
        name: the hyper-parameter with the value after.
        updates: the hyper-parameter with the number of updates before.
        initial: the value before.
    """

    name: str
    updates: str
    initial: float = 0.0


class AnnealedPenalty(ERM):
    """loss = risk + Σ λ · penalty, each λ one value for the first updates and another after.

    At a switch Adam is re-created, because its moments were gathered on another loss.

    Attributes:
        update_count: updates so far, a buffer, so that it is saved with the model.
    """

    weights: ClassVar[Sequence[AnnealedWeight]] = ()
    lr_after: ClassVar[str] = "lr"
    """The hyper-parameter with the learning rate after a switch."""
    kept_on_cpu = ("update_count",)

    def __init__(
        self,
        input_shape: Sequence[int],
        num_classes: int,
        num_domains: int,
        hparams: Mapping[str, Any],
    ) -> None:
        super().__init__(input_shape, num_classes, num_domains, hparams)
        self.update_count: torch.Tensor
        self.register_buffer("update_count", torch.tensor([0]))

    def updates_done(self) -> int:
        return int(self.update_count.item())

    def penalty_weights(self) -> list[float]:
        """The λ of the update that is under way, in the order of `weights`."""
        done = self.updates_done()
        return [
            self.hparams[each.name] if done >= self.hparams[each.updates] else each.initial
            for each in self.weights
        ]

    def penalised(self, risk: torch.Tensor, penalty: torch.Tensor) -> tuple[torch.Tensor, Metrics]:
        """risk + λ · penalty with the only λ, and the two as metrics."""
        (weight,) = self.penalty_weights()
        return risk + weight * penalty, {"nll": risk, "penalty": penalty}

    def switches_now(self) -> bool:
        """Whether the update that is under way is the first after a switch."""
        done = self.updates_done()
        return any(done == self.hparams[each.updates] for each in self.weights)

    def update_on(
        self,
        objective: Objective,
        minibatches: Minibatches,
        unlabeled: Sequence[torch.Tensor] | None = None,
    ) -> Metrics:
        """Begins with a fresh Adam at a switch."""
        if self.switches_now():
            self.optimizer = self.new_optimizer(self.network, self.hparams[self.lr_after])
        return super().update_on(objective, minibatches, unlabeled)

    def descend(self, loss: torch.Tensor) -> None:
        """One step on `loss`; counts the update."""
        super().descend(loss)
        self.update_count += 1
