"""Invariant risk minimization: a classifier that is optimal in every domain at once."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from domainbed.algorithms.annealing import AnnealedPenalty
from domainbed.algorithms.base import (
    Minibatches,
    concatenate,
    domain_risks,
    domain_sizes,
    register_algorithm,
    require_samples,
)
from domainbed.dimensions import LogUniform


def scale_gradient(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The derivative of CE(s · logits, labels) with respect to s, at s = 1.

    It is mean_n [ Σ_c p_nc l_nc − l_n,y ] with p = softmax(l): in closed form it needs no second
    backward pass. (B, C) and (B,) to a scalar.
    """
    expected = (logits.softmax(dim=1) * logits).sum(dim=1)
    return (expected - logits.gather(1, labels.unsqueeze(1)).squeeze(1)).mean()


def irm_penalty(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """g · h, an unbiased estimate of the squared gradient with respect to a scale of the logits.

    g is that gradient on the even positions of the minibatch and h on the odd ones; so there
    must be two samples. (B, C) and (B,) to a scalar, which may be negative.
    """
    return scale_gradient(logits[::2], labels[::2]) * scale_gradient(logits[1::2], labels[1::2])


@register_algorithm
class IRM(AnnealedPenalty):
    """IRMv1.

        loss = mean_e CE_e + λ · mean_e g_e h_e

    λ is 1 for the first `irm_penalty_anneal_iters` updates and `irm_lambda` after
    (Arjovsky et al. 2019, section 3.1 and appendix D).
    """

    paper = "Arjovsky, Bottou, Gulrajani, Lopez-Paz, Invariant Risk Minimization, arXiv 1907.02893"
    search_space = {
        "irm_lambda": LogUniform(1e2, -1, 5, "weight of the penalty after annealing"),
        "irm_penalty_anneal_iters": LogUniform(
            500, 0, 4, "updates before the penalty counts in full", integer=True
        ),
    }
    weight_name = "irm_lambda"
    anneal_name = "irm_penalty_anneal_iters"
    initial_weight = 1.0

    def update(
        self, minibatches: Minibatches, unlabeled: Sequence[torch.Tensor] | None = None
    ) -> dict[str, float]:
        require_samples(minibatches, 2, "IRM")
        x, y = concatenate(minibatches)
        sizes = domain_sizes(minibatches)
        logits, labels = self.predict(x).split(sizes), y.split(sizes)
        penalties = [irm_penalty(logits_e, y_e) for logits_e, y_e in zip(logits, labels)]
        return self.descend_annealed(
            domain_risks(logits, labels).mean(), torch.stack(penalties).mean()
        )
