"""Following runs that other launches have in hand, by what their folders and engines say."""

from __future__ import annotations

import contextlib
import logging
import math
import threading
import time
from collections.abc import Mapping
from typing import Any

from domainbed.errors import UserError
from domainbed.launchers import Event, OnEvent
from domainbed.runs.folder import RunFolder
from domainbed.runs.states import (
    DONE,
    FAILED,
    INTERRUPTED,
    MISSING,
    PENDING,
    PROGRESS,
    RUNNING,
    STARTED,
    RunStatus,
)
from domainbed.spec import RunSpec
from domainbed.sweeps.jobs import in_hand
from domainbed.sweeps.status import share_taken
from domainbed.sweeps.store import Store

log = logging.getLogger(__name__)

_SECONDS_BETWEEN_LOOKS = 2.0
_MOST_OF_THE_TIME = 0.1
"""That is spent on looks: one at thousands of folders keeps a file server busy."""
_SECONDS_BETWEEN_QUESTIONS = 30.0
"""To engines; also long enough for a worker that died to be replaced."""


class Following:
    """Tells of runs that others do, as the handle of a launcher does of tasks.

    A thread looks at the folders of the runs.

    Args:
        store: of the runs.
        chosen: a config's launcher, whose options say where its engine is.
        on_event: called in either thread.
    """

    def __init__(self, store: Store, chosen: Mapping[str, Any], on_event: OnEvent) -> None:
        self._store, self._chosen, self._on_event = store, chosen, on_event
        self._left: dict[int, RunSpec] = {}
        self._at_work: dict[int, RunStatus] = {}  # as each was when somebody last had it in hand
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._work, daemon=True)

    def add(self, index: int, spec: RunSpec) -> None:
        """Follows a run, of which events tell by this index."""
        self._left[index] = spec
        if not self._thread.ident:
            self._thread.start()

    def wait(self) -> None:
        """Returns when no run is left to follow.

        A run is INTERRUPTED when nobody is at it and no engine knows its job, two times in a row.
        Engines are asked here: some can only be in the main thread.
        """
        gone: set[int] = set()
        asked = time.monotonic()
        while self._left and self._thread.is_alive():
            time.sleep(_SECONDS_BETWEEN_LOOKS / 4)
            if time.monotonic() - asked >= _SECONDS_BETWEEN_QUESTIONS:
                before, gone = gone, self._gone()
                for index in before & gone:
                    self._end(Event(INTERRUPTED, index))
                asked = time.monotonic()

    def close(self) -> None:
        """Tells no more."""
        self._closed.set()

    def _work(self) -> None:
        seconds = 0.0
        while not self._closed.wait(max(_SECONDS_BETWEEN_LOOKS, seconds / _MOST_OF_THE_TIME)):
            began = time.monotonic()
            for index, spec in list(self._left.items()):
                with contextlib.suppress(OSError):  # a file server may answer at the next look
                    self._look(index, self._store.folder(spec), spec.steps)
            seconds = time.monotonic() - began

    def _look(self, index: int, folder: RunFolder, steps: int) -> None:
        status = folder.status()
        if status.state in (DONE, FAILED):
            self._end(Event(status.state, index))
        if status.state == RUNNING:
            if self._state(index) != RUNNING:
                self._tell(Event(STARTED, index))
            taken = math.floor(share_taken(folder, steps) * steps)
            self._tell(Event(PROGRESS, index, taken))
        if status.state in (PENDING, RUNNING):
            self._at_work[index] = status

    def _state(self, index: int) -> str:
        return self._at_work[index].state if index in self._at_work else MISSING

    def _gone(self) -> set[int]:
        """The runs that nobody has in hand any more; none where an engine does not answer."""
        left = {index: self._store.folder(spec) for index, spec in list(self._left.items())}
        idle = {i: f for i, f in left.items() if f.state() not in (DONE, FAILED, RUNNING)}
        jobs = {str(i): self._at_work[i] for i in idle if i in self._at_work}
        try:
            known = in_hand(jobs, self._chosen)
        except UserError as error:
            log.warning("warning: %s", error)
            return set()
        return {index for index in idle if str(index) not in known}

    def _end(self, event: Event) -> None:
        if self._left.pop(event.index, None):
            self._tell(event)

    def _tell(self, event: Event) -> None:
        if not self._closed.is_set():
            self._on_event(event)
