"""How long the runs of a launch that are left will take, by what those of their kind took."""

import time
from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from domainbed.launchers import Event
from domainbed.runs.states import DONE, ENDS, PROGRESS, STARTED


class TimeLeft:
    """Follows the events of a launch, and counts what runs cost, not how many there are.

    Args:
        steps: of each run.
        kinds: of each run, what its cost depends on, such as dataset and algorithm.
    """

    def __init__(self, steps: Sequence[int], kinds: Sequence[str]) -> None:
        self._left, self._kinds = list(steps), kinds
        self._began: dict[int, tuple[float, int]] = {}  # when each run at work did, and its steps
        self._paces: dict[str, list[float]] = defaultdict(list)  # seconds a step

    def on_event(self, event: Event, steps: int) -> None:
        """Takes an event of a run that has so many steps."""
        now, index = time.monotonic(), event.index
        if event.kind == PROGRESS:
            self._left[index] = steps - event.steps
            return
        began, at_first = self._began.pop(index, (now, 0))
        if event.kind == STARTED:
            self._began[index] = now, self._left[index]
        if event.kind in ENDS:
            self._left[index] = 0
        if event.kind == DONE and at_first:
            self._paces[self._kinds[index]].append((now - began) / at_first)

    def seconds(self) -> float | None:
        """Until all runs are done; None before the first is.

        A kind of which none is done yet is taken to cost as much as the others do on average.
        """
        if not self._paces:
            return None
        means = {kind: float(np.mean(paces)) for kind, paces in self._paces.items()}
        usual = float(np.mean([*means.values()]))
        costs = (left * means.get(kind, usual) for left, kind in zip(self._left, self._kinds))
        return sum(costs) / max(1, len(self._began))
