"""The contract of launchers: a function and a list of tasks go in, events come out."""

from __future__ import annotations

import time
import traceback
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from domainbed.registry import Registry
from domainbed.run_folder import Busy
from domainbed.settings import Settings
from domainbed.states import BUSY, DONE, FAILED, PROGRESS, STARTED

LAUNCHERS: Registry[Any] = Registry("launcher", entry_point_group="domainbed.launchers")

_SECONDS_BETWEEN_REPORTS = 0.3


@dataclass(frozen=True)
class Event:
    """Something happened to a task.

    Attributes:
        kind: STARTED; PROGRESS; and at the end exactly one of DONE, FAILED and BUSY (another
            process is at work on the same task).
        index: the task's position in the list.
        steps: how many steps it has taken, of a PROGRESS.
        error: why it FAILED.
    """

    kind: str
    index: int
    steps: int = 0
    error: str = ""


Job = Callable[[Any, Callable[[int], None]], None]
"""`job(task, on_step)`: does one task, and calls `on_step` with the number of steps taken.

It must be picklable, and raise `Busy` for a task that another process is at work on.
"""

OnEvent = Callable[[Event], None]


class Launcher(Settings):
    """Where tasks are done. A subclass's fields are the launcher's options, and its flags."""

    @abstractmethod
    def launch(
        self, job: Job, tasks: Sequence[Any], on_event: OnEvent, device: str | None = None
    ) -> None:
        """Does all tasks, in their order as far as it can, and returns when none is left.

        A task that fails, or whose process dies, stops no other. An interrupt stops all that is
        under way, and is raised.

        Args:
            job: what to do with a task.
            tasks: picklable.
            on_event: called in this process.
            device: what the tasks ask for; None means the best there is.
        """

    @abstractmethod
    def parallelism(self, tasks: int, device: str | None = None) -> int:
        """How many of `tasks` tasks are done at the same time."""


def perform(job: Job, index: int, task: Any, send: OnEvent) -> None:
    """Does one task and tells of it. What the task raises becomes an event, but an interrupt."""
    send(Event(STARTED, index))
    try:
        job(task, _throttled(lambda steps: send(Event(PROGRESS, index, steps))))
    except Busy:
        send(Event(BUSY, index))
    except (Exception, SystemExit):  # a task that exits must not take its worker along
        send(Event(FAILED, index, error=traceback.format_exc()))
    else:
        send(Event(DONE, index))


def _throttled(report: Callable[[int], None]) -> Callable[[int], None]:
    last = 0.0

    def on_step(steps: int) -> None:
        nonlocal last
        if time.monotonic() - last >= _SECONDS_BETWEEN_REPORTS:
            last = time.monotonic()
            report(steps)

    return on_step
