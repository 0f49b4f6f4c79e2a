"""SAND-mask: the AND-mask made smooth, and smaller where gradients vary between domains."""

import torch

from domainbed.algorithms.andmask import MaskedGradients
from domainbed.algorithms.base import register_algorithm
from domainbed.config.dimensions import LogUniform, Uniform
from domainbed.errors import log

_TINY = 1e-17  # as in the authors' code, for what is not a number


def sand_mask(gradients: torch.Tensor, tau: float, k: float) -> torch.Tensor:
    """max(0, tanh(k · (|mean_e sign g_e| − tau) / v)): (E, *shape) to (*shape).

    v: (*shape) unbiased variances over domains, 1e-17 of a single domain. A mask that is not a
    number, of gradients that are all equal and agree to tau, is 1e-17 as well.
    """
    several = len(gradients) > 1
    variances = gradients.var(dim=0) if several else torch.full_like(gradients[0], _TINY)
    agreement = gradients.sign().mean(dim=0).abs()  # from 0 to 1
    return torch.tanh(k * (agreement - tau) / variances).clamp(min=0).nan_to_num(nan=_TINY)


@register_algorithm
class SANDMask(MaskedGradients):
    """Smoothed AND-mask.

        m = max(0, tanh(k · (|mean_e sign g_e| − tau) / var_e g_e))
        θ ← Adam(θ, m · mean_e g_e / (1e-10 + mean(m)))

    g_e, m: of each parameter's shape (Shahtalebi et al. 2021). The agreement is at
    most 1, so tau = 1, which is DomainBed's default, masks everything: a warning says so. Here the
    default is the middle of the range that is drawn from; protocols named after DomainBed have
    its.
    """

    paper = (
        "Shahtalebi, Gagnon-Audet, Laleh, Faramarzi, Ahuja, Rish, SAND-mask, "
        "ICML Workshops 2021, arXiv 2106.02266"
    )
    search_space = {
        "tau": Uniform(0.5, 0, 1, "agreement of gradient signs where the mask begins", least=0),
        "k": LogUniform(1e1, -3, 5, "steepness of the mask", above=0),
    }

    def build(self) -> None:
        super().build()
        if self.hparams["tau"] >= 1:
            log.warning(
                "warning: hyper-parameter 'tau' of SANDMask is %g, which masks every gradient, so "
                "that nothing is learned: set it below 1", self.hparams["tau"],
            )  # fmt: skip

    def mask_of(self, gradients: torch.Tensor) -> torch.Tensor:
        return sand_mask(gradients, self.hparams["tau"], self.hparams["k"])
