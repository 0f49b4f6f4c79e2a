"""What runs on a Ray cluster: the tasks of a launch, and a coordinator that gives them out.

All that they and the launch tell each other is in a folder of the launch, which all nodes see: the
tasks, the events, the logs.
"""

from __future__ import annotations

import contextlib
import importlib
import math
import os
import pickle
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from domainbed.core.files import written_aside
from domainbed.core.stopping import stopping_on
from domainbed.errors import one_line
from domainbed.launchers.base import Event, Job, failed, perform, time_limit_reached
from domainbed.launchers.event_files import EventReader, EventWriter
from domainbed.runs.ownership import ENGINE_VARIABLE, JOB_VARIABLE
from domainbed.runs.states import BUSY, ENDS, FAILED, INTERRUPTED, STARTED

_TEAM = "tasks"  # whose events these are
_SECONDS_BETWEEN_LOOKS = 0.5
SECONDS_TO_STOP = 30.0
"""For a task that was asked to stop, before its process is killed."""
_SECONDS_BEFORE_RETRY = 2.0
_MOST_RETRIES_OF_BUSY = 150
_MOST_DEATHS = 2


class PickledJob(Job):
    """A job and tasks that are unpickled where they are done; others need not import them."""

    def __init__(self, job: Job) -> None:
        self._job = pickled(job)

    def __call__(self, task: bytes, on_step: Callable[[int], None]) -> None:
        pickle.loads(self._job)(pickle.loads(task), on_step)

    def on_failure(self, task: bytes, error: str) -> None:
        pickle.loads(self._job).on_failure(pickle.loads(task), error)


def pickled(value: Any) -> bytes:
    """In Ray's own way, which pickles what is defined in a script, too."""
    dumped: bytes = importlib.import_module("ray.cloudpickle").dumps(value)
    return dumped


@dataclass(frozen=True)
class Plan:
    """What a coordinator has to do, in a file: it outlives the coordinator and its node.

    Attributes:
        job: what to do with each task.
        tasks: pickled.
        jobs: the engine's id of each task.
        options: of each task, as Ray takes them.
        minutes: the time limit of each task.
        directory: the working directory of each task.
        import_path: where each finds modules, as the launching process does.
    """

    job: PickledJob
    tasks: list[bytes]
    jobs: list[str]
    options: dict[str, Any]
    minutes: float | None
    directory: str
    import_path: list[str]

    def work_here(self) -> None:
        """Makes this process one in which the tasks can be done."""
        sys.path.extend(each for each in self.import_path if each not in sys.path)
        os.chdir(self.directory)


def write_plan(
    folder: Path, job: Job, tasks: Sequence[Any], jobs: Sequence[str], options: dict[str, Any],
    minutes: float | None,
) -> None:  # fmt: skip
    """For the coordinator of this folder; tasks work in the directory of this process."""
    path = [os.path.abspath(each) for each in sys.path]
    plan = Plan(
        *(PickledJob(job), [pickled(task) for task in tasks], list(jobs), options, minutes),
        *(os.getcwd(), path),
    )
    folder.mkdir(parents=True, exist_ok=True)
    with written_aside(folder / "plan.pkl") as aside:
        aside.write_bytes(pickle.dumps(plan))


@cache
def _plan_of(folder: Path) -> Plan:
    plan: Plan = pickle.loads((folder / "plan.pkl").read_bytes())
    return plan


def life_file(folder: Path) -> Path:
    """A file that a coordinator touches while it lives."""
    return folder / "alive"


def log_file(folder: Path, index: int) -> Path:
    """What a task's job printed."""
    return folder / f"{index}.txt"


def reader_of(folder: Path) -> EventReader:
    """Of what the coordinator and the tasks report."""
    return EventReader(folder, [_TEAM])


@cache
def _writer(folder: Path) -> EventWriter:
    """That of this process, which does one task after the other."""
    return EventWriter(folder, _TEAM)


