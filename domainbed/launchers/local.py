"""The launchers for one machine: in this process, or in workers that share its cores and GPUs."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import Field

from domainbed.core.cores import usable_cores
from domainbed.core.settings import Items, Text
from domainbed.core.stopping import SIGNALS, request_stop, stop_requested, stop_signal, stopping_on
from domainbed.errors import UserError
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
from domainbed.launchers.pool import Place, Pool

THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


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

    def submit(self, job: Job, tasks: Sequence[Any], resources: Resources, folder: Path) -> Handle:
        count = self.parallelism(len(tasks), resources)
        return Pool(job, tasks, self._places(resources)[:count], resources.minutes)

    def parallelism(self, tasks: int, resources: Resources) -> int:
        return min(self._capacity(resources), tasks)

    def _capacity(self, resources: Resources) -> int:
        on_gpus = len(self._gpus(resources.device)) * self.runs_per_gpu
        return self.workers or on_gpus or max(1, usable_cores() // (resources.cores or 1))

    def _places(self, resources: Resources) -> list[Place]:
        """The environment variables of each worker: its threads, and its GPU."""
        capacity, gpus = self._capacity(resources), self._gpus(resources.device)
        # By all workers, not by those that this launch has tasks for: another number of threads
        # rounds differently, and what is resumed alone should end as it would have among others.
        threads = resources.cores or max(1, usable_cores() // capacity)
        usual = dict.fromkeys(THREAD_VARIABLES, str(threads))
        usual |= engine_variables("local", this_process())
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
