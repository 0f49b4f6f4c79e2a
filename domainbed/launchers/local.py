"""The launchers for one machine: in this process, or in workers that share its cores and GPUs."""

from __future__ import annotations

import contextlib
import math
import multiprocessing
import os
import signal
import threading
import time
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from multiprocessing import connection, resource_tracker
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import Field

from domainbed.core.cores import usable_cores
from domainbed.core.settings import Items, Text
from domainbed.core.stopping import (
    SIGNALS,
    handled,
    request_stop,
    stop_requested,
    stop_signal,
    stopping_on,
)
from domainbed.errors import UserError, log
from domainbed.launchers.base import (
    LAUNCHERS,
    BlockingHandle,
    Event,
    Job,
    Launcher,
    OnEvent,
    Resources,
    engine_variables,
    environment_set,
    failed,
    perform,
    time_limit_reached,
)
from domainbed.runs.ownership import Process
from domainbed.runs.states import INTERRUPTED, PROGRESS, STARTED

_SPAWN = multiprocessing.get_context("spawn")
_SECONDS_BETWEEN_CHECKS = 1.0
# For a task that was asked to stop: a step of a large network, and a checkpoint on a slow disk.
SECONDS_TO_STOP = 30.0
_SECONDS_TO_END = 3.0
# For what libraries do at the end of a process: the last upload of a tracker, for example.
_SECONDS_TO_FINISH = 30.0
MOST_DEATHS = 2
# What a terminal sends to all of its processes: the parent decides what it means for workers.
_OF_THE_TERMINAL = [number for number in SIGNALS if number != signal.SIGTERM]

THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


@LAUNCHERS.register(name="debug")
class DebugLauncher(Launcher):
    """No worker processes, so that breakpoints and prints work."""

    def submit(
        self, job: Job, tasks: Sequence[Any], resources: Resources, folder: Path
    ) -> BlockingHandle:
        return _InProcess(job, tasks)

    def parallelism(self, tasks: int, resources: Resources) -> int:
        return min(1, tasks)


class _InProcess(BlockingHandle):
    def __init__(self, job: Job, tasks: Sequence[Any]) -> None:
        super().__init__([Process.here().name()] * len(tasks))
        self._job, self._tasks = job, tasks

    def wait(self, on_event: OnEvent) -> None:
        with (
            stopping_on(SIGNALS),
            environment_set(engine_variables("debug", Process.here().name())),
        ):
            for index, task in enumerate(self._tasks):
                if not stop_requested():
                    perform(self._job, index, task, on_event)
            number = stop_signal()
        if number:
            raise KeyboardInterrupt(number)


