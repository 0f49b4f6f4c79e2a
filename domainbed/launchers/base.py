"""The contract of launchers: a job, its tasks and the resources of one go in, a handle comes back.

A launcher is blocking, and executes the tasks while its handle is waited for; or it submits them to
an engine (a queue, a cluster), which executes them whether or not anybody waits.
"""

import math
import os
import signal
import time
import traceback
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field

from domainbed.core.registry import Registry, require_subclass
from domainbed.core.settings import Settings
from domainbed.core.stopping import Interrupted
from domainbed.runs.ownership import (
    ENGINE_VARIABLE,
    JOB_VARIABLE,
    process_named,
)
from domainbed.runs.states import (
    BUSY,
    DONE,
    FAILED,
    INTERRUPTED,
    PENDING,
    PROGRESS,
    RUNNING,
    STARTED,
    Busy,
)

LAUNCHERS: Registry[Any] = Registry(
    "launcher",
    entry_point_group="domainbed.launchers",
    check=lambda entry: require_subclass(entry, Launcher),
)

_SECONDS_BETWEEN_REPORTS = 0.3


@dataclass(frozen=True)
class Event:
    """Something happened to a task.

    Attributes:
        kind: STARTED; PROGRESS; and at the end exactly one of DONE, FAILED, INTERRUPTED (it was
            asked to stop, and can resume) and BUSY (another process is executing the same task).
            A task that is restarted, elsewhere or after its worker died, is STARTED again.
        index: the task's position in the list.
        steps: for PROGRESS, how many steps it has taken.
        error: for FAILED, the reason.
    """

    kind: str
    index: int
    steps: int = 0
    error: str = ""


@dataclass(frozen=True)
class JobReport:
    """What an engine says of a job.

    Attributes:
        state: PENDING or RUNNING; or how it ended: FAILED if by itself, else INTERRUPTED.
        why: of one that waits or has ended, in the engine's words.
        stuck: whether it waits for what does not happen unless somebody changes something.
    """

    state: str = PENDING
    why: str = ""
    stuck: bool = False

    @property
    def in_hand(self) -> bool:
        """Whether the engine has it queued or running."""
        return self.state in (PENDING, RUNNING)


class Job(ABC):
    """What to do with each task. It must be picklable."""

    @abstractmethod
    def __call__(self, task: Any, on_step: Callable[[int], None]) -> None:
        """Does one task, and calls `on_step` with the number of steps taken.

        Raises:
            Busy: another process is executing the task.
            Interrupted: it stopped because `stop_requested`.
        """

    def on_failure(self, task: Any, error: str) -> None:  # noqa: B027  # most have nothing to do
        """Records why a task FAILED that could not do so itself, as when its worker died.

        Called by whoever decides that it failed, on any machine, before the event is sent; it may
        be called more than once.

        Raises:
            OSError: it cannot be recorded.
        """


OnEvent = Callable[[Event], None]


class Resources(Settings):
    """What one task gets. None leaves it to the launcher."""

    cores: int | None = Field(None, ge=1, description="cores of one run")
    gpus: float | None = Field(
        None, ge=0, description="GPUs of one run; a share, such as 0.25, lets runs share one"
    )
    memory_gb: float | None = Field(None, gt=0, description="memory of one run, in GB")
    minutes: float | None = Field(None, gt=0, description="time limit of one run, in minutes")
    device: str | None = Field(
        None, description="what the tasks ask for, as --device; None: the best there is"
    )


@dataclass
class Handle:
    """Submitted tasks.

    Attributes:
        jobs: the engine's id of each task's job; several tasks may share one.
        logs: the file with what each task's job prints; none if it prints in this process.
    """

    jobs: Sequence[str]
    logs: Sequence[Path] = ()


class BlockingHandle(Handle, ABC):
    """Tasks of a blocking launcher."""

    @abstractmethod
    def wait(self, on_event: OnEvent) -> None:
        """Executes all tasks. One that fails, or whose process dies, stops no other.

        Args:
            on_event: called in this process and thread.

        Raises:
            KeyboardInterrupt: passed on, after the tasks were stopped where they can resume.
        """


