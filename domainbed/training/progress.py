"""What a run reports while it trains: the numbers of its updates, and the progress table."""

import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from domainbed.core.files import append_text
from domainbed.core.names import parse_average_key, parse_record_key
from domainbed.core.text_table import duration, over_progress, text_table
from domainbed.errors import UserError

_OWN_KEYS = {"step", "stage", "epoch", "step_time", "mem_gb", "hparams", "args", "diverged"}
_WIDTH = 10
_LONG = 3.0  # seconds after which the time of an evaluation is printed


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


class ProgressTable:
    """Prints one row per record, under a header that is repeated when the columns change.

    Args:
        out: the file that keeps what was printed; appended to.
        echo: also print to the terminal.
        steps: of the whole run, for the time left.
        has_column: whether a key of the record has a column.
    """

    def __init__(
        self,
        out: Path,
        echo: bool,
        steps: int,
        has_column: Callable[[str], bool] = lambda key: True,
    ) -> None:
        self._out, self._echo, self._steps, self._has_column = out, echo, steps, has_column
        self._columns: list[str] = []
        self._first: tuple[int, float] | None = None
        self._evaluation: tuple[int, float] | None = None  # images done when its clock began
        self._told = False

    def line(self, text: str = "") -> None:
        append_text(self._out, text + "\n")
        if self._echo:
            print(text, flush=True)

    def evaluating(self, done: int, total: int) -> None:
        """Counts the images of an evaluation on a terminal; elsewhere says once what it costs."""
        if not self._echo:
            return
        now = time.monotonic()
        first, began = self._evaluation or (done, now)
        # After the last images the next call is another evaluation's, with training in between.
        self._evaluation = (first, began) if done < total else None
        if sys.stderr.isatty():
            line = f"evaluating {done:,} of {total:,} images" if done < total else ""
            print(over_progress(line), end="", file=sys.stderr, flush=True)
        elif not self._told and now - began > _LONG:
            self._told = True
            seconds = (now - began) * total / (done - first)
            print(f"each evaluation of {total:,} images takes about {duration(seconds)}",
                  file=sys.stderr, flush=True)  # fmt: skip

    def record(self, record: Mapping[str, Any]) -> None:
        """Prints one record's step, losses, accuracies and the time left."""
        row = {"step": str(record["step"])}
        row |= {
            name.removesuffix("_acc"): _number(name, value)
            for name, value in record.items()
            if isinstance(value, float) and self._has_column(name)
        }
        row["left"] = self._time_left(record["step"])
        if list(row) != self._columns:
            self._columns = list(row)
            self.line(*text_table([self._columns], least=_WIDTH))
        self.line(*text_table([list(row.values())], least=_WIDTH))

    def _time_left(self, step: int) -> str:
        now = time.monotonic()
        if self._first is None:
            self._first = (step, now)
        done = step - self._first[0]
        if step + 1 >= self._steps:
            return "done"
        if not done:
            return "?"
        return duration((now - self._first[1]) / done * (self._steps - 1 - step))


def _number(name: str, value: float) -> str:
    if name.endswith("_acc"):
        return "-" if math.isnan(value) else f"{value:.3f}"  # one that nobody reads
    return f"{value:.4g}"