@LAUNCHERS.register(name="local")
class LocalLauncher(Launcher):
    """N workers, each of which keeps PyTorch and the dataset loaded between runs.

    As many as the GPUs take, or one per core where there is no GPU, unless `workers` says how many.
    """

    resource_options: ClassVar[tuple[str, ...]] = ("cores", "minutes")

    workers: int | None = Field(
        None,
        ge=1,
        description="worker processes of the launcher local",
        json_schema_extra={"default_text": "as many as GPUs or cores take"},
    )
    runs_per_gpu: int = Field(
        1, ge=1, description="runs that share a GPU at a time, with the launcher local"
    )
    gpu_ids: Items[Annotated[int, Field(ge=0)] | Text] | None = Field(
        None,
        description="the GPUs to use with the launcher local, as CUDA_VISIBLE_DEVICES names them",
        json_schema_extra={"default_text": "all", "several_words": True},
    )

    def submit(self, job: Job, tasks: Sequence[Any], resources: Resources, folder: Path) -> Pool:
        if (resources.cores or 0) > usable_cores():
            log.warning(
                "warning: a run has %d threads, and this machine %d cores for them",
                resources.cores, usable_cores(),
            )  # fmt: skip
        return Pool(
            job,
            tasks,
            self._places(resources)[: self.parallelism(len(tasks), resources)],
            resources.minutes,
        )

    def parallelism(self, tasks: int, resources: Resources) -> int:
        return min(self._capacity(resources), tasks)

    def _capacity(self, resources: Resources) -> int:
        on_gpus = len(self._gpus(resources.device)) * self.runs_per_gpu
        return self.workers or on_gpus or max(1, usable_cores() // (resources.cores or 1))

    def _places(self, resources: Resources) -> list[Mapping[str, str]]:
        """The environment variables of each worker: its threads, and its GPU."""
        capacity, gpus = self._capacity(resources), self._gpus(resources.device)
        # By all workers, not by those that this launch has tasks for: another number of threads
        # rounds differently, and what is resumed alone should end as it would have among others.
        threads = resources.cores or max(1, usable_cores() // capacity)
        usual = dict.fromkeys(THREAD_VARIABLES, str(threads))
        usual |= engine_variables("local", Process.here().name())
        own = [{"CUDA_VISIBLE_DEVICES": gpu} for gpu in gpus] or [{}]
        return [{**usual, **own[number % len(own)]} for number in range(capacity)]

    def _gpus(self, device: str | None) -> list[str]:
        """The GPUs to share out.

        Raises:
            UserError: one was chosen that there is not.
        """
        there = visible_gpus(device)
        chosen = there if self.gpu_ids is None else [str(gpu) for gpu in self.gpu_ids]
        if missing := [gpu for gpu in chosen if gpu not in there]:
            raise UserError(
                f"gpu_ids has {', '.join(missing)}: expected some of the GPUs that may be used "
                f"here, {', '.join(there) or 'of which there are none'}",
                "launcher",
                "gpu_ids",
            )
        return chosen


def visible_gpus(device: str | None) -> list[str]:
    """The GPUs that may be used, as CUDA_VISIBLE_DEVICES names them; none for any other device.

    A device with a number, "cuda:1", is the user's own choice of one GPU: nothing is shared out.
    """
    if device not in (None, "cuda"):
        return []
    import torch

    count = torch.cuda.device_count()
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    return named.split(",")[:count] if named else [str(number) for number in range(count)]


class _Worker:
    """One process and its current task.

    Attributes:
        place: the environment variables that make its share of the machine.
        index: of the task; None while it has none.
        began: when that task started, by the monotonic clock; infinite while it has not.
        asked_to_stop: when that was, by the monotonic clock.
        is_leaving: whether it gets no more tasks.
    """

    def __init__(self, place: Mapping[str, str]) -> None:
        self.place = place
        self.connection, theirs = _SPAWN.Pipe()
        self.index: int | None = None
        self.began = math.inf
        self.asked_to_stop: float | None = None
        self.is_leaving = False
        # Not daemonic: a daemon may not start the processes that read images.
        self.process = _SPAWN.Process(target=_work, args=(theirs,), daemon=False)
        with environment_set(place):
            self.process.start()
        theirs.close()

    def send(self, message: Any) -> None:
        with contextlib.suppress(OSError):  # it is dead: found out at the next look
            self.connection.send(message)

    def events(self) -> Iterator[Event]:
        """What it has sent; `is_leaving` afterwards if it died."""
        alive = self.process.is_alive()  # asked first: its last events may still be in the pipe
        try:
            while self.connection.poll():
                event: Event = self.connection.recv()
                if event.kind == STARTED:
                    self.began = time.monotonic()
                elif event.kind != PROGRESS:
                    self.index = None
                self.is_leaving |= event.kind == INTERRUPTED  # it would stop at the next task, too
                yield event
        except (EOFError, OSError):
            self.process.join(_SECONDS_TO_END)
            alive = False
        self.is_leaving |= not alive

    def ask_to_stop(self) -> None:
        if self.asked_to_stop is None:
            self.asked_to_stop = time.monotonic()
            self.process.terminate()
        elif time.monotonic() - self.asked_to_stop > SECONDS_TO_STOP:
            self.process.kill()

    def how_it_died(self) -> str:
        code = self.process.exitcode
        if code is not None and code < 0:
            name = signal.Signals(-code).name
            return f"signal {-code} ({name})" + (": out of memory?" if name == "SIGKILL" else "")
        return f"exit status {code}"

    def end(self) -> None:
        """Ends the process, whatever it is doing, and waits for it."""
        if self.index is None:
            self.send(None)
            self.process.join(_SECONDS_TO_FINISH)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
        self.connection.close()


class Pool(BlockingHandle):
    """The workers and the queue of tasks.

    A worker that dies is replaced, and its task given to another: it resumes from what it wrote.
    With `MOST_DEATHS` workers dead at it, a task is FAILED.

    Args:
        job: what to do with a task.
        tasks: picklable.
        places: the environment variables of each worker.
        minutes: after which a task is asked to stop, and FAILED; None for no limit.
    """

    def __init__(
        self,
        job: Job,
        tasks: Sequence[Any],
        places: Sequence[Mapping[str, str]],
        minutes: float | None = None,
    ) -> None:
        super().__init__([Process.here().name()] * len(tasks))
        self._job, self._tasks, self._places, self._minutes = job, tasks, places, minutes
        self._queue = deque(range(len(tasks)))
        self._workers: list[_Worker] = []
        self._deaths: Counter[int] = Counter()
        self._cancelled = False

    def wait(self, on_event: OnEvent) -> None:
        """Executes all tasks; an interrupt lets running ones write what they can resume from."""
        try:
            for place in self._places:
                self._start_worker(place)
            while self._busy() and not self._cancelled:
                self._look(on_event, min(_SECONDS_BETWEEN_CHECKS, (self._minutes or 1) * 60 / 10))
            if self._cancelled:
                self._stop(on_event)
        except KeyboardInterrupt:
            self._stop(on_event)
            raise
        finally:
            for worker in self._workers:
                worker.end()

    def cancel(self) -> None:
        """Stops the tasks that have not ended; may be called from another thread."""
        self._cancelled = True

    def _stop(self, on_event: OnEvent) -> None:
        """Asks all running tasks to stop, and waits for them; another interrupt ends them."""
        self._cancelled = True
        if busy := self._busy():
            log.warning(
                "stopping: %d runs may take up to %d seconds to write a checkpoint; "
                "Ctrl-C ends them at once", len(busy), SECONDS_TO_STOP,
            )  # fmt: skip
        while busy := self._busy():
            for worker in busy:
                worker.ask_to_stop()
            self._look(on_event, _SECONDS_BETWEEN_CHECKS)

    def _busy(self) -> list[_Worker]:
        return [worker for worker in self._workers if worker.index is not None]

    def _look(self, on_event: OnEvent, seconds: float) -> None:
        """Waits for news of the workers, at most so long, and handles it."""
        connection.wait([worker.connection for worker in self._busy()], timeout=seconds)
        for worker in self._busy():
            if self._is_overdue(worker):
                worker.ask_to_stop()
            self._handle(worker, on_event)
            if worker.index is None:
                self._occupy(worker)

    def _is_overdue(self, worker: _Worker) -> bool:
        return time.monotonic() - worker.began >= 60 * (self._minutes or math.inf)

    def _handle(self, worker: _Worker, on_event: OnEvent) -> None:
        index = worker.index
        assert index is not None
        for event in worker.events():
            if event.kind == INTERRUPTED:
                self._judge(index, worker, "", on_event)
            else:
                on_event(event)
        if worker.index is not None and worker.is_leaving:
            worker.index = None
            self._judge(index, worker, worker.how_it_died(), on_event)

    def _judge(self, index: int, worker: _Worker, death: str, on_event: OnEvent) -> None:
        """Decides what becomes of a task that stopped, or whose worker died, before its end."""
        if self._cancelled:
            on_event(Event(INTERRUPTED, index))
        elif self._is_overdue(worker):
            error = time_limit_reached(self._minutes)
            on_event(failed(self._job, index, self._tasks[index], error))
        elif not death:  # somebody other than this pool asked the worker to stop
            self._queue.appendleft(index)
        elif self._deaths[index] < MOST_DEATHS - 1:
            self._deaths[index] += 1
            log.warning("warning: a worker died with %s: it is replaced", death)
            self._queue.appendleft(index)
        else:
            error = f"{MOST_DEATHS} workers died at it, the last with {death}\n"
            on_event(failed(self._job, index, self._tasks[index], error))

    def _occupy(self, worker: _Worker) -> None:
        """Gives an idle worker its next task, ends it, or replaces it."""
        if worker.is_leaving:
            self._workers.remove(worker)
            worker.end()
            self._start_worker(worker.place)
        elif self._queue and not self._cancelled:
            self._assign(worker)
        else:
            worker.send(None)

    def _start_worker(self, place: Mapping[str, str]) -> None:
        if self._queue and not self._cancelled:
            with _signals_held_back():
                worker = _Worker(place)
                self._workers.append(worker)
                worker.send(self._job)
                self._assign(worker)

    def _assign(self, worker: _Worker) -> None:
        index = self._queue.popleft()
        worker.index, worker.began = index, math.inf
        worker.send((index, self._tasks[index]))


def _work(pipe: connection.Connection) -> None:
    """What a worker process runs: a job and its tasks come in, events go out, None ends it."""
    for number in _OF_THE_TERMINAL:
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, frame: request_stop())
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    with contextlib.suppress(EOFError):
        job: Job = pipe.recv()
        while (message := pipe.recv()) is not None:
            index, task = message
            perform(job, index, task, pipe.send)


def _exit_with_parent() -> None:
    connection.wait([multiprocessing.parent_process().sentinel])  # type: ignore[union-attr]
    os._exit(1)


@contextlib.contextmanager
def _signals_held_back() -> Iterator[None]:
    """Blocks Ctrl-C for a while: a process started meanwhile never sees it, this one afterwards.

    Else a worker that is still importing would print a traceback before it can ignore the signal,
    or because it is told half of what it is to do.
    """
    resource_tracker.ensure_running()  # it unblocks the signal when it is first started
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _OF_THE_TERMINAL)
    seen: list[int] = []  # by other threads of this process, of which the mask is not
    try:
        with handled(_OF_THE_TERMINAL, lambda number, frame: seen.append(number)):
            yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    for number in seen:
        signal.raise_signal(number)
