"""Risk extrapolation: equal risks in all domains."""

import torch

from domainbed.algorithms.base import Metrics, register_algorithm
from domainbed.algorithms.erm import AnnealedPenalty, AnnealedWeight, ForwardPass
from domainbed.config.dimensions import LogUniform


def vrex_penalty(risks: torch.Tensor) -> torch.Tensor:
    """The mean squared deviation of the domains' risks from their mean: (E,) to a scalar."""
    return (risks - risks.mean()).square().mean()


@register_algorithm
class VREx(AnnealedPenalty):
    """V-REx.

        loss = mean_e L_e + λ · mean_e (L_e − mean L)²

    λ is 1 for the first `vrex_penalty_anneal_iters` updates and `vrex_lambda` after
    (Krueger et al. 2021, equation 8).
    """

    paper = (
        "Krueger et al., Out-of-Distribution Generalization via Risk Extrapolation, "
        "ICML 2021, arXiv 2003.00688"
    )
    search_space = {
        "vrex_lambda": LogUniform(1e1, -1, 5, "weight of the penalty after annealing"),
        "vrex_penalty_anneal_iters": LogUniform(
            500, 0, 4, "updates before the penalty counts in full", integer=True
        ),
    }
    weights = (AnnealedWeight("vrex_lambda", "vrex_penalty_anneal_iters", initial=1.0),)

    def objective_of(self, forward: ForwardPass) -> tuple[torch.Tensor, Metrics]:
        risks = forward.domain_risks()
        return self.penalised(risks.mean(), vrex_penalty(risks))
