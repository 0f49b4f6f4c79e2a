"""What the updates since the last record returned."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from domainbed.errors import UserError
from domainbed.runs.record_keys import parse_average_key, parse_record_key

_OWN_KEYS = {"step", "stage", "epoch", "step_time", "mem_gb", "hparams", "args", "diverged"}


class History:
    """Metrics by name, of one update after the other.

    What a GPU computes stays there until `settle`: to ask for a number would wait for all of its
    work.

    Args:
        algorithm: its name, for messages.
        tolerant: go on after a metric that is not finite.

    Attributes:
        diverged: whether there has been such a metric.
    """

    def __init__(self, algorithm: str, tolerant: bool) -> None:
        self._algorithm, self._tolerant = algorithm, tolerant
        self._values: dict[str, list[float]] = {"step_time": []}
        self._waiting: dict[str, list[tuple[int, torch.Tensor]]] = {}
        self.diverged = False

    def add(self, metrics: Any, step: int) -> None:
        """Takes in what the update of a step returned.

        Raises:
            UserError: it is no dict of numbers, takes a name of the record's own, or training
                diverged, as far as that can be told without waiting.
        """
        if not isinstance(metrics, dict):
            raise UserError(
                f"the update of {self._algorithm} returned {metrics!r}: it must return a dict of "
                "numbers"
            )
        for key, value in metrics.items():
            if key in _OWN_KEYS or _is_measured(str(key)):
                raise UserError(
                    f"the update of {self._algorithm} returned a metric {key!r}, which is a key of "
                    "the record's own: choose another name"
                )
            if _is_far(value):
                self._values.setdefault(str(key), [])  # names stay in order
                # A copy: the algorithm may go on to change its own.
                kept = value.detach().clone().reshape(())
                self._waiting.setdefault(str(key), []).append((step, kept))
            else:
                self._append(str(key), self._number(str(key), value), step)

    def restore(self, values: Mapping[str, Sequence[float]]) -> None:
        """Goes on after what `values` gave; it had settled."""
        self._values = {"step_time": []} | {name: [*given] for name, given in values.items()}
        self.diverged |= not all(math.isfinite(v) for of_steps in values.values() for v in of_steps)

    def values(self) -> dict[str, list[float]]:
        """Those since the last record, by name; what has not settled is left out."""
        return {name: [*of_steps] for name, of_steps in self._values.items() if of_steps}

    def add_time(self, seconds: float) -> None:
        """Takes in how long a step took."""
        self._values["step_time"].append(seconds)

    def settle(self) -> None:
        """Waits for all numbers.

        Raises:
            UserError: training diverged.
        """
        waiting, self._waiting = self._waiting, {}
        found = [
            (step, key, number)
            for key, of_steps in waiting.items()
            for (step, _), number in zip(of_steps, _numbers([value for _, value in of_steps]))
        ]
        for step, key, number in sorted(found, key=lambda each: each[0]):  # keys stay in order
            self._append(key, number, step)

    def means(self) -> dict[str, float]:
        """The means since the last call, by name; what has not settled is left out."""
        values, self._values = self.values(), {"step_time": []}
        return {name: float(np.mean(of_steps)) for name, of_steps in values.items()}

    def _append(self, key: str, number: float, step: int) -> None:
        self._values.setdefault(key, []).append(number)
        if math.isfinite(number):
            return
        if not self._tolerant:
            raise UserError(
                f"training diverged at step {step}: {key} is {number}. Choose a smaller 'lr', or "
                "go on nevertheless with --on_divergence continue"
            )
        self.diverged = True

    def _number(self, key: str, value: Any) -> float:
        try:
            return float(value)
        except (TypeError, ValueError, RuntimeError) as error:
            raise UserError(
                f"the update of {self._algorithm} returned {key!r} as {type(value).__name__}: it "
                "must be one number"
            ) from error


def _is_far(value: Any) -> bool:
    """Whether it is one number that another device than the CPU may still compute."""
    return isinstance(value, torch.Tensor) and value.numel() == 1 and value.device.type != "cpu"


def _numbers(values: Sequence[torch.Tensor]) -> list[float]:
    """At once where they are alike, which is usual; each is exact."""
    alike = len({(value.dtype, value.device) for value in values}) == 1
    return torch.stack(list(values)).tolist() if alike else [value.item() for value in values]


def _is_measured(key: str) -> bool:
    """Whether a key is of a split, of the last weights or of an average."""
    return parse_record_key(key) is not None or parse_average_key(key) is not None
