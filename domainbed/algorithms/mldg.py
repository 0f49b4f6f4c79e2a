"""MLDG: a step on some domains should help on the others."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.func import functional_call

from domainbed.algorithms.base import (
    DOMAINBED,
    PAPER,
    Metrics,
    Minibatches,
    Unlabeled,
    as_numbers,
    gradients_of,
    register_algorithm,
    trained_parameters,
    two_readings,
)
from domainbed.algorithms.erm import ERM, Network
from domainbed.config.dimensions import Choice, LogUniform, Option
from domainbed.core.minibatch import taken


def split_pairs(order: Sequence[int], meta_test: int) -> list[tuple[int, int]]:
    """The last `meta_test` domains of `order` in turn beside each of the others."""
    held_out = order[-meta_test:]
    return [(e, held_out[i % meta_test]) for i, e in enumerate(order[:-meta_test])]


def cyclic_pairs(order: Sequence[int]) -> list[tuple[int, int]]:
    """Each domain of `order` with the next one, the last with the first."""
    return list(zip(order, [*order[1:], order[0]]))


def first_adam_step(
    parameters: Sequence[torch.Tensor],
    gradients: Sequence[torch.Tensor],
    lr: float,
    weight_decay: float,
) -> list[torch.Tensor]:
    """The parameters after one step of a fresh Adam, as new leaves.

    That is θ − lr · g / (|g| + 1e-8), g the gradient + weight_decay · θ: along the sign.
    """
    stepped = [parameter.detach().clone().requires_grad_() for parameter in parameters]
    for value, gradient in zip(stepped, gradients, strict=True):
        value.grad = gradient
    torch.optim.Adam(stepped, lr=lr, weight_decay=weight_decay).step()
    return stepped


@register_algorithm
class MLDG(ERM):
    """Meta-learning domain generalization.

    By the paper (algorithm 1), for a random split of the domains into S and `n_meta_test`
    others V, with the gradient of both terms:

        F(θ) = mean_{i ∈ S} L_i(θ),  G(θ) = mean_{j ∈ V} L_j(θ)
        loss = F(θ) + mldg_beta · G(θ − lr · ∇F(θ))

    As DomainBed has it, pair by pair and without second derivatives, g_i = ∇L_i(θ):

        θ_i = Adam(θ, g_i), a fresh one;  g_j = ∇L_j(θ_i)
        θ ← Adam(θ, Σ_{(i, j)} (g_i + mldg_beta · g_j) / E)

    Each meta-train domain i is paired with the meta-test domains j in turn; with
    `mldg_pairs: cyclic`, as before 2022-04-28, each domain of a random order with the next one.
    Both minibatches are cut to the shorter one's length. In every reading a domain is left to
    train on: where `n_meta_test` leaves none, DomainBed's loss is 0 and nothing is learned. Batch
    norm layers that train gather their statistics from the passes at θ; in DomainBed, where every
    pass is one of a clone, they never move.

    Attributes:
        draws: the source of the orders.
    """

    paper = (
        "Li, Yang, Song, Hospedales, Learning to Generalize: Meta-Learning for Domain "
        "Generalization, AAAI 2018, arXiv 1710.03463"
    )
    search_space = {
        "mldg_beta": LogUniform(1, -1, 1, "weight of the meta-test domains' loss"),
        "n_meta_test": Choice(
            2, (1, 2), "number of meta-test domains, fewer than there are training domains", least=1
        ),
    }
    options = {
        **two_readings(
            DOMAINBED, "a step of Adam for each pair of domains, without second derivatives"
        ),
        "mldg_pairs": Option(
            "split",
            "pairs of the reading domainbed; cyclic: DomainBed's before 2022-04-28",
            ("split", "cyclic"),
        ),
    }
    least_domains = 2
    needs_classes = False

    @classmethod
    def revision(cls, hparams: Mapping[str, Any]) -> int:
        """2: the statistics of batch norm that trains do not move in the reading domainbed."""
        return 2 if not hparams.get("freeze_bn", True) and hparams["fidelity"] == DOMAINBED else 1

    def update(self, minibatches: Minibatches, unlabeled: Unlabeled = None) -> Metrics:
        order = self.draws.permutation(len(minibatches)).tolist()
        meta_test = min(self.hparams["n_meta_test"], len(order) - 1)
        if self.option("fidelity") == PAPER:
            train, test = order[:-meta_test], order[-meta_test:]
            loss = self.paper_loss([minibatches[i] for i in train], [minibatches[j] for j in test])
            self.descend(loss)
            return as_numbers({"loss": loss})
        cyclic = self.option("mldg_pairs") == "cyclic"
        pairs = cyclic_pairs(order) if cyclic else split_pairs(order, meta_test)
        return self.update_by_pairs(minibatches, pairs)

    def paper_loss(self, train: Minibatches, test: Minibatches) -> torch.Tensor:
        """F(θ) + mldg_beta · G(θ − lr · ∇F(θ)) of meta-train and meta-test domains, a scalar."""
        risk = self.mean_risk(self.network, train)
        parameters = trained_parameters(self.network)
        gradients = gradients_of(risk, parameters, create_graph=True)
        stepped = [p - self.hparams["lr"] * g for p, g in zip(parameters, gradients, strict=True)]
        return risk + self.hparams["mldg_beta"] * self.mean_risk(moved(self.network, stepped), test)

    def mean_risk(self, network: Network, minibatches: Minibatches) -> torch.Tensor:
        """The mean over domains of their mean losses, a scalar."""
        return torch.stack([self.label_type.risk(network(x), y) for x, y in minibatches]).mean()

    def update_by_pairs(
        self, minibatches: Minibatches, pairs: Sequence[tuple[int, int]]
    ) -> Metrics:
        """One step on the first-order gradients of all pairs (meta-train, meta-test domain)."""
        parameters, domains = trained_parameters(self.network), len(minibatches)
        beta, rates = self.hparams["mldg_beta"], (self.hparams["lr"], self.hparams["weight_decay"])
        losses = []
        self.optimizer.zero_grad()
        for i, j in pairs:
            size = min(len(minibatches[i][1]), len(minibatches[j][1]))
            (x_i, y_i), (x_j, y_j) = (
                (taken(x, slice(size)), y[:size]) for x, y in (minibatches[i], minibatches[j])
            )
            # Only clones see data in DomainBed: the statistics of batch norm never move.
            risk_i = self.label_type.risk(moved(self.network, parameters)(x_i), y_i)
            g_i = gradients_of(risk_i, parameters)
            stepped = first_adam_step(parameters, g_i, *rates)
            risk_j = self.label_type.risk(moved(self.network, stepped)(x_j), y_j)
            g_j = gradients_of(risk_j, stepped)
            for parameter, first, second in zip(parameters, g_i, g_j, strict=True):
                # Added up as DomainBed does it, rounding included: Adam makes large steps of
                # small gradients.
                before = 0 if parameter.grad is None else parameter.grad
                parameter.grad = before + first / domains + beta * second / domains
            losses.append((risk_i + beta * risk_j).detach())
        self.optimizer.step()
        return {"loss": torch.stack(losses).sum().item() / domains}


def moved(network: nn.Module, values: Sequence[torch.Tensor]) -> Network:
    """The network with other values for its trained parameters, and with copies of its buffers."""
    names = [name for name, p in network.named_parameters() if p.requires_grad]
    buffers = {name: buffer.clone() for name, buffer in network.named_buffers()}
    state = {**dict(zip(names, values, strict=True)), **buffers}
    return lambda x: functional_call(network, state, (x,))
