"""Empirical risk minimisation, the baseline that everything else is compared with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from domainbed import networks
from domainbed.algorithms.base import Metrics, register_algorithm
from domainbed.algorithms.pooled import ForwardPass, PooledAlgorithm


@register_algorithm
class ERM(PooledAlgorithm):
    """Cross-entropy over all training domains, pooled.

        min_{φ, w}  CE(w(φ(x)), y),   (x, y) the concatenation of all minibatches

    x: (E·B, *input_shape), φ(x): (E·B, d), w(φ(x)): (E·B, C).

    Attributes:
        featurizer: φ.
        classifier: w.
        network: w ∘ φ.
        optimizer: Adam over the network.
    """

    paper = "Vapnik, Statistical Learning Theory, Wiley 1998"

    def __init__(
        self,
        input_shape: Sequence[int],
        num_classes: int,
        num_domains: int,
        hparams: Mapping[str, Any],
    ) -> None:
        super().__init__(input_shape, num_classes, num_domains, hparams)
        self.featurizer = networks.Featurizer(input_shape, hparams)
        self.classifier = networks.Classifier(
            self.featurizer.n_outputs, num_classes, hparams["nonlinear_classifier"]
        )
        self.network = nn.Sequential(self.featurizer, self.classifier)
        self.optimizer = self.new_optimizer(self.network)

    def new_optimizer(self, network: nn.Module, lr: float | None = None) -> torch.optim.Adam:
        """A fresh Adam over `network`, with the run's weight decay and, unless given, its rate."""
        return torch.optim.Adam(
            network.parameters(),
            lr=self.hparams["lr"] if lr is None else lr,
            weight_decay=self.hparams["weight_decay"],
        )

    def objective_of(self, forward: ForwardPass) -> tuple[torch.Tensor, Metrics]:
        return forward.pooled_risk(), {}
