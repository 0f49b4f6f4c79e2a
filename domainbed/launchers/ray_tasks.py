"""What runs on a Ray cluster: a coordinator, which gives out the tasks of a launch, and they.

All that they and the launch tell each other lies in a folder of the launch, which all nodes see:
the tasks, the events, the logs.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import pickle
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from domainbed.core.files import written_aside
from domainbed.core.stopping import request_stop, stopping_on
from domainbed.errors import one_line
from domainbed.launchers.base import Event, Job, failed, perform
from domainbed.launchers.event_files import EventReader, EventWriter
from domainbed.runs.ownership import ENGINE_VARIABLE, JOB_VARIABLE
from domainbed.runs.states import BUSY, ENDS, FAILED, INTERRUPTED

_TEAM = "tasks"  # whose events these are
SECONDS_BETWEEN_LOOKS = 0.5
SECONDS_TO_STOP = 30.0
"""For a task that was asked to stop, before its process is killed."""
_SECONDS_BEFORE_RETRY = 2.0
_MOST_RETRIES_OF_BUSY = 150
_MOST_DEATHS = 2


@dataclass(frozen=True)
class Plan:
    """What a coordinator is to see to, in a file: it outlives the coordinator and its node.

    Attributes:
        job, tasks: pickled; the coordinator need not import what they are made of.
        jobs: the engine's id of each task.
        options: of each task, as Ray takes them.
        minutes: the time limit of each task.
        directory: the working directory of each task.
        import_path: where each finds modules, as this process does.
    """

    job: bytes
    tasks: list[bytes]
    jobs: list[str]
    options: dict[str, Any]
    minutes: float | None
    directory: str
    import_path: list[str]

    @classmethod
    def of(
        cls, job: Job, tasks: Sequence[Any], jobs: Sequence[str], options: dict[str, Any],
        minutes: float | None,
    ) -> Plan:  # fmt: skip
        """The plan of this process: its working directory is that of the tasks."""
        # Ray's own way pickles what is defined in a script, too.
        dumps = importlib.import_module("ray.cloudpickle").dumps
        pickled = [dumps(task) for task in tasks]
        directory = os.getcwd()
        path = [os.path.abspath(each) for each in sys.path]
        return cls(dumps(job), pickled, list(jobs), options, minutes, directory, path)

    def write(self, folder: Path) -> None:
        """For the coordinator that works in this folder."""
        folder.mkdir(parents=True, exist_ok=True)
        with written_aside(_plan_file(folder)) as aside:
            aside.write_bytes(pickle.dumps(self))


def _plan_file(folder: Path) -> Path:
    return folder / "plan.pkl"


def life_file(folder: Path) -> Path:
    """What a coordinator touches while it lives."""
    return folder / "alive"


def log_file(folder: Path, index: int) -> Path:
    """What a task's job printed."""
    return folder / f"{index}.txt"


def reader_of(folder: Path) -> EventReader:
    """Of what the coordinator and the tasks tell."""
    return EventReader(folder, [_TEAM])


class Coordinator:
    """Gives out the tasks of a plan until all are at their end. It becomes an actor."""

    def __init__(self, folder: str) -> None:
        self._folder = Path(folder)
        self._plan: Plan = pickle.loads(_plan_file(self._folder).read_bytes())
        self._reader = reader_of(self._folder)
        self._events = EventWriter(self._folder, _TEAM)
        self._left = set(range(len(self._plan.tasks)))
        # If a coordinator was there before, its node was lost, and with it all that was under way.
        self._begun = set(self._left) if self._drop_ended() else set()
        self._due = dict.fromkeys(sorted(self._left), 0.0)
        self._busy: Counter[int] = Counter()
        self._under_way: dict[Any, int] = {}
        self._deaths: Counter[int] = Counter()
        self._cancelled: dict[int, float] = {}
        self._asked: list[int] = []
        self._ray: Any = importlib.import_module("ray")
        self._do = self._ray.remote(**self._plan.options)(do_task)
        self._me = self._ray.get_runtime_context().current_actor
        threading.Thread(target=self._work, daemon=True).start()

    def left(self) -> list[int]:
        """The tasks that are not at their end."""
        return list(self._left)

    def cancel(self, indices: Sequence[int]) -> None:
        """Soon stops these tasks."""
        self._asked.extend(indices)

    def _work(self) -> None:
        try:
            while self._left:
                with contextlib.suppress(OSError):  # a full disk ends nothing
                    life_file(self._folder).touch()
                self._cancel_asked()
                self._submit_due()
                self._look()
            for file in (_plan_file, life_file):
                with contextlib.suppress(OSError):
                    file(self._folder).unlink()
        finally:
            self._ray.kill(self._me, no_restart=True)

    def _submit_due(self) -> None:
        now = time.monotonic()
        for index in [index for index, due in self._due.items() if due <= now]:
            del self._due[index]
            reference = self._do.remote(
                Place(str(self._folder), index, self._plan.jobs[index]),
                self._plan.directory,
                self._plan.import_path,
                (self._plan.job, self._plan.tasks[index]),
                self._plan.minutes,
                index in self._begun,
            )
            self._begun.add(index)
            self._under_way[reference] = index

    def _look(self) -> None:
        """Waits for tasks that Ray is done with, and deals with them."""
        under_way = list(self._under_way)
        if not under_way:
            time.sleep(SECONDS_BETWEEN_LOOKS)
            return
        ready, _ = self._ray.wait(
            under_way, num_returns=len(under_way), timeout=SECONDS_BETWEEN_LOOKS
        )
        for reference in ready:
            self._judge(self._under_way.pop(reference), reference)

    def _judge(self, index: int, reference: Any) -> None:
        """Decides what becomes of a task."""
        stopped_by = self._what_stopped(index, reference)
        if not stopped_by:
            self._left.discard(index)
        self._drop_ended()  # the event of an end may have outlived its node
        if index not in self._left:
            return
        if index in self._cancelled:
            self._end(Event(INTERRUPTED, index))
        elif self._deaths[index] == _MOST_DEATHS:
            how = "out of memory, or by a signal that Ray does not tell"
            said = stopped_by.partition(" Check ")[0]
            self._fail(index, f"{_MOST_DEATHS} workers died at it: {how}. Ray says: {said}\n")
        elif stopped_by == BUSY:
            self._wait_for_other(index)
        else:
            self._due[index] = time.monotonic()

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
        except Exception as error:  # a node that lacks what the task needs, say
            self._fail(index, f"Ray: {error}\n")
            return FAILED

    def _wait_for_other(self, index: int) -> None:
        """A task is in the hands of the process that was lost: it may not have noticed yet."""
        self._busy[index] += 1
        if self._busy[index] < _MOST_RETRIES_OF_BUSY:
            self._due[index] = time.monotonic() + _SECONDS_BEFORE_RETRY
        else:
            self._end(Event(BUSY, index))

    def _drop_ended(self) -> bool:
        """Forgets the tasks that are at their end by what they told; whether there was news."""
        events = self._reader.read()
        self._left -= {event.index for event in events if event.kind in ENDS}
        return bool(events)

    def _fail(self, index: int, error: str) -> None:
        with contextlib.suppress(OSError):  # the tasks' working directory need not be on this node
            _work_in(self._plan.directory, self._plan.import_path)
        self._end(_failed(self._plan.job, index, self._plan.tasks[index], error))

    def _end(self, event: Event) -> None:
        self._events.send(event)
        self._left.discard(event.index)

    def _cancel_asked(self) -> None:
        now = time.monotonic()
        count = len(self._asked)  # more may come meanwhile
        asked, self._asked[:count] = set(self._asked[:count]) & self._left, []
        for index in asked:
            self._cancelled.setdefault(index, now)
            if self._due.pop(index, None) is not None:
                self._end(Event(INTERRUPTED, index))
        for reference, index in self._under_way.items():
            is_late = now - self._cancelled.get(index, now) > SECONDS_TO_STOP
            if index in asked or is_late:
                self._ray.cancel(reference, force=is_late)


