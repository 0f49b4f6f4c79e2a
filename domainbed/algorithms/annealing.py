"""What IRM, VREx and Fishr share: a penalty whose weight changes once, with a fresh Adam."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from domainbed.algorithms.base import Metrics
from domainbed.algorithms.erm import ERM


class AnnealedPenalty(ERM):
    """loss = risk + λ · penalty, λ one value for the first updates and another after.

    At the switch Adam is re-created, because its moments were gathered on another loss. (At
    update 0 it is fresh anyway.)

    Attributes:
        update_count: updates so far, a buffer, so that it is saved with the model.
    """

    weight_name = "lambda"
    anneal_name = "penalty_anneal_iters"
    initial_weight = 0.0

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

    def annealed(self) -> bool:
        """Whether the first phase is over."""
        return self.updates_done() >= self.hparams[self.anneal_name]

    def updates_done(self) -> int:
        return int(self.update_count.item())

    def penalty_weight(self) -> float:
        """λ of the update that is under way."""
        return self.hparams[self.weight_name] if self.annealed() else self.initial_weight

    def penalised(self, risk: torch.Tensor, penalty: torch.Tensor) -> tuple[torch.Tensor, Metrics]:
        """risk + λ · penalty, and the two as metrics."""
        return risk + self.penalty_weight() * penalty, {"nll": risk, "penalty": penalty}

    def descend(self, loss: torch.Tensor) -> None:
        """One step on `loss`; re-creates Adam at the switch, and counts the update."""
        if self.updates_done() == self.hparams[self.anneal_name]:
            self.optimizer = self.new_optimizer(self.network)
        super().descend(loss)
        self.update_count += 1
