"""LARS: steps whose length follows from the norms of weight and gradient, tensor by tensor."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn


def adapted(
    gradient: torch.Tensor, weight: torch.Tensor, weight_decay: float, trust: float
) -> torch.Tensor:
    """g' · trust ‖θ‖ / ‖g'‖ with g' = g + weight_decay · θ; g' itself where a norm is zero."""
    decayed = gradient.add(weight, alpha=weight_decay)
    own, other = weight.norm(), decayed.norm()
    ratio = torch.where((own > 0) & (other > 0), trust * own / other, torch.ones_like(own))
    return decayed * ratio


class LARS(torch.optim.Optimizer):
    """You, Gitman, Ginsburg, Large Batch Training of Convolutional Networks, arXiv 1708.03888.

        μ ← momentum · μ + g'',    θ ← θ − lr · μ

    g'' is the `adapted` gradient of matrices and kernels; of vectors (biases, normalisation) it
    is the gradient as it is, without weight decay, as in self-supervised training's usage. That of
    timm leaves all tensors as they are where there is no weight decay, so it is not this one.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        lr: float,
        weight_decay: float = 0.0,
        momentum: float = 0.9,
        trust_coefficient: float = 0.001,
    ) -> None:
        defaults = {
            **{"lr": lr, "weight_decay": weight_decay, "momentum": momentum},
            "trust_coefficient": trust_coefficient,
        }
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One step on the gradients that are there."""
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None:
                    self._move(weight, group)

    def _move(self, weight: nn.Parameter, group: dict[str, Any]) -> None:
        gradient: torch.Tensor = weight.grad  # type: ignore[assignment]  # see `step`
        if weight.dim() > 1:
            decay, trust = group["weight_decay"], group["trust_coefficient"]
            gradient = adapted(gradient, weight, decay, trust)
        state = self.state[weight]
        if "mu" not in state:
            state["mu"] = torch.zeros_like(weight)
        state["mu"].mul_(group["momentum"]).add_(gradient)
        weight.add_(state["mu"], alpha=-group["lr"])
