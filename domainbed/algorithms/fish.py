"""Fish: gradient matching through a first-order meta-learning step."""

import copy

import torch
from torch import nn

from domainbed.algorithms.base import (
    Metrics,
    Minibatches,
    Unlabeled,
    as_numbers,
    register_algorithm,
)
from domainbed.algorithms.erm import ERM
from domainbed.config.dimensions import Choice


@torch.no_grad()
def move_towards(network: nn.Module, target: nn.Module, rate: float) -> None:
    """θ ← θ + rate · (θ' − θ) for every floating-point entry of the state dict, in place.

    Running statistics are such entries, counts of batches are not. A rate of 1 gives θ' exactly.
    """
    destination = target.state_dict()
    for name, value in network.state_dict().items():
        if value.is_floating_point() and rate == 1:
            value.copy_(destination[name])
        elif value.is_floating_point():
            value += rate * (destination[name] - value)


@register_algorithm
class Fish(ERM):
    """Shi et al. 2022, algorithm 1.

        θ' = θ;  for each domain e in order:  θ' ← Adam(θ', ∇ CE_e(θ'))
        θ ← θ + meta_lr · (θ' − θ)

    The optimizer of the clone θ' keeps its moments from update to update. The loss that is reported
    is the mean of the domains' losses along the way.

    Attributes:
        network_inner: the clone θ'.
        optimizer: the clone's, the only one of this algorithm.
    """

    paper = "Shi et al., Gradient Matching for Domain Generalization, ICLR 2022, arXiv 2104.09937"
    search_space = {
        "meta_lr": Choice(0.5, (0.05, 0.1, 0.5), "step from the network towards its clone", least=0)
    }

    needs_classes = False

    def build(self) -> None:
        super().build()
        self.network_inner = copy.deepcopy(self.network)
        self.optimizer = self.new_optimizer(self.network_inner)

    def update(self, minibatches: Minibatches, unlabeled: Unlabeled = None) -> Metrics:
        self.network_inner.load_state_dict(self.network.state_dict())
        losses = []
        for x, y in minibatches:
            loss = self.label_type.risk(self.network_inner(x), y)
            self.descend(loss)
            losses.append(loss.detach())
        move_towards(self.network, self.network_inner, self.hparams["meta_lr"])
        return as_numbers({"loss": torch.stack(losses).mean()})
