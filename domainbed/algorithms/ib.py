"""Information bottleneck: features of small variance, in addition to ERM or IRM."""

from collections.abc import Sequence
from typing import ClassVar

import torch

from domainbed.algorithms.base import Metrics, register_algorithm
from domainbed.algorithms.erm import AnnealedPenalty, AnnealedWeight, ForwardPass, in_full_precision
from domainbed.algorithms.irm import IRM, mean_irm_penalty
from domainbed.config.dimensions import LogUniform


@in_full_precision
def bottleneck_penalty(features: Sequence[torch.Tensor]) -> torch.Tensor:
    """mean_e mean_k var_n z_nk, with divisor B − 1: (B, d) of each domain to a scalar."""
    return torch.stack([z.var(dim=0).mean() for z in features]).mean()


@register_algorithm
class IB_ERM(AnnealedPenalty):
    """ERM with an information bottleneck.

        loss = mean_e CE_e + ib_lambda · mean_e mean_k var(φ(x_e)_k)

    φ(x_e): (B, d); the variances stand for the entropy of the features (Ahuja et al. 2021,
    section 4). `ib_lambda` counts after `ib_penalty_anneal_iters` updates. DomainBed reports the
    loss as `nll` as well; here that is the risk alone.
    """

    paper = (
        "Ahuja et al., Invariance Principle Meets Information Bottleneck for Out-of-Distribution "
        "Generalization, NeurIPS 2021, arXiv 2106.06607"
    )
    search_space = {
        "ib_lambda": LogUniform(1e2, -1, 5, "weight of the features' variance after annealing"),
        "ib_penalty_anneal_iters": LogUniform(
            500, 0, 4, "updates before the features' variance counts", integer=True
        ),
    }
    weights: ClassVar[Sequence[AnnealedWeight]] = (
        AnnealedWeight("ib_lambda", "ib_penalty_anneal_iters"),
    )
    least_samples = 2

    def objective_of(self, forward: ForwardPass) -> tuple[torch.Tensor, Metrics]:
        (weight,) = self.penalty_weights()
        nll = forward.domain_risks().mean()
        penalty = bottleneck_penalty(forward.by_domain(forward.features))
        return nll + weight * penalty, {"nll": nll, "IB_penalty": penalty}


@register_algorithm
class IB_IRM(IB_ERM):
    """IRM with an information bottleneck.

        loss = mean_e CE_e + ib_lambda · mean_e mean_k var(φ(x_e)_k) + λ · mean_e g_e h_e

    The first penalty is that of `IB_ERM`, the second that of `IRM`, with its λ. Each has its own
    switch, and Adam is re-created at both.
    """

    search_space = IRM.search_space
    weights = (*IB_ERM.weights, *IRM.weights)

    def objective_of(self, forward: ForwardPass) -> tuple[torch.Tensor, Metrics]:
        ib_weight, irm_weight = self.penalty_weights()
        nll = forward.domain_risks().mean()
        ib_penalty = bottleneck_penalty(forward.by_domain(forward.features))
        invariance = mean_irm_penalty(forward)
        return nll + ib_weight * ib_penalty + irm_weight * invariance, {
            "nll": nll,
            "IB_penalty": ib_penalty,
            "IRM_penalty": invariance,
        }
