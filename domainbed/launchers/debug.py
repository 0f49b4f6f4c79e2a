"""The launcher for debugging: one task after the other, in this very process."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from domainbed.core.stopping import SIGNALS, request_stop, stop_requested, stop_signal, stopping_on
from domainbed.launchers.base import (
    LAUNCHERS,
    Handle,
    Job,
    Launcher,
    OnEvent,
    Resources,
    engine_variables,
    environment_set,
    perform,
    this_process,
)


@LAUNCHERS.register(name="debug")
class DebugLauncher(Launcher):
    """No worker processes, so that breakpoints and prints work."""

    def submit(self, job: Job, tasks: Sequence[Any], resources: Resources, folder: Path) -> Handle:
        return _InProcess(job, tasks)

    def parallelism(self, tasks: int, resources: Resources) -> int:
        return min(1, tasks)


class _InProcess(Handle):
    def __init__(self, job: Job, tasks: Sequence[Any]) -> None:
        super().__init__([this_process()] * len(tasks))
        self._job, self._tasks, self._cancelled = job, tasks, False

    def wait(self, on_event: OnEvent) -> None:
        noted = self.noting(on_event)
        with stopping_on(SIGNALS), environment_set(engine_variables("debug", this_process())):
            for index, task in enumerate(self._tasks):
                if not (self._cancelled or stop_requested()):
                    perform(self._job, index, task, noted)
            number = stop_signal()
        if number:
            raise KeyboardInterrupt(number)

    def cancel(self) -> None:
        self._cancelled = True
        request_stop()
