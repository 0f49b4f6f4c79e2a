"""What runs on a Ray cluster: the tasks of a launch, and a coordinator that gives them out.

They communicate with the launch through its folder, which all nodes see: the tasks, the events, the
logs.
"""

import asyncio
import contextlib
import importlib
import math
import os
import pickle
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, cast

from domainbed.core.files import written_aside
from domainbed.core.stopping import stopping_on
from domainbed.errors import UserError, one_line
from domainbed.launchers.base import (
    Event,
    Job,
    JobReport,
    Resources,
    failed,
    perform,
    time_limit_reached,
)
from domainbed.launchers.event_files import EventReader, EventWriter
from domainbed.launchers.local import MOST_DEATHS, SECONDS_TO_STOP, THREAD_VARIABLES
from domainbed.runs.ownership import ENGINE_VARIABLE, JOB_VARIABLE
from domainbed.runs.states import BUSY, ENDS, FAILED, INTERRUPTED, STARTED

TEAM = "tasks"  # the name under which the coordinator and the tasks send events
AFTER = "after.pkl"  # what is done when all tasks have ended
_SECONDS_BETWEEN_LOOKS = 0.5
_SECONDS_BEFORE_RETRY = 2.0
_MOST_RETRIES_OF_BUSY = 150


def pickled(value: Any) -> bytes:
    """In Ray's own way, which pickles what is defined in a script, too."""
    return bytes(importlib.import_module("ray.cloudpickle").dumps(value))


@dataclass(frozen=True)
class Plan:
    """What a coordinator has to do, in a file: it outlives the coordinator and its node.

    Attributes:
        work: the job and its tasks, which are unpickled where they are executed.
        jobs: the engine's id of each task.
        options: of each task, as Ray takes them.
        needs: what each takes of a node, by Ray's names.
        minutes: the time limit of each task.
        directory: the working directory of each task.
        import_path: where each finds modules, as the launching process does.
    """

    work: bytes
    jobs: list[str]
    options: dict[str, Any]
    needs: dict[str, float]
    minutes: float | None
    directory: str
    import_path: list[str]

    def work_here(self) -> None:
        """Prepares this process for executing tasks."""
        sys.path.extend(each for each in self.import_path if each not in sys.path)
        os.chdir(self.directory)


def write_plan(
    folder: Path, job: Job, tasks: Sequence[Any], jobs: Sequence[str], options: dict[str, Any],
    minutes: float | None, needs: Mapping[str, float],
) -> None:  # fmt: skip
    """For the coordinator of this folder; tasks work in the directory of this process."""
    plan = Plan(
        work=pickled((job, tasks)),
        jobs=list(jobs),
        options=options,
        needs=dict(needs),
        minutes=minutes,
        directory=os.getcwd(),
        import_path=[os.path.abspath(each) for each in sys.path],
    )
    folder.mkdir(parents=True, exist_ok=True)
    with written_aside(folder / "plan.pkl") as aside:
        aside.write_bytes(pickle.dumps(plan))


def do_after(folder: Path) -> None:
    """Does the work that was written down, if it was; of several processes one does it."""
    with contextlib.suppress(FileNotFoundError):
        taken = (folder / AFTER).rename(folder / f"{AFTER}.taken")
        pickle.loads(taken.read_bytes())()


@cache
def _plan_of(folder: Path) -> Plan:
    return cast(Plan, pickle.loads((folder / "plan.pkl").read_bytes()))


@cache
def _work_of(folder: Path) -> tuple[Job, Sequence[Any]]:
    """The job of a plan and its tasks."""
    return cast(tuple[Job, Sequence[Any]], pickle.loads(_plan_of(folder).work))


def log_file(folder: Path, index: int) -> Path:
    """What a task's job printed."""
    return folder / f"{index}.txt"


@cache
def _writer(folder: Path) -> EventWriter:
    """That of this process, which executes one task after another."""
    return EventWriter(folder, TEAM)


