"""Averages of weights along a training: by how much each update moves the average."""

from __future__ import annotations

import torch
from torch import nn


@torch.no_grad()
def move_towards(network: nn.Module, target: nn.Module, rate: float) -> None:
    """θ ← θ + rate · (θ' − θ) for every floating-point entry of the state dict, in place.

    Running statistics are such entries, counts of batches are not. A rate of 1 gives θ' exactly.
    """
    destination = target.state_dict()
    for name, value in network.state_dict().items():
        if not value.is_floating_point():
            continue
        if rate == 1:
            value.copy_(destination[name])
        else:
            value += rate * (destination[name] - value)


def mean_rate(update: int, start: int) -> float:
    """The rate that makes the average an arithmetic mean.

    With it after each update, `move_towards(average, network, rate)` gives the weights as they are
    until update `start` − 1 (counted from 1), and from update `start` on the mean of those after
    the updates `start` − 1, …, `update`.
    """
    return 1 / max(1, update - start + 2)


@torch.no_grad()
def gather_statistics(average: nn.Module, x: torch.Tensor) -> None:
    """One pass of inputs x (N, …) in training mode, from which batch norm layers gather theirs."""
    average.train()
    average(x)
    average.eval()
