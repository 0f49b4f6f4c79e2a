"""GroupDRO: minimise the risk of the worst domain."""

import torch
from torch import nn

from domainbed.algorithms.base import Metrics, register_algorithm
from domainbed.algorithms.erm import ERM, ForwardPass
from domainbed.config.dimensions import LogUniform, Option


def reweighted(weights: torch.Tensor, risks: torch.Tensor, rate: float) -> torch.Tensor:
    """q_e exp(rate · L_e), divided by their sum: (E,) and (E,) to (E,).

    By logarithms, so that large risks do not overflow.
    """
    return torch.softmax(weights.log() + rate * risks, dim=0)


@register_algorithm
class GroupDRO(ERM):
    """Group distributionally robust optimisation.

        q_e ← q_e exp(groupdro_eta · L_e) / Σ_e' q_e' exp(groupdro_eta · L_e')
        loss = Σ_e q_e L_e,  with the new q as a constant

    L: (E,) the domains' mean cross-entropies (Sagawa et al. 2020, algorithm 1).

    Attributes:
        q: the domains' weights, (E,), a buffer; ones at first.
    """

    paper = (
        "Sagawa, Koh, Hashimoto, Liang, Distributionally Robust Neural Networks for Group Shifts, "
        "ICLR 2020, arXiv 1911.08731"
    )
    search_space = {"groupdro_eta": LogUniform(1e-2, -3, -1, "step size of the domains' weights")}
    options = {
        "groupdro_reduction": Option(
            "sum",
            "of the weighted risks; mean: divided by E as well, DomainBed's before 2021-01-14",
            ("sum", "mean"),
        )
    }
    passes_by_domain = True

    def build(self) -> None:
        super().build()
        self.q: torch.Tensor = nn.Buffer(torch.ones(self.num_domains))

    def objective_of(self, forward: ForwardPass) -> tuple[torch.Tensor, Metrics]:
        risks = forward.domain_risks()
        reduce = torch.mean if self.option("groupdro_reduction") == "mean" else torch.sum
        self.q = reweighted(self.q, risks.detach(), self.hparams["groupdro_eta"])
        return reduce(self.q * risks), {}