class Place(NamedTuple):
    """A task of a launch: the folder, the index, the engine's id."""

    folder: str
    task: int
    job: str


_writers: dict[Path, EventWriter] = {}
"""Those of this worker process, which does one task after the other."""


def do_task(
    place: Place, directory: str, import_path: Sequence[str], pickled: tuple[bytes, bytes],
    minutes: float | None, again: bool,
) -> str:  # fmt: skip
    """Does a task in a worker process of Ray's.

    Args:
        place: which task it is, of the launch in which folder, and as which job.
        directory: to work in.
        import_path: where to find modules that this process does not find.
        pickled: the job and the task.
        minutes: the time limit.
        again: whether it was begun before.

    Returns:
        "" where it is at its end, of which an event tells. INTERRUPTED where it was asked to stop;
        BUSY where it is done `again`, and another process is at work on it.
    """
    folder, index = Path(place.folder), place.task
    _work_in(directory, import_path)
    os.environ[ENGINE_VARIABLE], os.environ[JOB_VARIABLE] = "ray", place.job
    if folder not in _writers:
        _writers[folder] = EventWriter(folder, _TEAM)
    withheld = [""]
    overdue = threading.Event()

    def send(event: Event) -> None:
        if event.kind == INTERRUPTED and overdue.is_set():
            error = f"it reached the time limit of {minutes:g} minutes, and can go on\n"
            event = _failed(pickled[0], index, pickled[1], error)
        if event.kind == INTERRUPTED or (event.kind == BUSY and again):
            withheld[0] = event.kind
        else:
            _writers[folder].send(event)

    with (
        _printing_to(log_file(folder, index)),
        # Ray cancels by what Ctrl-C does, and ends the workers of a node that leaves by SIGTERM.
        stopping_on([signal.SIGINT, signal.SIGTERM]),
        _stopped_after(minutes, overdue),
    ):
        perform(_unpickle_and_do, index, pickled, send)
    return withheld[0]


def _unpickle_and_do(pickled: tuple[bytes, bytes], on_step: Callable[[int], None]) -> None:
    """The job of a pickled job and its task: where they cannot be unpickled, the task fails."""
    job, task = map(pickle.loads, pickled)
    job(task, on_step)


def _failed(job: bytes, index: int, task: bytes, error: str) -> Event:
    """As `failed`, of a pickled job and its task; a machine may lack what they are made of."""
    with contextlib.suppress(Exception):
        return failed(pickle.loads(job), index, pickle.loads(task), error)
    return Event(FAILED, index, error=error)


def _work_in(directory: str, import_path: Sequence[str]) -> None:
    sys.path.extend(each for each in import_path if each not in sys.path)
    os.chdir(directory)


@contextmanager
def _stopped_after(minutes: float | None, overdue: threading.Event) -> Iterator[None]:
    def stop() -> None:
        overdue.set()
        request_stop()

    timer = threading.Timer(60 * (minutes or 0), stop)
    timer.daemon = True
    if minutes is not None:
        timer.start()
    try:
        yield
    finally:
        timer.cancel()


@contextmanager
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