class Coordinator:
    """Has the tasks of a plan executed until all have ended. It becomes an actor."""

    def __init__(self, folder: str) -> None:
        self._folder = Path(folder)
        self._plan = _plan_of(self._folder)
        self._reader = EventReader(self._folder, [TEAM])
        self._left = set(range(len(self._plan.jobs)))
        self._began: dict[int, float] = {}
        self._under_way: dict[int, Any] = {}
        self._cancelled: set[int] = set()
        self._stopped: dict[int, float] = {}
        self._ray: Any = importlib.import_module("ray")
        self._do = self._ray.remote(**self._plan.options)(do_task)
        self._me = self._ray.get_runtime_context().current_actor
        threading.Thread(target=lambda: asyncio.run(self._work()), daemon=True).start()

    def look(self) -> tuple[list[int], list[int], dict[str, float]]:
        """The tasks that have not ended, those that have started, and what each takes of a node."""
        return list(self._left), list(self._began), self._plan.needs

    def cancel(self, indices: Sequence[int]) -> None:
        """Soon stops these tasks."""
        self._cancelled = self._cancelled | set(indices)

    async def _work(self) -> None:
        # If a coordinator was there before, its node was lost, and with it all that was under way.
        again = self._read_events()
        at_work = [asyncio.create_task(self._see_to(index, again)) for index in sorted(self._left)]
        try:
            while self._left:
                self._read_events()
                self._stop_tasks()
                await asyncio.sleep(_SECONDS_BETWEEN_LOOKS)
                for each in filter(asyncio.Task.done, at_work):
                    each.result()  # raises what must not be lost
            with contextlib.suppress(OSError):  # as in `_fail`
                self._plan.work_here()
            do_after(self._folder)
        finally:
            self._ray.kill(self._me, no_restart=True)

    def _read_events(self) -> bool:
        """Notes which tasks have started and ended; returns whether there was any event."""
        events = self._reader.read()
        for event in events:
            if event.kind == STARTED:
                self._began[event.index] = time.monotonic()
        self._left -= {event.index for event in events if event.kind in ENDS}
        return bool(events)

    def _stop_tasks(self) -> None:
        """Stops those that were cancelled or reached their time limit."""
        now, limit = time.monotonic(), 60 * (self._plan.minutes or math.inf)
        for index, reference in self._under_way.items():
            if index in self._stopped:
                if now - self._stopped[index] > SECONDS_TO_STOP:
                    self._ray.cancel(reference, force=True)
            elif index in self._cancelled or now - self._began.get(index, math.inf) >= limit:
                self._stopped[index] = now
                self._ray.cancel(reference)

    async def _see_to(self, index: int, again: bool) -> None:
        """Has a task executed, `again` if it was submitted before, until it has ended."""
        deaths = busy = 0
        while index not in self._cancelled:
            self._began.pop(index, None)
            self._under_way[index] = self._do.remote(str(self._folder), index, again)
            stopped_by, died = await self._what_stopped(index)
            self._read_events()  # the event of an end may have outlived its node
            if not stopped_by:
                self._left.discard(index)
            if index not in self._left:
                return
            again, deaths, busy = True, deaths + died, busy + (stopped_by == BUSY)
            if index in self._cancelled:
                break
            if index in self._stopped:
                return self._fail(index, time_limit_reached(self._plan.minutes))
            if deaths == MOST_DEATHS:
                said = stopped_by.partition(" Check ")[0]
                return self._fail(
                    index,
                    f"{MOST_DEATHS} workers died at it: out of memory, or by a signal that Ray "
                    f"does not name. Ray says: {said}\n",
                )
            if busy > _MOST_RETRIES_OF_BUSY:
                return self._end(Event(BUSY, index))
            if stopped_by == BUSY:  # owned by the lost process, which may not have noticed yet
                await asyncio.sleep(_SECONDS_BEFORE_RETRY)
        self._end(Event(INTERRUPTED, index))

    async def _what_stopped(self, index: int) -> tuple[str, bool]:
        """What `do_task` returned, or what Ray says of it; and whether its worker died."""
        errors = self._ray.exceptions
        try:
            return str(await self._under_way[index]), False
        except (errors.TaskCancelledError, errors.NodeDiedError) as error:
            return one_line(error), False
        except (errors.WorkerCrashedError, errors.OutOfMemoryError) as error:
            return one_line(error), True
        except Exception as error:  # a node that lacks what the task needs, for example
            self._fail(index, f"Ray: {error}\n")
            return FAILED, False
        finally:
            del self._under_way[index]

    def _fail(self, index: int, error: str) -> None:
        with contextlib.suppress(OSError):  # the tasks' working directory need not be on this node
            self._plan.work_here()
        job, tasks = _work_of(self._folder)
        self._end(failed(job, index, tasks[index], error))

    def _end(self, event: Event) -> None:
        _writer(self._folder).send(event)
        self._left.discard(event.index)


