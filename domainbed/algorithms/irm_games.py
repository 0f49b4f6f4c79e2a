"""IRM games: a classifier for each domain, which learns as a member of their ensemble."""

from collections.abc import Sequence

import torch
from torch import nn

from domainbed import networks
from domainbed.algorithms.base import (
    AUTHORS,
    OF_AUTHORS,
    PAPER,
    Metrics,
    Minibatches,
    Unlabeled,
    as_numbers,
    register_algorithm,
    step,
    trained_parameters,
    two_readings,
)
from domainbed.algorithms.erm import PooledAlgorithm
from domainbed.config.dimensions import Option


class Ensemble(nn.Module):
    """share · Σ_q w_q(z), of networks w_q."""

    def __init__(self, members: Sequence[nn.Module], share: float) -> None:
        super().__init__()
        self.members, self.share = nn.ModuleList(members), share

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        return self.share * torch.stack([member(z) for member in self.members]).sum(dim=0)


@register_algorithm
class IRMGames(PooledAlgorithm):
    """Invariant risk minimization games.

        f(x) = Σ_q w_q(φ(x)) / E
        updates in turn:  φ by CE(f) of all domains, then w_E, …, w_1, each by CE(f) of its own

    φ(x): (N, d), w_q(z): (N, C) (Ahuja et al. 2020). That is the game V-IRM; φ learns at
    `irm_games_lr_factor` of the rate. In F-IRM, `irm_game: fixed`, there is no φ: each w_q is a
    network from inputs to logits, and the turns are w_1, …, w_E. With `fidelity: authors`, as in
    their code, f is half the sum, whatever E is.

    Attributes:
        featurizer, classifier: φ, and f as a function of φ(x).
        optimizers: of w_1, …, w_E, and of φ.
    """

    paper = (
        "Ahuja, Shanmugam, Varshney, Dhurandhar, Invariant Risk Minimization Games, ICML 2020, "
        "arXiv 2002.04692"
    )
    options = {
        **two_readings(PAPER, "authors: half the sum of the networks", values=OF_AUTHORS),
        "irm_game": Option("variable", "V-IRM or F-IRM", ("variable", "fixed")),
        "irm_games_lr_factor": Option(
            0.1, "learning rate of the shared featurizer, relative to lr", above=0
        ),
    }
    counters = ("update_count",)
    needs_classes = False

    def build(self) -> None:
        shared, count = self.option("irm_game") == "variable", self.num_domains
        nonlinear = self.hparams["nonlinear_classifier"]
        below = [
            networks.Featurizer(self.input_shape, self.hparams)
            for _ in range(1 if shared else count)
        ]
        heads = [
            networks.Classifier(below[0].n_outputs, self.num_classes, nonlinear)
            for _ in range(count)
        ]
        members = heads if shared else [*map(nn.Sequential, below, heads)]
        self.featurizer = below[0] if shared else nn.Identity()  # type: ignore[assignment]
        share = 0.5 if self.option("fidelity") == AUTHORS else 1 / count
        self.classifier = Ensemble(members, share)
        self.optimizers, self.turns = [*map(self.new_optimizer, members)], [*range(count)]
        if trained_parameters(self.featurizer):
            rate = self.hparams["lr"] * self.option("irm_games_lr_factor")
            self.optimizers.append(self.new_optimizer(self.featurizer, lr=rate))
            self.turns = [*reversed(range(count + 1))]

    def update(self, minibatches: Minibatches, unlabeled: Unlabeled = None) -> Metrics:
        turn = self.turns[self.updates_done() % len(self.turns)]
        self.update_count += 1
        seen = minibatches if turn == self.num_domains else [minibatches[turn]]
        risk, optimizer = self.forward_pass(seen).pooled_risk(), self.optimizers[turn]
        step(optimizer, risk, of=optimizer.param_groups[0]["params"])
        return as_numbers({"loss": risk})
