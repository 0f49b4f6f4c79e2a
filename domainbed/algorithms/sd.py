"""Spectral decoupling: small logits, so that no feature starves the others of gradient."""

import torch

from domainbed.algorithms.base import Metrics, register_algorithm
from domainbed.algorithms.erm import ERM, ForwardPass
from domainbed.config.dimensions import LogUniform


def logit_penalty(logits: torch.Tensor) -> torch.Tensor:
    """The mean of the squares, in float32 or better: (N, C) to a scalar."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32)).square().mean()


@register_algorithm
class SD(ERM):
    """Spectral decoupling.

        loss = CE + sd_reg · mean_nc l_nc²

    l: (N, C) logits of all domains. The paper's equation 25 has λ/2 times the sum over classes,
    so that its λ is 2 · sd_reg / C. DomainBed reports CE as the loss; here it is `nll`.
    """

    paper = (
        "Pezeshki et al., Gradient Starvation: A Learning Proclivity in Neural Networks, "
        "NeurIPS 2021, arXiv 2011.09468"
    )
    search_space = {"sd_reg": LogUniform(0.1, -5, -1, "weight of the logits' mean square")}

    def objective_of(self, forward: ForwardPass) -> tuple[torch.Tensor, Metrics]:
        risk, penalty = forward.pooled_risk(), logit_penalty(forward.logits)
        return risk + self.hparams["sd_reg"] * penalty, {"nll": risk, "penalty": penalty}