def do_task(folder: str, index: int, again: bool) -> str:
    """Executes a task of a plan in a worker process of Ray.

    Args:
        folder: of the launch.
        index: of the task.
        again: whether it was submitted before.

    Returns:
        "" if it has ended, as an event says. INTERRUPTED if it was asked to stop; BUSY if
        it is executed `again`, and another process is executing it.
    """
    place = Path(folder)
    plan, events = _plan_of(place), _writer(place)
    plan.work_here()
    job, tasks = _work_of(place)
    os.environ[ENGINE_VARIABLE], os.environ[JOB_VARIABLE] = "ray", plan.jobs[index]
    withheld = [""]

    def send(event: Event) -> None:
        if event.kind == INTERRUPTED or (event.kind == BUSY and again):
            withheld[0] = event.kind
        else:
            events.send(event)

    # Ray cancels by what Ctrl-C does, and ends the workers of a node that leaves by SIGTERM.
    with printing_to(log_file(place, index)), stopping_on([signal.SIGINT, signal.SIGTERM]):
        perform(job, index, tasks[index], send)
    return withheld[0]


@contextlib.contextmanager
def printing_to(file: Path) -> Iterator[None]:
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


def why_waiting(
    needs: Mapping[str, float], nodes: Sequence[Mapping[str, float]], free: Mapping[str, float]
) -> JobReport:
    """What a task that waits asks for, and what there is."""
    asked = [what for what, need in needs.items() if need]
    words = ", ".join(f"{needs[what]:g} {what}" for what in asked)
    if not places(nodes, needs):
        there = ", ".join(
            f"{max((node.get(what, 0) for node in nodes), default=0):g} {what}" for what in asked
        )
        return JobReport(why=f"asks for {words}, and the nodes have at most {there}", stuck=True)
    there = ", ".join(
        f"{free.get(what, 0):g} of {sum(n.get(what, 0) for n in nodes):g} {what}" for what in asked
    )
    return JobReport(why=f"asks for {words}; free are {there}")


def needs_of(nodes: Sequence[Mapping[str, float]], resources: Resources) -> dict[str, float]:
    """What a task takes of a node, by Ray's names; by default one GPU if the cluster has any.

    Args:
        nodes: what each node of the cluster has.
        resources: of the task.

    Raises:
        UserError: part of several GPUs is asked for.
    """
    gpus = resources.gpus
    if gpus is None:
        wanted = resources.device is None or resources.device.startswith("cuda")
        gpus = float(wanted and any(node.get("GPU") for node in nodes))
    if gpus > 1 and gpus != int(gpus):
        raise UserError(f"gpus is {gpus:g}: expected a share of one GPU, or a whole number", "gpus")
    memory = float(round((resources.memory_gb or 0) * 1e9))
    return {"CPU": resources.cores or 1, "GPU": gpus, "memory": memory}


def places(nodes: Sequence[Mapping[str, float]], needs: Mapping[str, float]) -> int:
    """How many tasks the nodes have room for at the same time."""
    return sum(
        min(int(node.get(what, 0) / need + 1e-6) for what, need in needs.items() if need)
        for node in nodes
    )


def task_options(needs: Mapping[str, float], environment: Mapping[str, Any] = {}) -> dict[str, Any]:
    """Of Ray's `remote`. It ends a worker that had a GPU after a task, which frees the memory.

    Args:
        needs: of a task, by Ray's names.
        environment: the runtime environment of the sweep. A task has the rest of it from its
            coordinator, but these variables in place of all.
    """
    return {
        "num_cpus": needs["CPU"],
        "num_gpus": needs["GPU"],
        "memory": int(needs["memory"]) or None,
        "max_retries": 0,  # the coordinator decides
        "runtime_env": {
            "env_vars": {
                **dict.fromkeys(THREAD_VARIABLES, str(int(needs["CPU"]))),
                **environment.get("env_vars", {}),
            }
        },
    }
