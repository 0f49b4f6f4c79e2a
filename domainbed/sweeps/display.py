"""The progress of runs that this process executes: a bar, or lines in a log."""

import shutil
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Sequence

import numpy as np
from tqdm.auto import tqdm

from domainbed.core.text_table import duration
from domainbed.launchers import Event
from domainbed.runs.states import DONE, ENDS, FAILED, PROGRESS, STARTED

_SECONDS_BETWEEN_LINES = 10.0
_BAR = "{desc}  {percentage:3.0f}%|{bar}| {elapsed}{postfix}"


class Display:
    """Shows the progress of a sweep by its events, in steps of all its runs.

    Args:
        steps: of each run.
        kinds: of each run, what its cost depends on; () if all cost the same.
    """

    def __init__(self, steps: Sequence[int], kinds: Sequence[str] = ()) -> None:
        self._steps = steps
        self._time_left = TimeLeft(steps, kinds or [""] * len(steps))
        self._printed = time.monotonic()
        self._counts: Counter[str] = Counter()
        is_terminal = sys.stderr.isatty()
        width, height = shutil.get_terminal_size()  # by itself tqdm may find none
        self._bar = tqdm(
            total=sum(steps),
            desc="starting workers",
            bar_format=_BAR,
            smoothing=0.02,
            ncols=width if is_terminal else None,
            nrows=height,
            disable=not is_terminal and "ipykernel" not in sys.modules,
        )

    def on_event(self, event: Event) -> None:
        """Counts an event, and shows the progress."""
        self._time_left.on_event(event)
        if event.kind != PROGRESS:
            self._counts[event.kind] += 1
        summary = (
            f"{self._counts[DONE]} of {len(self._steps)} runs done, "
            f"{self._counts[FAILED]} failed, {len(self._time_left.began)} running"
        )
        taken = sum(self._steps) - sum(self._time_left.left)
        now, share = time.monotonic(), taken / max(1, sum(self._steps))
        seconds = self._time_left.seconds()
        left = "" if seconds is None else f", about {duration(seconds)} left"
        if not self._bar.disable:
            self._bar.set_description_str(summary, refresh=False)
            self._bar.set_postfix_str(left.lstrip(", "), refresh=False)
            self._bar.update(taken - self._bar.n)
        elif now - self._printed >= _SECONDS_BETWEEN_LINES:
            self._printed = now
            print(f"{share:4.0%}  {summary}{left}", file=sys.stderr, flush=True)

    def close(self) -> None:
        self._bar.close()


class TimeLeft:
    """Follows the events of a launch, and counts what runs cost, not how many there are.

    Args:
        steps: of each run.
        kinds: of each run, what its cost depends on, such as dataset and algorithm.

    Attributes:
        left: the steps that each run has still to take; none of one that has ended.
        began: when each run at work did, and the steps that it had to take then: 0 until its first
            step tells, since it may have resumed.
    """

    def __init__(self, steps: Sequence[int], kinds: Sequence[str]) -> None:
        self._steps, self._kinds = steps, kinds
        self.left = list(steps)
        self.began: dict[int, tuple[float, int]] = {}
        self._paces: dict[str, list[float]] = defaultdict(list)  # seconds a step

    def on_event(self, event: Event) -> None:
        """Takes an event of a run."""
        now, index = time.monotonic(), event.index
        began, at_first = self.began.pop(index, (now, 0))
        if event.kind == PROGRESS:
            self.left[index] = self._steps[index] - event.steps
            self.began[index] = began, at_first or self.left[index] + 1
        if event.kind == STARTED:
            self.began[index] = now, 0
        if event.kind in ENDS:
            self.left[index] = 0
        if event.kind == DONE and at_first:
            self._paces[self._kinds[index]].append((now - began) / at_first)

    def seconds(self) -> float | None:
        """Until all runs are done; None as long as nothing tells.

        A kind of which none is done yet is taken to cost as much as the others do on average.
        Before the first run is done, those at work tell that have taken a hundredth of their steps.
        """
        paces, now = self._paces or defaultdict(list), time.monotonic()
        for index, (began, at_first) in () if self._paces else self.began.items():
            taken = at_first - self.left[index]
            if taken > at_first / 100:
                paces[self._kinds[index]].append((now - began) / taken)
        if not paces:
            return None
        means = {kind: float(np.mean(of_kind)) for kind, of_kind in paces.items()}
        usual = float(np.mean([*means.values()]))
        costs = (left * means.get(kind, usual) for left, kind in zip(self.left, self._kinds))
        return sum(costs) / max(1, len(self.began))
