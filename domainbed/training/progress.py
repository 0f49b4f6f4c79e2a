"""The progress table: on the terminal, and kept in out.txt."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from domainbed.core.files import append_text
from domainbed.core.text_table import duration, text_table

_WIDTH = 10
_LONG = 3.0  # seconds after which the time of an evaluation is printed


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
            end = "\r" + " " * 40 + "\r" if done == total else ""
            print(f"\revaluating {done:,} of {total:,} images{end}", end="", file=sys.stderr)
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
