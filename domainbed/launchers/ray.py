"""The launcher for Ray: to a running cluster, or to one that is made on this machine for the sweep.

On the cluster a coordinator, which is a detached actor, gives out the tasks: they are done whether
or not the process that submitted them lives. (Ray's own jobs would do so too, but need its
dashboard, and end with the node that their entry point runs on.) A connection to Ray is needed to
submit, to ask and to cancel, but not to follow: what is told lies in files, see `ray_tasks`.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import time
import uuid
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from pydantic import Field

from domainbed.config.settings import Text
from domainbed.core.cores import usable_cores
from domainbed.errors import UserError, one_line
from domainbed.launchers.base import (
    LAUNCHERS,
    Event,
    Handle,
    Job,
    Launcher,
    OnEvent,
    Resources,
    this_process,
)
from domainbed.launchers.local import visible_gpus
from domainbed.launchers.ray_cluster import (
    NAMESPACE,
    connected,
    needs_of,
    nodes_of,
    places,
    task_options,
    warn_of_no_place,
)
from domainbed.launchers.ray_tasks import (
    SECONDS_BETWEEN_LOOKS,
    SECONDS_TO_STOP,
    Coordinator,
    Plan,
    life_file,
    log_file,
    reader_of,
)
from domainbed.runs.states import ENDS, INTERRUPTED

log = logging.getLogger(__name__)

_SECONDS_TO_ANSWER = 60.0
_SECONDS_OF_SILENCE = 30.0
"""After which a launch that follows asks the cluster whether the coordinator is there."""


@LAUNCHERS.register(name="ray")
class RayLauncher(Launcher):
    """Tasks of a Ray cluster, each with its share of a node's cores, GPUs and memory.

    Without an address, and without Ray's own variable RAY_ADDRESS, a cluster is made on this
    machine, which ends with the launch.
    """

    resource_options: ClassVar[tuple[str, ...]] = ("cores", "gpus", "memory_gb", "minutes")

    address: Text | None = Field(
        None,
        description="HOST:PORT of a running Ray cluster, or auto for this machine's",
        json_schema_extra={"default_text": "RAY_ADDRESS, else a cluster made for the sweep"},
    )

    @property
    def blocking(self) -> bool:  # type: ignore[override]  # it depends on an option
        """Whether the cluster ends with this process."""
        return self._cluster is None

    @property
    def _cluster(self) -> str | None:
        return self.address or os.environ.get("RAY_ADDRESS") or None

    def submit(self, job: Job, tasks: Sequence[Any], resources: Resources, folder: Path) -> Handle:
        folder = folder.absolute() / f"ray-{uuid.uuid4().hex[:12]}"
        work = _Work(job, tasks, resources, folder)
        if self._cluster is None:
            return _OnOwnCluster(work)
        if not tasks:
            return _Following(work, [])
        with connected(self._cluster) as ray:
            jobs = work.jobs_at(ray.get_runtime_context().gcs_address)
            work.start(ray, jobs)
        return _Following(work, jobs)

    def parallelism(self, tasks: int, resources: Resources) -> int:
        if self.blocking:
            gpus = len(visible_gpus(resources.device))
            nodes = [{"CPU": float(usable_cores()), "GPU": float(gpus), "memory": math.inf}]
            return min(tasks, places(nodes, needs_of(nodes, resources)))
        with connected(self._cluster) as ray:
            nodes = nodes_of(ray)
        return min(tasks, places(nodes, needs_of(nodes, resources)))

    def known(self, jobs: Iterable[str]) -> set[str]:
        """Of a cluster that does not answer, none: they go on from what they wrote elsewhere."""
        return _known(jobs)

    def cancel(self, jobs: Iterable[str]) -> None:
        jobs = list(jobs)
        _cancel(jobs)
        super().cancel(job for job in jobs if not _JobId.parsed(job))


class _JobId(NamedTuple):
    """The engine's id of a task: it says where to ask for it."""

    coordinator: str
    task: int
    address: str

    def __str__(self) -> str:
        return f"{self.coordinator}_{self.task}@{self.address}"

    @classmethod
    def parsed(cls, job: str) -> _JobId | None:
        """None of a job that is none of a cluster's."""
        task, _, address = job.partition("@")
        coordinator, _, index = task.rpartition("_")
        return cls(coordinator, int(index), address) if address and index.isdigit() else None


@dataclass(frozen=True)
class _Work:
    """What a launch asks of a cluster; the folder is its own, and names its coordinator."""

    job: Job
    tasks: Sequence[Any]
    resources: Resources
    folder: Path

    @property
    def name(self) -> str:
        return self.folder.name

    def jobs_at(self, address: str) -> list[str]:
        return [str(_JobId(self.name, index, address)) for index in range(len(self.tasks))]

    def start(self, ray: Any, jobs: Sequence[str]) -> None:
        """Hands the tasks over, which find `jobs` as their ids.

        Raises:
            UserError: the cluster does not take them.
        """
        nodes = nodes_of(ray)
        needs = needs_of(nodes, self.resources)
        warn_of_no_place(nodes, needs)
        plan = Plan.of(self.job, self.tasks, jobs, task_options(needs), self.resources.minutes)
        plan.write(self.folder)
        _start_coordinator(ray, self.folder)


