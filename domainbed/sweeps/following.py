"""Following runs that an engine or another launch is doing; and the display of progress.

That is a bar on a terminal, and a line now and then in a log.
"""

from __future__ import annotations

import logging
import math
import shutil
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tqdm import tqdm

from domainbed.core.text_table import duration
from domainbed.launchers import Event
from domainbed.runs.states import (
    DONE,
    ENDS,
    FAILED,
    INTERRUPTED,
    PENDING,
    PROGRESS,
    RUNNING,
    STARTED,
    RunStatus,
)
from domainbed.spec import RunSpec
from domainbed.sweeps.engines import Statuses, reports
from domainbed.sweeps.status import share_taken
from domainbed.sweeps.store import Store

log = logging.getLogger(__name__)

_SECONDS_BETWEEN_LOOKS = 2.0
_SHARE_OF_LOOKS = 0.1
"""The most that is spent on reading folders: thousands of them keep a file server busy."""
_SECONDS_BETWEEN_QUESTIONS = 30.0
"""To engines; long enough for a worker that died to be replaced."""
_SECONDS_BETWEEN_LINES = 10.0
_BAR = "{desc}  {percentage:3.0f}%|{bar}| [{elapsed}<{remaining}]"


def follow(store: Store, runs: Mapping[int, RunSpec], chosen: Mapping[str, Any]) -> Iterator[Event]:
    """Events of runs that others do, like those of a launcher's handle, until all have ended.

    A run is INTERRUPTED if no process runs it and no engine knows its job, twice in a row.

    Args:
        store: of the runs.
        runs: by their indices in events.
        chosen: a config's launcher, whose options say where its engine is.
    """
    left = {spec.run_id: index for index, spec in runs.items()}
    at_work: dict[str, RunStatus] = {}  # the last status of each that was pending or running
    gone: set[str] = set()
    asked = time.monotonic()
    while left:
        began, idle = time.monotonic(), set()
        for run_id, index in list(left.items()):
            folder, steps = store.folder(run_id), runs[index].steps
            try:
                status = folder.status()
            except OSError:  # a file server may answer next time
                continue
            if status.state in (DONE, FAILED):
                del left[run_id]
                yield Event(status.state, index)
            elif status.state == RUNNING:
                if run_id not in at_work or at_work[run_id].state != RUNNING:
                    yield Event(STARTED, index)
                yield Event(PROGRESS, index, math.floor(share_taken(folder, steps) * steps))
            else:
                idle.add(run_id)
                if run_id in at_work and at_work[run_id].state == RUNNING:  # it may be requeued
                    yield Event(PENDING, index)
            if status.state in (PENDING, RUNNING, INTERRUPTED):
                at_work[run_id] = status
        if time.monotonic() - asked >= _SECONDS_BETWEEN_QUESTIONS:
            before, gone = gone, _without_a_job(idle, at_work, chosen)
            for run_id in before & gone:
                yield Event(INTERRUPTED, left.pop(run_id))
            asked = time.monotonic()
        looked = time.monotonic() - began
        time.sleep(max(_SECONDS_BETWEEN_LOOKS, looked / _SHARE_OF_LOOKS) if left else 0)


def _without_a_job(idle: set[str], at_work: Statuses, chosen: Mapping[str, Any]) -> set[str]:
    """Those of the runs that no engine has any more; none of an engine that does not answer."""
    asked = {run_id: at_work[run_id] for run_id in idle if run_id in at_work}
    told = reports(asked, chosen)
    unknown = {i for i, status in asked.items() if status.job and i not in told}
    return {i for i in idle - unknown if i not in told or not told[i].in_hand}


class Display:
    """Shows the progress of a sweep by its events, in steps of all its runs.

    Args:
        steps: of each run.
    """

    def __init__(self, steps: Sequence[int]) -> None:
        self._steps, self._taken = steps, [0] * len(steps)
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
        now = time.monotonic()
        if not self._bar.disable:
            self._bar.set_description_str(summary, refresh=False)
            self._bar.update(sum(self._taken) - self._bar.n)
        elif now - self._printed >= _SECONDS_BETWEEN_LINES:
            self._printed = now
            share = sum(self._taken) / max(1, sum(self._steps))
            line = f"{share:4.0%}  {summary}"
            if share >= 0.01:
                line += f", about {duration((now - self._began) / share * (1 - share))} left"
            print(line, file=sys.stderr, flush=True)

    def close(self) -> None:
        self._bar.close()
