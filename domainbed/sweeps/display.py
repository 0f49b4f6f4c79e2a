"""The progress of runs that this process executes: a bar on a terminal, or lines in a log."""

import shutil
import sys
import time
from collections import Counter
from collections.abc import Sequence

from tqdm import tqdm

from domainbed.core.text_table import duration
from domainbed.launchers import Event
from domainbed.runs.states import DONE, ENDS, FAILED, PROGRESS, STARTED
from domainbed.sweeps.time_left import TimeLeft

_SECONDS_BETWEEN_LINES = 10.0
_BAR = "{desc}  {percentage:3.0f}%|{bar}| {elapsed}{postfix}"


class Display:
    """Shows the progress of a sweep by its events, in steps of all its runs.

    Args:
        steps: of each run.
        kinds: of each run, what its cost depends on; () if all cost the same.
    """

    def __init__(self, steps: Sequence[int], kinds: Sequence[str] = ()) -> None:
        self._steps, self._taken = steps, [0] * len(steps)
        self._time_left = TimeLeft(steps, kinds or [""] * len(steps))
        self._began = self._printed = time.monotonic()
        self._at_work: set[int] = set()
        self._counts: Counter[str] = Counter()
        width, height = shutil.get_terminal_size()  # by itself tqdm may find none
        self._bar = tqdm(
            total=sum(steps),
            desc="starting workers",
            bar_format=_BAR,
            smoothing=0.02,
            ncols=width,
            nrows=height,
            disable=not sys.stderr.isatty(),
        )

    def on_event(self, event: Event) -> None:
        """Counts an event, and shows the progress."""
        self._time_left.on_event(event, self._steps[event.index])
        if event.kind == PROGRESS:
            self._taken[event.index] = event.steps
        else:
            self._counts[event.kind] += 1
            self._at_work.discard(event.index)
        if event.kind == STARTED:
            self._at_work.add(event.index)
        if event.kind in ENDS:  # a run that has ended counts as a whole
            self._taken[event.index] = self._steps[event.index]
        summary = (
            f"{self._counts[DONE]} of {len(self._steps)} runs done, "
            f"{self._counts[FAILED]} failed, {len(self._at_work)} running"
        )
        now, share = time.monotonic(), sum(self._taken) / max(1, sum(self._steps))
        seconds = self._time_left.seconds()
        if seconds is None and share >= 0.01:
            seconds = (now - self._began) / share * (1 - share)
        left = "" if seconds is None else f", about {duration(seconds)} left"
        if not self._bar.disable:
            self._bar.set_description_str(summary, refresh=False)
            self._bar.set_postfix_str(left.lstrip(", "), refresh=False)
            self._bar.update(sum(self._taken) - self._bar.n)
        elif now - self._printed >= _SECONDS_BETWEEN_LINES:
            self._printed = now
            print(f"{share:4.0%}  {summary}{left}", file=sys.stderr, flush=True)

    def close(self) -> None:
        self._bar.close()
