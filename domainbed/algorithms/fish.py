"""Fish: gradient matching through a first-order meta-learning step."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.nn import functional as F

from domainbed.algorithms.averaging import move_towards
from domainbed.algorithms.base import Metrics, Minibatches, as_numbers, register_algorithm
from domainbed.algorithms.erm import ERM
from domainbed.config.dimensions import Choice


@register_algorithm
class Fish(ERM):
    """Shi et al. 2022, algorithm 1.

        θ' = θ;  for each domain e in order:  θ' ← Adam(θ', ∇ CE_e(θ'))
        θ ← θ + meta_lr · (θ' − θ)

    The Adam of the clone θ' keeps its moments from update to update. The loss that is reported
    is the mean of the domains' losses along the way.

    Attributes:
        network_inner: the clone θ'.
        optimizer: the clone's Adam, the only one of this algorithm.
    """

    paper = "Shi et al., Gradient Matching for Domain Generalization, ICLR 2022, arXiv 2104.09937"
    search_space = {
        "meta_lr": Choice(0.5, (0.05, 0.1, 0.5), "step from the network towards its clone", least=0)
    }

    def __init__(
        self,
        input_shape: Sequence[int],
        num_classes: int,
        num_domains: int,
        hparams: Mapping[str, Any],
    ) -> None:
        super().__init__(input_shape, num_classes, num_domains, hparams)
        self.network_inner = copy.deepcopy(self.network)
        self.optimizer = self.new_optimizer(self.network_inner)

    def update(
        self, minibatches: Minibatches, unlabeled: Sequence[torch.Tensor] | None = None
    ) -> Metrics:
        self.network_inner.load_state_dict(self.network.state_dict())
        losses = []
        for x, y in minibatches:
            loss = F.cross_entropy(self.network_inner(x), y)
            self.descend(loss)
            losses.append(loss.detach())
        move_towards(self.network, self.network_inner, self.hparams["meta_lr"])
        return as_numbers({"loss": torch.stack(losses).mean()})
