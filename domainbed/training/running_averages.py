"""Averages of weights that are updated along a training.

θ_t are the weights after update t, counted from 1, and θ_0 those that training begins with. Each
average costs one pass over the weights per update.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Protocol

import torch

from domainbed.algorithms.averaging import mean_rate

Weights = list[torch.Tensor]
State = dict[str, Any]


class Average(Protocol):
    """One average of weights along a training."""

    @property
    def weights(self) -> Weights:
        """The average, if training ended here."""

    def add(self, weights: Weights) -> None:
        """Takes in the weights after an update that is not recorded."""

    def add_recorded(self, weights: Weights, update: int, loss: float) -> dict[str, float]:
        """Takes in those after a recorded update, and their loss of validation.

        Returns:
            what to record of the average.
        """

    def state(self) -> State:
        """All that the average depends on, for `restore`."""

    def restore(self, state: State) -> None:
        """Goes on from a state, which may be on another device."""


class _EachAlike(ABC):
    """Takes in the weights after each update, recorded or not, and has nothing to record."""

    @abstractmethod
    def add(self, weights: Weights) -> None: ...

    def add_recorded(self, weights: Weights, update: int, loss: float) -> dict[str, float]:
        self.add(weights)
        return {}


class EMA(_EachAlike):
    """The exponential moving average: θ̄_0 = θ_0, θ̄_t = d · θ̄_{t−1} + (1 − d) · θ_t."""

    def __init__(self, weights: Weights, decay: float) -> None:
        self.weights, self.decay = copied(weights), decay

    def add(self, weights: Weights) -> None:
        torch._foreach_lerp_(self.weights, weights, 1 - self.decay)

    def state(self) -> State:
        return {"weights": self.weights}

    def restore(self, state: State) -> None:
        torch._foreach_copy_(self.weights, state["weights"])


class SMA(_EachAlike):
    """The simple moving average from update t₀ on (Arpit et al. 2022, arXiv 2110.10832, eq. 1).

    θ̄_t = θ_t for t ≤ t₀, and the mean of θ_{t₀} … θ_t from there on.
    """

    def __init__(self, weights: Weights, start: int) -> None:
        self.weights, self.start, self.updates = copied(weights), start, 0

    def add(self, weights: Weights) -> None:
        self.updates += 1
        torch._foreach_lerp_(self.weights, weights, mean_rate(self.updates, self.start + 1))

    def state(self) -> State:
        return {"weights": self.weights, "updates": self.updates}

    def restore(self, state: State) -> None:
        torch._foreach_copy_(self.weights, state["weights"])
        self.updates = state["updates"]


class WiSE(_EachAlike):
    """Between the first weights and those that there are (Wortsman et al. 2022, arXiv 2109.01903).

    θ̄_t = (1 − α) · θ_0 + α · θ_t

    Args:
        weights: θ_0, and the tensors in which training changes them.
        alpha: α.
    """

    def __init__(self, weights: Weights, alpha: float) -> None:
        self.first, self.last, self.alpha = copied(weights), weights, alpha

    @property
    def weights(self) -> Weights:
        return list(torch._foreach_lerp(self.first, self.last, self.alpha))

    def add(self, weights: Weights) -> None:
        self.last = weights

    def state(self) -> State:
        return {"first": self.first}

    def restore(self, state: State) -> None:
        torch._foreach_copy_(self.first, state["first"])


class Mean:
    """The arithmetic mean of some weights, to which more can be added."""

    def __init__(self, weights: Weights, count: int = 1) -> None:
        self.weights, self.count = copied(weights), count

    def add(self, weights: Weights, count: int = 1) -> None:
        """Takes in weights, or the mean of `count` of them."""
        self.count += count
        torch._foreach_lerp_(self.weights, weights, count / self.count)

    def add_all(self, means: Sequence[Mean]) -> Mean:
        for mean in means:
            self.add(mean.weights, mean.count)
        return self

    def copy(self) -> Mean:
        return Mean(self.weights, self.count)

    def state(self) -> State:
        return {"weights": self.weights, "count": self.count}

    @classmethod
    def restored(cls, state: State, device: torch.device) -> Mean:
        return cls([each.to(device) for each in state["weights"]], state["count"])


def copied(weights: Weights) -> Weights:
    return [each.detach().clone() for each in weights]
