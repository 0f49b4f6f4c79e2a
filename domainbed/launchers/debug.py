"""The launcher for debugging: one task after the other, in this very process."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from domainbed.launchers.base import LAUNCHERS, Job, Launcher, OnEvent, perform


@LAUNCHERS.register(name="debug")
class DebugLauncher(Launcher):
    """No worker processes, so that breakpoints and prints work."""

    def launch(
        self, job: Job, tasks: Sequence[Any], on_event: OnEvent, device: str | None = None
    ) -> None:
        for index, task in enumerate(tasks):
            perform(job, index, task, on_event)

    def parallelism(self, tasks: int, device: str | None = None) -> int:
        return min(1, tasks)
