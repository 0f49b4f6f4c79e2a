"""IGA: the variance between domains of the gradients of the whole network."""

from collections.abc import Sequence

import torch

from domainbed.algorithms.andmask import domain_gradients
from domainbed.algorithms.base import Metrics, register_algorithm, trained_parameters
from domainbed.algorithms.erm import ERM, ForwardPass
from domainbed.config.dimensions import LogUniform


def gradient_spread(gradients: Sequence[torch.Tensor]) -> torch.Tensor:
    """Σ_e ‖g_e − ḡ‖² over all parameters, from a tensor (E, *shape) for each, to a scalar.

    ḡ, the mean over domains, is taken as a constant: deviations sum to 0, so the derivative is
    the same.
    """
    return torch.stack([(g - g.mean(dim=0).detach()).square().sum() for g in gradients]).sum()


@register_algorithm
class IGA(ERM):
    """Inter-environmental gradient alignment.

        loss = mean_e L_e + penalty · Σ_e ‖∇L_e − mean_e ∇L_e‖²

    ∇L_e: of all parameters of the network, differentiated once more (Koyama and Yamaguchi 2020,
    version 2). As in DomainBed the spread is a sum over domains, where the paper's
    trace of the covariance has their mean: E times the weight. With one domain it is ERM.
    """

    paper = (
        "Koyama and Yamaguchi, Out-of-Distribution Generalization with Maximal Invariant "
        "Predictor, arXiv 2008.01883 (version 2)"
    )
    search_space = {"penalty": LogUniform(1000, 1, 5, "weight of the gradients' spread")}
    separates_domains = True

    def objective_of(self, forward: ForwardPass) -> tuple[torch.Tensor, Metrics]:
        risks = forward.separate_risks()
        gradients = domain_gradients(risks, trained_parameters(self.network), create_graph=True)
        nll, penalty = torch.stack(risks).mean(), gradient_spread(gradients)
        return nll + self.hparams["penalty"] * penalty, {"nll": nll, "penalty": penalty}