class Coordinator:
    """Gives out the tasks of a plan until all have ended. It becomes an actor."""

    def __init__(self, folder: str) -> None:
        self._folder = Path(folder)
        self._plan = _plan_of(self._folder)
        self._reader = reader_of(self._folder)
        self._left = set(range(len(self._plan.tasks)))
        self._began: dict[int, float] = {}
        # If a coordinator was there before, its node was lost, and with it all that was under way.
        self._submitted = set(self._left) if self._read_events() else set()
        self._due = dict.fromkeys(sorted(self._left), 0.0)
        self._under_way: dict[Any, int] = {}
        self._deaths: Counter[int] = Counter()
        self._busy: Counter[int] = Counter()
        self._cancelled: set[int] = set()
        self._stopped: dict[int, float] = {}
        self._ray: Any = importlib.import_module("ray")
        self._do = self._ray.remote(**self._plan.options)(do_task)
        self._me = self._ray.get_runtime_context().current_actor
        threading.Thread(target=self._work, daemon=True).start()

    def left(self) -> list[int]:
        """The tasks that have not ended."""
        return list(self._left)

    def cancel(self, indices: Sequence[int]) -> None:
        """Soon stops these tasks."""
        self._cancelled = self._cancelled | set(indices)

    def _work(self) -> None:
        try:
            while self._left:
                with contextlib.suppress(OSError):  # a full disk ends nothing
                    life_file(self._folder).touch()
                self._read_events()
                self._stop_tasks()
                self._submit_due()
                self._look()
        finally:
            self._ray.kill(self._me, no_restart=True)

    def _read_events(self) -> bool:
        """Notes which tasks have begun and ended; whether there was news."""
        events = self._reader.read()
        for event in events:
            if event.kind == STARTED:
                self._began[event.index] = time.monotonic()
        self._left -= {event.index for event in events if event.kind in ENDS}
        return bool(events)

    def _is_overdue(self, index: int) -> bool:
        limit = self._plan.minutes
        return (
            limit is not None and time.monotonic() - self._began.get(index, math.inf) >= 60 * limit
        )

    def _stop_tasks(self) -> None:
        """Stops those that were cancelled or reached their time limit."""
        for index in self._cancelled & self._due.keys():
            del self._due[index]
            self._end(Event(INTERRUPTED, index))
        now = time.monotonic()
        for reference, index in self._under_way.items():
            if index in self._stopped:
                if now - self._stopped[index] > SECONDS_TO_STOP:
                    self._ray.cancel(reference, force=True)
            elif index in self._cancelled or self._is_overdue(index):
                self._stopped[index] = now
                self._ray.cancel(reference)

    def _submit_due(self) -> None:
        now = time.monotonic()
        for index in [index for index, due in self._due.items() if due <= now]:
            del self._due[index]
            self._began.pop(index, None)
            reference = self._do.remote(str(self._folder), index, index in self._submitted)
            self._submitted.add(index)
            self._under_way[reference] = index

    def _look(self) -> None:
        """Waits for tasks that Ray has finished with, and handles them."""
        under_way = list(self._under_way)
        if not under_way:
            time.sleep(_SECONDS_BETWEEN_LOOKS)
            return
        ready, _ = self._ray.wait(
            under_way, num_returns=len(under_way), timeout=_SECONDS_BETWEEN_LOOKS
        )
        for reference in ready:
            self._judge(self._under_way.pop(reference), reference)

    def _judge(self, index: int, reference: Any) -> None:
        """Decides what becomes of a task."""
        stopped_by = self._what_stopped(index, reference)
        self._read_events()  # the event of an end may have outlived its node
        if not stopped_by:
            self._left.discard(index)
        if index not in self._left:
            return
        if index in self._cancelled:
            self._end(Event(INTERRUPTED, index))
        elif index in self._stopped:
            self._fail(index, time_limit_reached(self._plan.minutes))
        elif self._deaths[index] == _MOST_DEATHS:
            how = "out of memory, or by a signal that Ray does not tell"
            said = stopped_by.partition(" Check ")[0]
            self._fail(index, f"{_MOST_DEATHS} workers died at it: {how}. Ray says: {said}\n")
        elif stopped_by != BUSY:
            self._due[index] = time.monotonic()
        elif self._busy[index] < _MOST_RETRIES_OF_BUSY:
            # Owned by the process that was lost, which may not have noticed yet.
            self._busy[index] += 1
            self._due[index] = time.monotonic() + _SECONDS_BEFORE_RETRY
        else:
            self._end(Event(BUSY, index))

    def _what_stopped(self, index: int, reference: Any) -> str:
        """See `do_task`; or what Ray says of it."""
        errors = self._ray.exceptions
        try:
            return str(self._ray.get(reference))
        except (errors.TaskCancelledError, errors.NodeDiedError) as error:
            return one_line(error)
        except (errors.WorkerCrashedError, errors.OutOfMemoryError) as error:
            self._deaths[index] += 1
            return one_line(error)
        except Exception as error:  # a node that lacks what the task needs, for example
            self._fail(index, f"Ray: {error}\n")
            return FAILED

    def _fail(self, index: int, error: str) -> None:
        with contextlib.suppress(OSError):  # the tasks' working directory need not be on this node
            self._plan.work_here()
        self._end(failed(self._plan.job, index, self._plan.tasks[index], error))

    def _end(self, event: Event) -> None:
        _writer(self._folder).send(event)
        self._left.discard(event.index)


def do_task(folder: str, index: int, again: bool) -> str:
    """Does a task of a plan in a worker process of Ray's.

    Args:
        folder: of the launch.
        index: of the task.
        again: whether it was submitted before.

    Returns:
        "" where it has ended, as an event says. INTERRUPTED where it was asked to stop; BUSY where
        it is done `again`, and another process is at work on it.
    """
    place = Path(folder)
    plan, events = _plan_of(place), _writer(place)
    plan.work_here()
    os.environ[ENGINE_VARIABLE], os.environ[JOB_VARIABLE] = "ray", plan.jobs[index]
    withheld = [""]

    def send(event: Event) -> None:
        if event.kind == INTERRUPTED or (event.kind == BUSY and again):
            withheld[0] = event.kind
        else:
            events.send(event)

    # Ray cancels by what Ctrl-C does, and ends the workers of a node that leaves by SIGTERM.
    with _printing_to(log_file(place, index)), stopping_on([signal.SIGINT, signal.SIGTERM]):
        perform(plan.job, index, plan.tasks[index], send)
    return withheld[0]


@contextlib.contextmanager
def _printing_to(file: Path) -> Iterator[None]:
    """What this process prints, native code too, goes to the end of `file`."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a", encoding="utf-8", buffering=1) as stream:
        before = {number: os.dup(number) for number in (1, 2)}
        try:
            for number in before:
                os.dup2(stream.fileno(), number)
            with contextlib.redirect_stdout(stream), contextlib.redirect_stderr(stream):
                yield
        finally:
            for number, kept in before.items():
                os.dup2(kept, number)
                os.close(kept)
