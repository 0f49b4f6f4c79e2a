"""Learning rates that fall where a validation loss does, and the same ones for another training."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch.optim.lr_scheduler import ReduceLROnPlateau

FALLS = 3
"""After so many, a training by plateau is at its end."""


class PlateauRates:
    """The learning rates of an optimizer, by the records of a training.

    The rate falls to a tenth after the second record in a row whose loss is no improvement (by a
    ten-thousandth of the best so far).

    Attributes:
        rates: for each record so far, the rate from there on.
        to_come: those of another training, which are still to be used.
    """

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self._optimizer = optimizer
        self._scheduler = ReduceLROnPlateau(optimizer, factor=0.1, patience=1)
        self.rates: list[float] = []
        self.to_come: list[float] = []

    @property
    def rate(self) -> float:
        """What the optimizer has now."""
        return float(self._optimizer.param_groups[0]["lr"])

    def follow(self, loss: float) -> bool:
        """Sets the rate by a record's loss; whether it has fallen for the last time."""
        self._scheduler.step(loss)
        self.rates.append(self.rate)
        return sum(one != next_one for one, next_one in pairwise(self.rates)) == FALLS

    def replay(self) -> bool:
        """Sets the next rate of another training; whether it was the last one."""
        for group in self._optimizer.param_groups:
            group["lr"] = self.to_come.pop(0)
        return not self.to_come
