"""AND-mask: steps only where the domains' gradients have one sign."""

from __future__ import annotations

import torch

from domainbed.algorithms.base import register_algorithm
from domainbed.algorithms.domain_gradients import MaskedGradients
from domainbed.config.dimensions import Uniform


def sign_agreement(gradients: torch.Tensor) -> torch.Tensor:
    """|mean_e sign g_e|, from 0 to 1: (E, *shape) to (*shape)."""
    return gradients.sign().mean(dim=0).abs()


def and_mask(gradients: torch.Tensor, tau: float) -> torch.Tensor:
    """1 where |mean_e sign g_e| ≥ tau, else 0: (E, *shape) to (*shape).

    Compared as sums, which are whole numbers: full agreement of any number of domains is 1.
    """
    votes = gradients.sign().sum(dim=0).abs()
    return (votes >= tau * len(gradients)).to(gradients.dtype)


@register_algorithm
class ANDMask(MaskedGradients):
    """Invariance by the logical AND of gradients.

        m = 1[ |mean_e sign g_e| ≥ tau ]
        θ ← Adam(θ, m · mean_e g_e / (1e-10 + mean(m)))

    g_e, m: of each parameter's shape (Parascandolo et al. 2021; the division is that of the
    authors' code). With two domains the agreement is 0 or 1, with three 1/3 or 1: every tau of
    the search space counts as 1 there.
    """

    paper = (
        "Parascandolo, Neitz, Orvieto, Gresele, Schölkopf, Learning Explanations that are Hard to "
        "Vary, ICLR 2021, arXiv 2009.00329"
    )
    search_space = {
        "tau": Uniform(1, 0.5, 1, "least agreement of the domains' gradient signs", least=0)
    }

    def mask_of(self, gradients: torch.Tensor) -> torch.Tensor:
        return and_mask(gradients, self.hparams["tau"])