class _Following(Handle):
    """Follows tasks that were handed to a cluster by their events.

    Args:
        work: the tasks.
        jobs: the cluster's id of each.
    """

    def __init__(self, work: _Work, jobs: Sequence[str]) -> None:
        super().__init__(jobs)
        self._work, self._known_as = work, list(jobs)
        self._reader = reader_of(work.folder)
        self._left = set(range(len(work.tasks)))

    def wait(self, on_event: OnEvent) -> None:
        self._follow(self.noting(on_event), math.inf)

    def cancel(self) -> None:
        _cancel([self._known_as[index] for index in self._left])

    def logs(self, index: int) -> list[Path]:
        return [log_file(self._work.folder, index)]

    def _follow(self, on_event: OnEvent, end: float) -> None:
        """Passes events on until no task is left, or until `end` of the monotonic clock."""
        sign, heard = self._sign_of_life(), time.monotonic()
        while self._left and time.monotonic() < end:
            self._pass_on(self._reader.read(), on_event)
            time.sleep(SECONDS_BETWEEN_LOOKS if self._left else 0)
            if (now := self._sign_of_life()) != sign:
                sign, heard = now, time.monotonic()
            elif time.monotonic() - heard > _SECONDS_OF_SILENCE:
                self._end_unknown(on_event)
                heard = time.monotonic()

    def _pass_on(self, events: Iterable[Event], on_event: OnEvent) -> None:
        for event in events:
            if event.index in self._left:
                self._left -= {event.index} if event.kind in ENDS else set()
                on_event(event)

    def _sign_of_life(self) -> int:
        try:
            return life_file(self._work.folder).stat().st_mtime_ns
        except OSError:
            return 0

    def _end_unknown(self, on_event: OnEvent) -> None:
        """Of tasks that the cluster does not know any more: it was shut down, say."""
        known = _known(self._known_as[index] for index in self._left)
        self._pass_on(self._reader.read(), on_event)
        lost = [i for i in sorted(self._left) if self._known_as[i] not in known]
        if lost:
            log.warning("warning: the Ray cluster does not know %d runs any more", len(lost))
        self._pass_on([Event(INTERRUPTED, index) for index in lost], on_event)


class _OnOwnCluster(_Following):
    """Tasks on a cluster of this machine that is there while they are waited for."""

    def __init__(self, work: _Work) -> None:
        super().__init__(work, [this_process()] * len(work.tasks))
        self._cancelled = False

    def wait(self, on_event: OnEvent) -> None:
        if not self._left or self._cancelled:
            return
        noted = self.noting(on_event)
        with connected(None) as ray:
            self._known_as = self._work.jobs_at(ray.get_runtime_context().gcs_address)
            self._work.start(ray, self.jobs)
            try:
                self._follow(noted, math.inf)
            except KeyboardInterrupt:
                log.warning("stopping: runs write what they can go on from")
                self.cancel()
                self._follow(noted, time.monotonic() + SECONDS_TO_STOP)
                raise

    def cancel(self) -> None:
        self._cancelled = True
        super().cancel()


def _known(jobs: Iterable[str]) -> set[str]:
    known: set[str] = set()
    for address, by_coordinator in _grouped(jobs).items():
        try:
            with connected(address) as ray:
                for name, indices in by_coordinator.items():
                    left = _left(ray, name, indices)
                    known |= {str(_JobId(name, index, address)) for index in left}
        except UserError as error:
            log.warning("warning: %s; its runs are taken for lost", error)
    return known


def _left(ray: Any, name: str, indices: set[int]) -> set[int]:
    """Those of a coordinator's tasks that are not at their end."""
    try:
        coordinator = ray.get_actor(name, namespace=NAMESPACE)
        return indices & set(ray.get(coordinator.left.remote(), timeout=_SECONDS_TO_ANSWER))
    except (ValueError, ray.exceptions.RayActorError):  # it is gone: none was left
        return set()
    except ray.exceptions.GetTimeoutError:  # it is being started again
        return indices


def _cancel(jobs: Iterable[str]) -> None:
    """Those of clusters.

    Raises:
        UserError: a cluster cannot be reached.
    """
    for address, by_coordinator in _grouped(jobs).items():
        with connected(address) as ray:
            for name, indices in by_coordinator.items():
                with contextlib.suppress(ValueError, ray.exceptions.RayActorError):
                    coordinator = ray.get_actor(name, namespace=NAMESPACE)
                    asked = coordinator.cancel.remote(sorted(indices))
                    ray.get(asked, timeout=_SECONDS_TO_ANSWER)


def _grouped(jobs: Iterable[str]) -> dict[str, dict[str, set[int]]]:
    """The tasks of clusters: by address and coordinator, their indices."""
    groups: dict[str, dict[str, set[int]]] = defaultdict(lambda: defaultdict(set))
    for job in filter(None, map(_JobId.parsed, jobs)):
        groups[job.address][job.coordinator].add(job.task)
    return groups


def _start_coordinator(ray: Any, folder: Path) -> None:
    """On the head's node where that is: with it the cluster would be lost in any case.

    Raises:
        UserError: it does not start.
    """
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    nodes = [node for node in ray.nodes() if node["Alive"]]
    head = next((n for n in nodes if "node:__internal_head__" in n["Resources"]), nodes[0])
    options = {
        **{"name": folder.name, "namespace": NAMESPACE, "lifetime": "detached"},
        **{"num_cpus": 0, "max_restarts": -1},
        "scheduling_strategy": NodeAffinitySchedulingStrategy(head["NodeID"], soft=True),
    }
    coordinator = ray.remote(**options)(Coordinator).remote(str(folder))
    try:
        ray.get(coordinator.left.remote(), timeout=_SECONDS_TO_ANSWER)
    except (ray.exceptions.RayError, OSError) as error:
        ray.kill(coordinator, no_restart=True)
        raise UserError(
            f"the Ray cluster does not take the runs (Ray says: {one_line(error)[-300:]}): all of "
            f"its nodes need the same version of domainbed, and the folder {str(folder)!r}",
            "address",
        ) from error
