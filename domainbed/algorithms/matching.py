"""What methods share that make the features of different domains alike."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from domainbed.algorithms.base import Metrics
from domainbed.algorithms.erm import ERM
from domainbed.algorithms.pooled import ForwardPass
from domainbed.config.dimensions import LogUniform


class FeatureMatching(ERM):
    """loss = mean_e CE_e + mmd_gamma · penalty(φ(x_1), …, φ(x_E)).

    DomainBed reports the loss without the penalty; here it is with it, and both parts stand
    beside it.
    """

    search_space = {"mmd_gamma": LogUniform(1.0, -1, 1, "weight of the penalty on the features")}
    passes_by_domain = True

    def penalty_of(self, features: Sequence[torch.Tensor]) -> torch.Tensor:
        """A scalar of the features, (B, d) for each domain."""
        raise NotImplementedError

    def objective_of(self, forward: ForwardPass) -> tuple[torch.Tensor, Metrics]:
        nll = forward.domain_risks().mean()
        penalty = self.penalty_of(forward.by_domain(forward.features))
        return nll + self.hparams["mmd_gamma"] * penalty, {"nll": nll, "penalty": penalty}
