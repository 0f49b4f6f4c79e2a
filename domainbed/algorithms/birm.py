"""BIRM: IRM's penalty, at classifiers whose uncertainty depends on the amount of data."""

import torch

from domainbed.algorithms.base import (
    AUTHORS,
    OF_AUTHORS,
    PAPER,
    Metrics,
    register_algorithm,
    two_readings,
)
from domainbed.algorithms.erm import AnnealedPenalty, AnnealedWeight, ForwardPass
from domainbed.algorithms.irm import scale_gradient
from domainbed.config.dimensions import LogUniform, Uniform
from domainbed.core.device import sent

_DRAWS = 10


@register_algorithm
class BIRM(AnnealedPenalty):
    """Bayesian invariant risk minimization.

        u_e ~ N(1, (birm_prior / n)²),  ten draws for each domain
        penalty = mean over draws and domains of (∂ CE(u_e · logits_e) / ∂u_e)²
        loss = (CE + λ · penalty) / (1 + λ),  λ = birm_lambda

    n: the training samples of all domains, in a run; outside one, u_e is 1. For the first
    `birm_penalty_anneal_iters` updates λ is 0; at 1 and below nothing is divided (Lin et al. 2022).
    With `fidelity: authors`, as in their code, CE is that of the logits times the last draw.
    """

    paper = "Lin, Dong, Wang, Zhang, Bayesian Invariant Risk Minimization, CVPR 2022"
    search_space = {
        "birm_lambda": LogUniform(1e4, -1, 5, "weight of the penalty after annealing"),
        "birm_penalty_anneal_iters": LogUniform(
            200, 0, 4, "updates before the penalty counts", integer=True
        ),
        "birm_prior": Uniform(1200.0, 1000, 1500, "spread of classifiers, times n", least=0),
    }
    options = two_readings(PAPER, "authors: CE of the last noisy logits", values=OF_AUTHORS)
    weights = (AnnealedWeight("birm_lambda", "birm_penalty_anneal_iters"),)

    def switches_now(self) -> bool:
        """Never: the optimizer keeps its moments."""
        return False

    def objective_of(self, forward: ForwardPass) -> tuple[torch.Tensor, Metrics]:
        logits, y = forward.by_domain(forward.logits), forward.by_domain(forward.y)
        spread = self.hparams["birm_prior"] / max(1, sum(self.facts.group_sizes))
        noise = sent(self.draws.normal(_DRAWS, len(y)), forward.y.device)
        scales = 1 + spread * noise * bool(self.facts.group_sizes)
        gradients = [
            scale_gradient(u * logits_e, y_e, self.label_type) / u
            for draw in scales
            for u, logits_e, y_e in zip(draw, logits, y)
        ]
        penalty, risk = torch.stack(gradients).square().mean(), forward.pooled_risk()
        if self.option("fidelity") == AUTHORS:
            noisy = [u * logits_e for u, logits_e in zip(scales[-1], logits)]
            risk = self.label_type.risk(torch.cat(noisy), forward.y)
        (weight,) = self.penalty_weights()
        total = (risk + weight * penalty) / (1 + weight if weight > 1 else 1)
        return total, {"nll": risk, "penalty": penalty}
