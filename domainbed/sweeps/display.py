"""The progress of a sweep: a bar on a terminal, a line now and then in a log."""

from __future__ import annotations

import shutil
import sys
import threading
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

from tqdm import tqdm

from domainbed.launchers.base import Event
from domainbed.runs.states import DONE, ENDS, FAILED, PROGRESS, STARTED
from domainbed.training.progress import duration

_SECONDS_BETWEEN_LINES = 10.0
_BAR = "{desc}  {percentage:3.0f}%|{bar}| [{elapsed}<{remaining}]"


class Display:
    """Follows the events of a sweep, of several threads. Progress is in steps of all its runs.

    Args:
        steps: of each run.
    """

    def __init__(self, steps: Sequence[int]) -> None:
        self._steps = steps
        self._taken = [0] * len(steps)
        self._began = self._printed = time.monotonic()
        self._at_work: set[int] = set()
        self._lock = threading.Lock()
        self.counts: Counter[str] = Counter()
        self._bar = _bar(sum(steps)) if sys.stderr.isatty() else None

    def on_event(self, event: Event) -> None:
        """Takes note of an event, and shows it."""
        with self._lock:
            self._note(event)
            self._show()

    def _note(self, event: Event) -> None:
        if event.kind == PROGRESS:
            self._advance(event.index, event.steps)
        else:
            self.counts[event.kind] += 1
            self._at_work.discard(event.index)
        if event.kind == STARTED:
            self._at_work.add(event.index)
        if event.kind in ENDS:  # what is not left to do counts as behind us
            self._advance(event.index, self._steps[event.index])

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()

    def _advance(self, index: int, taken: int) -> None:
        more = taken - self._taken[index]
        self._taken[index] = taken
        if self._bar is not None:
            self._bar.update(more)

    def _show(self) -> None:
        if self._bar is not None:
            self._bar.set_description_str(self._summary(), refresh=False)
        elif time.monotonic() - self._printed >= _SECONDS_BETWEEN_LINES:
            self._printed = time.monotonic()
            print(self._line(), file=sys.stderr, flush=True)

    def _summary(self) -> str:
        return (
            f"{self.counts[DONE]} of {len(self._steps)} runs done, "
            f"{self.counts[FAILED]} failed, {len(self._at_work)} running"
        )

    def _line(self) -> str:
        share = sum(self._taken) / max(1, sum(self._steps))
        elapsed = time.monotonic() - self._began
        left = f", about {duration(elapsed / share * (1 - share))} left" if share >= 0.01 else ""
        return f"{share:4.0%}  {self._summary()}{left}"


def _bar(steps: int) -> tqdm[Any]:
    width, height = shutil.get_terminal_size()  # tqdm shows nothing where a terminal has no size
    return tqdm(
        total=steps,
        desc="starting workers",
        bar_format=_BAR,
        smoothing=0.02,
        ncols=width,
        nrows=height,
    )