class Launcher(Settings):
    """Where tasks are executed. A subclass's fields are the launcher's options, and its flags.

    Attributes:
        blocking: whether tasks are executed only while the handle, a `BlockingHandle`, is waited
            for.
        resource_options: the fields of `Resources` that it supports; they are its options too.
        has_after: whether `submit_after` is there.
    """

    blocking: ClassVar[bool] = True
    has_after: ClassVar[bool] = False
    resource_options: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def submit(self, job: Job, tasks: Sequence[Any], resources: Resources, folder: Path) -> Handle:
        """Takes over all tasks, and executes them in their order as far as possible.

        They are executed in the working directory of this process, with `ENGINE_VARIABLE` and
        `JOB_VARIABLE` set.

        Args:
            job: what to do with a task.
            tasks: picklable.
            resources: of one task.
            folder: the launcher's own, where all machines see it; it need not exist.

        Raises:
            UserError: the engine refuses them, with what it says.
        """

    @abstractmethod
    def parallelism(self, tasks: int, resources: Resources) -> int:
        """How many of `tasks` tasks are executed at the same time, at most."""

    def submit_after(
        self, jobs: Sequence[str], work: Callable[[], None], resources: Resources, folder: Path
    ) -> str:
        """Has an engine do some work, once, when its `jobs` have ended, whatever became of them.

        Args:
            jobs: of a handle.
            work: picklable.
            resources: of one task; the work gets them too.
            folder: as for `submit`.

        Returns:
            The engine's id of that job.

        Raises:
            UserError: the engine refuses it.
        """
        raise NotImplementedError

    def ask(self, jobs: Iterable[str]) -> dict[str, JobReport]:
        """What an engine says of those of the jobs that it still knows, in bounded time.

        Raises:
            UserError: the engine cannot be asked, or does not answer.
        """
        return {}

    def reaches(self, job: str) -> bool:
        """Whether a job may be asked for, or signalled: its id may stand in a stranger's folder.

        Where there is no engine, it must be the name of a process that this program started. No
        address is contacted that the user's own options do not name.

        Raises:
            UserError: it is a process of another machine.
        """
        return not self.blocking or process_named(job) is not None

    def cancel(self, jobs: Iterable[str]) -> None:
        """Withdraws jobs from the engine, whoever submitted them. Running ones are asked to stop.

        Where there is no engine, a job is the process that executes it, see `Process.name`.

        Raises:
            UserError: the engine cannot be asked, or a process is another machine's.
        """
        for job in jobs:
            if (pid := process_named(job)) is not None:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGTERM)


def perform(job: Job, index: int, task: Any, send: OnEvent) -> None:
    """Executes one task and reports on it. All it raises becomes an event, except Ctrl-C."""
    reported = -math.inf

    def on_step(steps: int) -> None:
        nonlocal reported
        if time.monotonic() >= reported + _SECONDS_BETWEEN_REPORTS:
            reported = time.monotonic()
            send(Event(PROGRESS, index, steps))

    send(Event(STARTED, index))
    try:
        job(task, on_step)
    except Busy:
        send(Event(BUSY, index))
    except Interrupted:
        send(Event(INTERRUPTED, index))
    except (Exception, SystemExit):  # a task that exits must not end its worker
        send(Event(FAILED, index, error=traceback.format_exc()))
    else:
        send(Event(DONE, index))


def failed(job: Job, index: int, task: Any, error: str) -> Event:
    """A FAILED, after the job recorded it; where that is impossible, the launch reports it."""
    with suppress(Exception):
        job.on_failure(task, error)
    return Event(FAILED, index, error=error)


def time_limit_reached(minutes: float | None) -> str:
    """Why a task FAILED that was stopped after so many minutes."""
    return f"it reached the time limit of {minutes:g} minutes, and can resume\n"


def engine_variables(engine: str, job: str) -> dict[str, str]:
    """`ENGINE_VARIABLE` and `JOB_VARIABLE` for tasks of this process.

    Within another engine's job, they name that engine and its job.
    """
    return {
        ENGINE_VARIABLE: os.environ.get(ENGINE_VARIABLE, engine),
        JOB_VARIABLE: os.environ.get(JOB_VARIABLE, job),
    }


@contextmanager
def environment_set(values: Mapping[str, str]) -> Iterator[None]:
    """Sets environment variables for a while: a process started meanwhile has them from the start.

    PyTorch counts threads and GPUs when it is imported; a worker could only set them too late.
    """
    before = {name: os.environ[name] for name in values if name in os.environ}
    os.environ.update(values)
    try:
        yield
    finally:
        for name in values:
            os.environ.pop(name, None)
        os.environ.update(before)
