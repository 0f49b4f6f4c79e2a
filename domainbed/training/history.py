"""What the updates since the last record have returned."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from domainbed.core.record_keys import parse_average_key, parse_record_key
from domainbed.errors import UserError

_OWN_KEYS = {"step", "stage", "epoch", "step_time", "mem_gb", "hparams", "args", "diverged"}


class History:
    """Metrics by name, of one update after the other.

    What a GPU computes stays there until `settle`: reading a number would wait for all of its work.

    Args:
        algorithm: its name, for messages.
        tolerant: whether training continues after a metric that is not finite.

    Attributes:
        diverged: whether there has been such a metric.
    """

    def __init__(self, algorithm: str, tolerant: bool) -> None:
        self._algorithm, self._tolerant = algorithm, tolerant
        self._values: dict[str, list[float]] = {"step_time": []}
        self._waiting: list[tuple[int, str, torch.Tensor]] = []
        self.diverged = False

    def add(self, metrics: Any, step: int) -> None:
        """Takes what the update of a step returned.

        Raises:
            UserError: it is no dict of numbers, uses a name of the record's own, or training
                diverged, as far as that is known without waiting for a GPU.
        """
        if not isinstance(metrics, dict):
            raise UserError(
                f"the update of {self._algorithm} returned {metrics!r}: it must return a dict of "
                "numbers"
            )
        for key, value in metrics.items():
            name = str(key)
            if name in _OWN_KEYS or parse_record_key(name) or parse_average_key(name):
                raise UserError(
                    f"the update of {self._algorithm} returned a metric {key!r}, which is a key of "
                    "the record's own: choose another name"
                )
            if _is_far(value):
                self._values.setdefault(name, [])  # names stay in order
                # A copy: the algorithm may change its own.
                self._waiting.append((step, name, value.detach().clone()))
                continue
            try:
                self._append(name, float(value), step)
            except (TypeError, ValueError, RuntimeError) as error:
                raise UserError(
                    f"the update of {self._algorithm} returned {key!r} as {type(value).__name__}: "
                    "it must be one number"
                ) from error

    def restore(self, values: Mapping[str, Sequence[float]]) -> None:
        """Continues from the `values` of another session, which had settled."""
        self._values = {"step_time": []} | {name: [*given] for name, given in values.items()}
        self.diverged |= not all(math.isfinite(v) for of_steps in values.values() for v in of_steps)

    def values(self) -> dict[str, list[float]]:
        """Those since the last record, by name, without what has not settled."""
        return {name: [*of_steps] for name, of_steps in self._values.items() if of_steps}

    def add_time(self, seconds: float) -> None:
        """Takes the duration of a step."""
        self._values["step_time"].append(seconds)

    def settle(self) -> None:
        """Waits for all numbers.

        Raises:
            UserError: training diverged.
        """
        waiting, self._waiting = self._waiting, []
        for step, name, value in waiting:
            self._append(name, value.item(), step)

    def means(self) -> dict[str, float]:
        """The means since the last call, by name, without what has not settled."""
        values, self._values = self.values(), {"step_time": []}
        return {name: float(np.mean(of_steps)) for name, of_steps in values.items()}

    def _append(self, key: str, number: float, step: int) -> None:
        self._values.setdefault(key, []).append(number)
        if math.isfinite(number):
            return
        if not self._tolerant:
            raise UserError(
                f"training diverged at step {step}: {key} is {number}. Choose a smaller 'lr', or "
                "continue nevertheless with --on_divergence continue"
            )
        self.diverged = True


def _is_far(value: Any) -> bool:
    """Whether it is one number that a device other than the CPU may still be computing."""
    return isinstance(value, torch.Tensor) and value.numel() == 1 and value.device.type != "cpu"
