"""GGA: early on, search near the weights for a place where the domains' gradients are aligned."""

from collections.abc import Sequence

import torch
from torch.nn import functional as F

from domainbed.algorithms.andmask import domain_gradients
from domainbed.algorithms.base import (
    OF_AUTHORS,
    PAPER,
    Metrics,
    Minibatches,
    Objective,
    Unlabeled,
    as_numbers,
    register_algorithm,
    trained_parameters,
    two_readings,
)
from domainbed.algorithms.erm import ERM, ForwardPass
from domainbed.config.dimensions import Choice, Fixed
from domainbed.core.device import full_precision, sent

_WORSE = 0.1  # what the loss may rise by at a better place


def aligned(stacked: Sequence[torch.Tensor]) -> torch.Tensor:
    """Cosines of the gradients of all pairs of domains: (E, *shape) each to (E (E − 1) / 2,)."""
    gradients = torch.cat([g.flatten(1) for g in stacked], dim=1)
    with full_precision(gradients.device):
        unit = F.normalize(gradients, dim=1)
        first, second = torch.triu_indices(len(unit), len(unit), 1, device=unit.device)
        return (unit @ unit.T)[first, second]


@register_algorithm
class GGA(ERM):
    """Gradient-guided annealing.

        s(w) = least cosine of ∇CE_e(w) and ∇CE_e'(w),  L(w) = CE(w)
        updates gga_start … gga_end, before their step, gga_searches times:
            w' = w with noise from U(−1, 1) · gga_noise on each weight of the featurizer
            if L(w') − L* < 0.1 and s(w') > s*:  w*, s*, L* = w', s(w'), L(w')
        w ← w*

    CE_e: of domain e's minibatch, CE: of all; w: all weights; w*, s*, L* start as those of w
    (Ballas and Diou 2025). With `fidelity: authors`, as in their code, noise adds up until a w' is
    taken.
    """

    paper = (
        "Ballas, Diou, Gradient-Guided Annealing for Domain Generalization, CVPR 2025, arXiv "
        "2502.20162"
    )
    search_space = {
        "gga_start": Fixed(100, "first update with a search, from 0", least=0),
        "gga_end": Fixed(200, "last update with a search", least=0),
        "gga_searches": Fixed(250, "candidates that such an update evaluates", least=0),
        "gga_noise": Choice(1e-5, (1e-6, 1e-5), "largest move of a weight", least=0),
    }
    options = two_readings(PAPER, "authors: a random walk, not a neighbourhood", values=OF_AUTHORS)
    least_domains = 2

    def update_on(
        self, objective: Objective, minibatches: Minibatches, unlabeled: Unlabeled = None
    ) -> Metrics:
        if self.hparams["gga_start"] <= self.facts.step <= self.hparams["gga_end"]:
            self.search(minibatches)
        return super().update_on(objective, minibatches, unlabeled)

    @torch.enable_grad()
    def judged(self, minibatches: Minibatches) -> tuple[torch.Tensor, torch.Tensor]:
        """s and L at the weights as they are."""
        forward = ForwardPass(
            minibatches, self.featurizer, self.classifier, True, label_type=self.label_type
        )
        stacked = domain_gradients(forward.separate_risks(), trained_parameters(self.network))
        return aligned(stacked).min(), forward.pooled_risk().detach()

    @torch.no_grad()
    def search(self, minibatches: Minibatches) -> None:
        """Moves the featurizer's weights to the best place that is found."""
        weights, size = trained_parameters(self.featurizer), self.hparams["gga_noise"]
        here = best = start = torch.cat([w.flatten() for w in weights])
        similarity, loss = self.judged(minibatches)
        for _ in range(self.hparams["gga_searches"]):
            noise = sent(2 * self.draws.uniform(len(start)) - 1, start.device)
            here = (start if self.option("fidelity") == PAPER else here) + size * noise
            copy_to(weights, here)
            found, risk = self.judged(minibatches)
            if risk - loss < _WORSE and found > similarity:
                best, similarity, loss, here = here, found, risk, start
        copy_to(weights, best)


def copy_to(weights: Sequence[torch.Tensor], values: torch.Tensor) -> None:
    """Copies (P,) values to all weights, one after the other."""
    for weight, own in zip(weights, values.split([w.numel() for w in weights])):
        weight.copy_(own.view_as(weight))


@register_algorithm
class GGA_L(ERM):
    """Noise on the gradients, which is larger the less the domains' gradients are aligned.

        θ ← Adam(θ, ∇CE + γ (1 − c̄) ξ),  ξ ~ U(−1, 1)

    c̄: the mean cosine of ∇CE_e and ∇CE_e' over pairs of domains, γ: `gga_l_gamma`, ξ: of each
    entry. With `fidelity: authors`, as in their code, ξ ~ N(0, 1).
    """

    paper = GGA.paper
    search_space = {"gga_l_gamma": Fixed(1e-3, "noise of orthogonal gradients", least=0)}
    options = two_readings(PAPER, "authors: normal noise, not uniform", values=OF_AUTHORS)
    least_domains = 2
    separates_domains = True
    needs_classes = False

    def update(self, minibatches: Minibatches, unlabeled: Unlabeled = None) -> Metrics:
        forward, weights = self.forward_pass(minibatches), trained_parameters(self.network)
        stacked = domain_gradients(forward.separate_risks(), weights)
        scale = self.hparams["gga_l_gamma"] * (1 - aligned(stacked).mean())
        shares = sent(torch.tensor(forward.sizes) / len(forward.y), scale.device)
        is_paper = self.option("fidelity") == PAPER
        for weight, gradients in zip(weights, stacked):
            drawn = (self.draws.uniform if is_paper else self.draws.normal)(*weight.shape)
            noise = sent(2 * drawn - 1 if is_paper else drawn, scale.device)
            pooled = (shares.view(-1, *[1] * weight.dim()) * gradients).sum(dim=0)
            weight.grad = (pooled + scale * noise).to(weight.dtype)
        self.optimizer.step()
        return as_numbers({"loss": forward.pooled_risk()})
