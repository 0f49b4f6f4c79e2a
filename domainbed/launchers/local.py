"""The launcher for one machine: worker processes that stay, and share its cores and GPUs."""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from multiprocessing import connection, resource_tracker
from pathlib import Path
from typing import Any

from pydantic import Field

from domainbed.cores import usable_cores
from domainbed.launchers.base import (
    LAUNCHERS,
    Event,
    Handle,
    Job,
    Launcher,
    OnEvent,
    Resources,
    perform,
)
from domainbed.states import FAILED, PROGRESS, STARTED

_SPAWN = multiprocessing.get_context("spawn")
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
_SECONDS_BETWEEN_CHECKS = 1.0
_SECONDS_TO_STOP = 3.0
_SET_PARENT_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of Linux's prctl


@LAUNCHERS.register(name="local")
class LocalLauncher(Launcher):
    """N workers, each of which keeps PyTorch and the dataset loaded between runs.

    One per GPU, or one per core where there is no GPU, unless `workers` says how many.
    """

    workers: int | None = Field(
        None,
        ge=1,
        description="worker processes of the launcher local",
        json_schema_extra={"default_text": "one per GPU or core"},
    )

    def parallelism(self, tasks: int, resources: Resources) -> int:
        return min(self._capacity(resources.device), tasks)

    def _capacity(self, device: str | None) -> int:
        return self.workers or len(visible_gpus(device)) or usable_cores()

    def submit(self, job: Job, tasks: Sequence[Any], resources: Resources, folder: Path) -> Handle:
        count = self.parallelism(len(tasks), resources)
        # By all workers, not by those that this launch has tasks for: another number of threads
        # rounds differently, and what is resumed alone should end as it would have among others.
        threads = str(max(1, usable_cores() // self._capacity(resources.device)))
        gpus = visible_gpus(resources.device)
        places = [dict.fromkeys(_THREAD_VARIABLES, threads) for _ in range(count)]
        for number, place in enumerate(places if gpus else []):
            place["CUDA_VISIBLE_DEVICES"] = gpus[number % len(gpus)]
        return _Pool(job, tasks, places)


def visible_gpus(device: str | None) -> list[str]:
    """The GPUs to share out, as CUDA_VISIBLE_DEVICES names them; none for any other device.

    A device with a number, "cuda:1", is the user's own choice of one GPU: nothing is shared out.
    """
    if device not in (None, "cuda"):
        return []
    import torch

    count = torch.cuda.device_count()
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    return named.split(",")[:count] if named else [str(number) for number in range(count)]


class _Worker:
    """One process and the task that it is at."""

    def __init__(self, job: Job, place: Mapping[str, str]) -> None:
        self.place = place
        self.connection, theirs = _SPAWN.Pipe()
        self.index: int | None = None
        # Not daemonic: a daemon may not start the processes that read images.
        self.process = _SPAWN.Process(target=_work, args=(theirs, job), daemon=False)
        with environment_set(place), _interrupts_held_back():
            self.process.start()
        theirs.close()

    def assign(self, index: int, task: Any) -> None:
        self.index = index
        with contextlib.suppress(OSError):  # it is dead: found out at the next look
            self.connection.send((index, task))

    def events(self) -> Iterator[Event]:
        """What it has sent; if it died at a task, that this failed."""
        alive = self.process.is_alive()  # asked first: its last events may still be in the pipe
        try:
            while self.connection.poll():
                yield self._received()
        except (EOFError, OSError):
            self.process.join(_SECONDS_TO_STOP)
            alive = False
        if not alive and self.index is not None:
            yield Event(FAILED, self.index, error=self._exit_reason())
            self.index = None

    def _received(self) -> Event:
        event: Event = self.connection.recv()
        if event.kind not in (STARTED, PROGRESS):
            self.index = None
        return event

    def _exit_reason(self) -> str:
        code = self.process.exitcode
        if code is not None and code < 0:
            name = signal.Signals(-code).name
            hint = ": out of memory?" if name == "SIGKILL" else ""
            return f"the worker died with signal {-code} ({name}){hint}\n"
        return f"the worker ended with exit status {code}\n"

    def send_end(self) -> None:
        """Tells an idle worker to end."""
        with contextlib.suppress(OSError):
            self.connection.send(None)

    def stop(self) -> None:
        """Ends the process, whatever it is at, and waits for its end."""
        self.process.join(_SECONDS_TO_STOP)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
        self.connection.close()


class _Pool(Handle):
    """The workers and the queue of tasks."""

    def __init__(self, job: Job, tasks: Sequence[Any], places: Sequence[Mapping[str, str]]) -> None:
        super().__init__([""] * len(tasks))
        self.job, self.tasks, self.places = job, tasks, places
        self.queue = deque(range(len(tasks)))
        self.workers: list[_Worker] = []
        self.cancelled = False

    def wait(self, on_event: OnEvent) -> None:
        """Does all tasks, replacing the workers that die."""
        noted = self.noting(on_event)
        try:
            for place in self.places:
                self._start_worker(place)
            while busy := [worker for worker in self.workers if worker.index is not None]:
                if self.cancelled:
                    raise _Cancelled
                pipes = [worker.connection for worker in busy]
                connection.wait(pipes, timeout=_SECONDS_BETWEEN_CHECKS)
                for worker in busy:
                    self._handle(worker, noted)
        except _Cancelled:
            self._terminate()
        except BaseException:
            self._terminate()
            raise
        finally:
            for worker in self.workers:
                worker.stop()

    def cancel(self) -> None:
        self.cancelled = True

    def _terminate(self) -> None:
        for worker in self.workers:
            worker.process.terminate()

    def _start_worker(self, place: Mapping[str, str]) -> None:
        if self.queue:
            self.workers.append(_Worker(self.job, place))
            self._assign(self.workers[-1])

    def _assign(self, worker: _Worker) -> None:
        if self.queue:
            index = self.queue.popleft()
            worker.assign(index, self.tasks[index])
        else:
            worker.send_end()

    def _handle(self, worker: _Worker, on_event: OnEvent) -> None:
        for event in worker.events():
            on_event(event)
        if worker.index is not None:
            return
        if worker.process.is_alive():
            self._assign(worker)
        else:
            self.workers.remove(worker)
            worker.stop()
            self._start_worker(worker.place)


class _Cancelled(Exception):
    """The handle was asked to stop."""


def _work(pipe: connection.Connection, job: Job) -> None:
    """What a worker process runs: tasks come in, events go out, None ends it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what Ctrl-C means
    _be_killed_with_parent()
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    with contextlib.suppress(EOFError):
        while (message := pipe.recv()) is not None:
            index, task = message
            perform(job, index, task, pipe.send)


def _be_killed_with_parent() -> None:
    """Where the system can: no thread of this process runs while native code holds its lock."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_SET_PARENT_DEATH_SIGNAL, signal.SIGKILL)


def _exit_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os._exit(1)


@contextlib.contextmanager
def environment_set(values: Mapping[str, str]) -> Iterator[None]:
    """Sets environment variables for a while: a process begun meanwhile has them from the start.

    PyTorch counts threads and GPUs when it is imported; a worker could only set them too late.
    """
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextlib.contextmanager
def _interrupts_held_back() -> Iterator[None]:
    """Blocks Ctrl-C for a while: a process begun meanwhile never sees it, this one afterwards.

    Else a worker that is still importing would print a traceback before it can ignore the signal.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    resource_tracker.ensure_running()  # it unblocks the signal when it is first started
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
