"""Fishr: match the variances of per-sample gradients across domains."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch.nn import functional as F

from domainbed.algorithms.annealing import AnnealedPenalty
from domainbed.algorithms.base import Minibatches, concatenate, domain_sizes, register_algorithm
from domainbed.gradients import gradient_variances
from domainbed.hparams import LogUniform, Uniform


def fishr_penalty(variances: torch.Tensor) -> torch.Tensor:
    """mean_e mean_k (v_ek − v̄_k)², v̄ the mean over domains: (E, P) to a scalar.

    Ramé et al. 2022, equation 4, with the mean over the P parameters in place of the sum, as in
    the authors' experiments.
    """
    return (variances - variances.mean(dim=0)).square().mean()


@register_algorithm
class Fishr(AnnealedPenalty):
    """Invariant gradient variances.

        v_e = mean_n (g_n − mean g)²,  g_n the gradient of sample n's loss for the classifier
        v̄_e ← ema · v̄_e + (1 − ema) · v_e
        loss = CE + λ · penalty(v̄_1 / (1 − ema), …, v̄_E / (1 − ema))

    v_e: (P,), all weights and biases of the classifier. The average starts from zero, is
    updated from the first update on and passes gradients through v_e alone; dividing by 1 − ema
    keeps their scale. λ is 0 for the first `penalty_anneal_iters` updates and `lambda` after
    (Ramé et al. 2022, equation 5 and section 4).

    Attributes:
        variance_ema: v̄, (E, P).
    """

    paper = "Ramé, Dancette, Cord, Fishr, ICML 2022, arXiv 2109.02934"
    search_space = {
        "lambda": LogUniform(1000, 1, 4, "weight of the penalty after annealing"),
        "penalty_anneal_iters": Uniform(
            1500, 0, 5000, "updates before the penalty counts", integer=True, least=0
        ),
        "ema": Uniform(
            0.95, 0.90, 0.99, "memory of the variances' moving average", least=0, below=1
        ),
    }

    def __init__(
        self,
        input_shape: Sequence[int],
        num_classes: int,
        num_domains: int,
        hparams: Mapping[str, Any],
    ) -> None:
        super().__init__(input_shape, num_classes, num_domains, hparams)
        parameters = sum(parameter.numel() for parameter in self.classifier.parameters())
        self.variance_ema: torch.Tensor
        self.register_buffer("variance_ema", torch.zeros(num_domains, parameters))

    def update(
        self, minibatches: Minibatches, unlabeled: Sequence[torch.Tensor] | None = None
    ) -> dict[str, float]:
        x, y = concatenate(minibatches)
        features = self.featurizer(x)
        risk = F.cross_entropy(self.classifier(features), y)
        # While λ = 0 the variances feed the average only: no need to differentiate them.
        with nullcontext() if self.penalty_weight() else torch.no_grad():
            variances = gradient_variances(self.classifier, features, y, domain_sizes(minibatches))
            penalty = fishr_penalty(self.smoothed(variances))
        return self.descend_annealed(risk, penalty)

    def smoothed(self, variances: torch.Tensor) -> torch.Tensor:
        """Moves the average on by `variances`, (E, P), and returns it divided by 1 − ema."""
        ema = self.hparams["ema"]
        average = ema * self.variance_ema + (1 - ema) * variances
        self.variance_ema = average.detach()
        return average / (1 - ema)
