"""Invariant risk minimization: a classifier that is optimal in every domain at once."""

import torch

from domainbed.algorithms.base import Metrics, gradients_of, register_algorithm
from domainbed.algorithms.erm import AnnealedPenalty, AnnealedWeight, ForwardPass
from domainbed.config.dimensions import LogUniform
from domainbed.metrics.labels import CLASSES, Classes, LabelType


def scale_gradient(
    logits: torch.Tensor, labels: torch.Tensor, label_type: LabelType = CLASSES
) -> torch.Tensor:
    """The derivative of the risk of s · logits with respect to s, at s = 1.

    Of the cross-entropy it is mean_n [ Σ_c p_nc l_nc − l_n,y ] with p = softmax(l): in closed form
    it needs no second backward pass. (B, C) and (B, …) to a scalar.
    """
    if type(label_type) is not Classes:
        scale = logits.new_ones((), requires_grad=True)
        return gradients_of(label_type.risk(scale * logits, labels), [scale], create_graph=True)[0]
    expected = (logits.softmax(dim=1) * logits).sum(dim=1)
    return (expected - logits.gather(1, labels.unsqueeze(1)).squeeze(1)).mean()


def irm_penalty(
    logits: torch.Tensor, labels: torch.Tensor, label_type: LabelType = CLASSES
) -> torch.Tensor:
    """g · h, an unbiased estimate of the squared gradient with respect to a scale of the logits.

    g is that gradient on the even positions of the minibatch and h on the odd ones; so there
    must be two samples. (B, C) and (B, …) to a scalar, which may be negative.
    """
    g, h = (scale_gradient(logits[i::2], labels[i::2], label_type) for i in (0, 1))
    return g * h


def mean_irm_penalty(forward: ForwardPass) -> torch.Tensor:
    """The mean of `irm_penalty` over the domains, a scalar."""
    pairs = zip(forward.by_domain(forward.logits), forward.by_domain(forward.y))
    penalties = [irm_penalty(logits_e, y_e, forward.label_type) for logits_e, y_e in pairs]
    return torch.stack(penalties).mean()


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
    weights = (AnnealedWeight("irm_lambda", "irm_penalty_anneal_iters", initial=1.0),)
    least_samples = 2

    def objective_of(self, forward: ForwardPass) -> tuple[torch.Tensor, Metrics]:
        return self.penalised(forward.domain_risks().mean(), mean_irm_penalty(forward))
