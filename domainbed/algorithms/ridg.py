"""RIDG: the rationale for a class in a sample stays near earlier rationales for that class."""

import torch
from torch import nn

from domainbed.algorithms.base import Metrics, register_algorithm
from domainbed.algorithms.erm import ERM, ForwardPass
from domainbed.config.dimensions import LogUniform
from domainbed.core.device import full_precision


@register_algorithm
class RIDG(ERM):
    """Rationale invariance.

        R_n = W ⊙ z_n,  (K, D): what each feature adds to each logit, without the bias
        m_c = mean of R_n over the samples of class c;  bank_c ← bank_c + μ (m_c − bank_c)
        loss = CE + ridg_lambda · Σ_c mean over k, and n of class c, of Σ_d (R_n − bank_c)²_kd

    W: (K, D), z: (N, D). Only classes that are there count; the first m_c of a class is its bank,
    and later μ is `ridg_momentum`. The bank is updated first, and then is a constant (Chen et al.
    2023).

    Attributes:
        bank: (K, K, D), a buffer.
        seen: (K,), which classes have a bank, a buffer.
    """

    paper = (
        "Chen, Zhang, Song, van den Hengel, Liu, Domain Generalization via Rationale Invariance, "
        "ICCV 2023, arXiv 2308.11158"
    )
    search_space = {
        "ridg_lambda": LogUniform(0.01, -2, -1, "weight of the penalty"),
        "ridg_momentum": LogUniform(1e-3, -4, -1, "weight of a minibatch in the bank", most=1),
    }
    needs_classes = True
    needs_linear = True
    classifier: nn.Linear

    def build(self) -> None:
        super().build()
        self.bank: torch.Tensor = nn.Buffer(
            torch.zeros(self.num_classes, *self.classifier.weight.shape)
        )
        self.seen: torch.Tensor = nn.Buffer(torch.zeros(self.num_classes, dtype=torch.bool))

    def objective_of(self, forward: ForwardPass) -> tuple[torch.Tensor, Metrics]:
        risk, y = forward.pooled_risk(), forward.y
        with full_precision(y.device):
            rationales = self.classifier.weight * forward.features[:, None].to(self.bank.dtype)
            classes = torch.arange(self.num_classes, device=y.device)
            members = (y[:, None] == classes).to(self.bank.dtype)  # (N, K)
            counts = members.sum(dim=0)
            means = torch.einsum("nc,nkd->ckd", members, rationales.detach())
            means = means / counts.clamp(min=1)[:, None, None]
            rest = (1 - self.hparams["ridg_momentum"]) * self.seen.to(means.dtype)
            share = (1 - rest) * (counts > 0)
            self.bank = self.bank + share[:, None, None] * (means - self.bank)
            self.seen = self.seen | (counts > 0)
            deviations = (rationales - self.bank[y]).square().sum(dim=2).mean(dim=1)  # (N,)
            penalty = (deviations / counts[y]).sum()
        return risk + self.hparams["ridg_lambda"] * penalty, {"nll": risk, "penalty": penalty}
