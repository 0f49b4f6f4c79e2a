"""The launcher for Ray: a running cluster, or one that is started on this machine for the sweep.

On the cluster a coordinator, which is a detached actor, submits the tasks: they are executed
whether or not the process that launched them lives. (Ray's own jobs would do so too, but need its
dashboard, and end with the node that their entry point runs on.) A connection to Ray is needed to
submit, to ask and to cancel, but not to follow: the events are in files, see `ray_tasks`.
"""

import contextlib
import importlib
import logging
import math
import os
import re
import signal
import socket
import sys
import tempfile
import threading
import time
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field

from domainbed.core.cores import usable_cores
from domainbed.core.files import written_aside
from domainbed.core.settings import Text
from domainbed.errors import UserError, log, one_line
from domainbed.launchers.base import (
    LAUNCHERS,
    BlockingHandle,
    Event,
    Handle,
    Job,
    JobReport,
    Launcher,
    OnEvent,
    Resources,
)
from domainbed.launchers.event_files import EventReader
from domainbed.launchers.local import SECONDS_TO_STOP, visible_gpus
from domainbed.launchers.ray_tasks import (
    AFTER,
    TEAM,
    Coordinator,
    do_after,
    log_file,
    needs_of,
    pickled,
    places,
    printing_to,
    task_options,
    why_waiting,
    write_plan,
)
from domainbed.runs.ownership import Process
from domainbed.runs.states import ENDS, INTERRUPTED, RUNNING

NAMESPACE = "domainbed"
_SECONDS_TO_CONNECT = 10.0
# What an HTTP/2 connection begins with; a server of gRPC answers with its settings at once.
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
_SETTINGS = 4
_TOKEN_FILE = "~/.ray/auth_token"
_STORE_BYTES = 100 * 2**20  # of Ray's objects: tasks and events are small, and travel in files
# The engine's id of a task says where to ask for it.
_ID = re.compile(r"(?P<coordinator>.+)_(?P<index>\d+)@(?P<address>.+)")
_SECONDS_TO_ANSWER = 60.0
_SECONDS_BETWEEN_LOOKS = 1.0


@LAUNCHERS.register(name="ray")
class RayLauncher(Launcher):
    """Tasks of a Ray cluster, each with its share of a node's cores, GPUs and memory.

    Without an address, and without Ray's own variable RAY_ADDRESS, a cluster is started on
    this machine, which ends with the launch.
    """

    has_after: ClassVar[bool] = True
    resource_options: ClassVar[tuple[str, ...]] = ("cores", "gpus", "memory_gb", "minutes")

    address: Text | None = Field(
        None,
        description="HOST:PORT of a running Ray cluster, or auto for this machine's",
        json_schema_extra={"default_text": "RAY_ADDRESS, else a cluster started for the sweep"},
    )
    init: dict[str, Any] = Field(
        {},
        description="further arguments of ray.init, such as {runtime_env: {pip: […]}}, {num_gpus: "
        "1}",
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
        environment = self.init.get("runtime_env") or {}
        start = partial(_start, job, tasks, resources, folder, environment, self._cluster is None)
        if self._cluster is None:
            return _OnOwnCluster(start, folder, len(tasks), self.init)
        ids: list[str] = []
        if tasks:
            with connected(self._cluster, self.init) as ray:
                address = ray.get_runtime_context().gcs_address
                ids = [f"{folder.name}_{index}@{address}" for index in range(len(tasks))]
                start(ray, ids)
        return Handle(ids, [log_file(folder, index) for index in range(len(ids))])

    def submit_after(
        self, jobs: Sequence[str], work: Callable[[], None], resources: Resources, folder: Path
    ) -> str:
        """The coordinator does it; or this process, if all tasks have ended already."""
        of_launch = folder / jobs[0].rpartition("_")[0]
        with written_aside(of_launch / AFTER) as aside:
            aside.write_bytes(pickled(work))
        if not self.ask(jobs):
            do_after(of_launch)
        return jobs[-1]

    def parallelism(self, tasks: int, resources: Resources) -> int:
        if self.blocking:
            nodes = [
                {
                    "CPU": float(usable_cores()),
                    "GPU": float(len(visible_gpus(resources.device))),
                    "memory": math.inf,
                }
            ]
        else:
            with connected(self._cluster) as ray:
                nodes = _nodes(ray)
        return min(tasks, places(nodes, needs_of(nodes, resources)))

    def reaches(self, job: str) -> bool:
        return self._cluster is not None if _ID.fullmatch(job) else super().reaches(job)

    def ask(self, jobs: Iterable[str]) -> dict[str, JobReport]:
        """Nothing of a cluster that does not answer: its runs resume elsewhere."""
        found: dict[str, JobReport] = {}
        for address, by_coordinator in _grouped(jobs).items():
            try:
                # Only its own cluster, if it has one: it does not know the others' coordinators.
                with connected(self._cluster or address) as ray:
                    for name, indices in by_coordinator.items():
                        found |= {
                            f"{name}_{index}@{address}": report
                            for index, report in _reports(ray, name, indices).items()
                        }
            except UserError as error:
                log.warning("warning: %s; its runs are considered lost", error)
        return found

    def cancel(self, jobs: Iterable[str]) -> None:
        jobs = list(jobs)
        for address, by_coordinator in _grouped(jobs).items():
            with connected(self._cluster or address) as ray:
                for name, indices in by_coordinator.items():
                    _cancel(ray, name, indices)
        super().cancel(job for job in jobs if not _ID.fullmatch(job))


def _grouped(jobs: Iterable[str]) -> dict[str, dict[str, set[int]]]:
    """The tasks of clusters: by address and coordinator, their indices."""
    groups: dict[str, dict[str, set[int]]] = defaultdict(lambda: defaultdict(set))
    for match in filter(None, map(_ID.fullmatch, jobs)):
        groups[match["address"]][match["coordinator"]].add(int(match["index"]))
    return groups


def _cancel(ray: Any, name: str, indices: Iterable[int]) -> None:
    """Stops tasks of a coordinator, if it is still there."""
    with contextlib.suppress(ValueError, ray.exceptions.RayActorError):
        coordinator = ray.get_actor(name, namespace=NAMESPACE)
        ray.get(coordinator.cancel.remote(sorted(indices)), timeout=_SECONDS_TO_ANSWER)


def _reports(ray: Any, name: str, indices: set[int]) -> dict[int, JobReport]:
    """Of those of a coordinator's tasks that have not ended."""
    try:
        coordinator = ray.get_actor(name, namespace=NAMESPACE)
        left, begun, needs = ray.get(coordinator.look.remote(), timeout=_SECONDS_TO_ANSWER)
    except (ValueError, ray.exceptions.RayActorError):  # it is gone: none was left
        return {}
    except ray.exceptions.GetTimeoutError:
        return dict.fromkeys(indices, JobReport(why="its coordinator is being restarted"))
    waiting = why_waiting(needs, _nodes(ray), ray.available_resources())
    return {i: JobReport(RUNNING) if i in begun else waiting for i in indices & set(left)}


def _nodes(ray: Any) -> list[dict[str, float]]:
    """What each node that is alive has."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


class _OnOwnCluster(BlockingHandle):
    """Tasks on a cluster of this machine that exists while they are waited for.

    Args:
        start: has a coordinator execute the tasks, with an ID for each.
        folder: of the launch.
        count: of the tasks.
        init: further arguments of `ray.init`.
    """

    def __init__(
        self, start: Callable[[Any, Sequence[str]], None], folder: Path, count: int,
        init: Mapping[str, Any],
    ) -> None:  # fmt: skip
        super().__init__([Process.here().name()] * count)
        self._start, self._init, self._name = start, init, folder.name
        self._reader, self._left = EventReader(folder, [TEAM]), set(range(count))

    def wait(self, on_event: OnEvent) -> None:
        if not self._left:
            return
        with connected(None, self._init) as ray:
            self._start(ray, self.jobs)
            try:
                self._follow(ray, on_event)
            except KeyboardInterrupt:
                log.warning("stopping: runs write checkpoints")
                _cancel(ray, self._name, self._left)
                self._follow(ray, on_event, time.monotonic() + SECONDS_TO_STOP)
                raise

    def _follow(self, ray: Any, on_event: OnEvent, end: float = math.inf) -> None:
        """Passes events on until no task is left, or until `end` of the monotonic clock."""
        while self._left and time.monotonic() < end:
            # Asked first: what a task told before it ended can be read afterwards.
            lost = self._left - _reports(ray, self._name, self._left).keys()
            events = self._reader.read()
            ended = {event.index for event in events if event.kind in ENDS}
            for event in [*events, *(Event(INTERRUPTED, index) for index in lost - ended)]:
                on_event(event)
            self._left -= ended | lost
            time.sleep(_SECONDS_BETWEEN_LOOKS if self._left else 0)


def _start(
    job: Job, tasks: Sequence[Any], resources: Resources, folder: Path,
    environment: Mapping[str, Any], own: bool, ray: Any, jobs: Sequence[str],
) -> None:  # fmt: skip
    """Hands the tasks, which find `jobs` as their ids, to a coordinator.

    That is on the head's node if possible: with it the cluster would be lost in any case.

    Raises:
        UserError: the cluster does not take them.
    """
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    alive = [node for node in ray.nodes() if node["Alive"]]
    nodes = [node["Resources"] for node in alive]
    needs = needs_of(nodes, resources)
    if (waiting := why_waiting(needs, nodes, {})).stuck:
        if own:  # no other node will ever join
            raise UserError(f"a run {waiting.why}", "launcher")
        log.warning("warning: a run %s: runs wait until one joins", waiting.why)
    options = task_options(needs, environment)
    write_plan(folder, job, tasks, jobs, options, resources.minutes, needs)
    head = next((n for n in alive if "node:__internal_head__" in n["Resources"]), alive[0])
    options = {
        **{"name": folder.name, "namespace": NAMESPACE, "lifetime": "detached"},
        # Who asks while it is being restarted waits for the answer, and does not take it for ended.
        **{"num_cpus": 0, "max_restarts": -1, "max_task_retries": -1},
        "scheduling_strategy": NodeAffinitySchedulingStrategy(head["NodeID"], soft=True),
    }
    coordinator = ray.remote(**options)(Coordinator).remote(str(folder))
    try:
        ray.get(coordinator.look.remote(), timeout=_SECONDS_TO_ANSWER)
    except (ray.exceptions.RayError, OSError) as error:
        ray.kill(coordinator, no_restart=True)
        raise UserError(
            f"the Ray cluster does not take the runs (Ray says: {one_line(error)[-300:]}): all of "
            f"its nodes need the same version of domainbed, and the folder {str(folder)!r}",
            "address",
        ) from error


@contextlib.contextmanager
def connected(cluster: str | None, init: Mapping[str, Any] = {}) -> Iterator[Any]:
    """Ray, connected to a cluster, or to one started here; an existing connection stays.

    Args:
        cluster: its address; None starts one.
        init: further arguments of `ray.init`.

    Raises:
        UserError: Ray is not installed, or the cluster cannot be reached, or refuses.
    """
    # Before it is imported: it reads them then.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "1")  # else it announces a change
    if cluster and "ray" not in sys.modules and Path(_TOKEN_FILE).expanduser().is_file():
        # As `ray start` does, but not `ray.init`. A cluster that wants none ignores a token.
        os.environ.setdefault("RAY_AUTH_MODE", "token")
    try:
        ray = importlib.import_module("ray")
    except ImportError as error:
        raise UserError(
            f"the launcher 'ray' needs Ray ({error}): pip install ray", "name"
        ) from error
    if ray.is_initialized():
        yield ray
        return
    address = _reachable(cluster) if cluster else "local"
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.CRITICAL}
    if not cluster:
        options |= {
            "num_cpus": usable_cores(),
            "object_store_memory": _STORE_BYTES,
            "include_dashboard": False,
        }
    options |= {**init, "address": address, "namespace": NAMESPACE}
    handler = signal.getsignal(signal.SIGTERM)
    with tempfile.NamedTemporaryFile() as said:
        try:
            with printing_to(Path(said.name)):  # what its native code prints of a failure
                ray.init(configure_logging=True, **options)
        except Exception as error:
            remedy = (
                f"copy its token, {_TOKEN_FILE}, from the machine that started it"
                if b"Unauthenticated" in said.read()
                else "is this machine one of its nodes, with the same versions of Python and Ray?"
            )
            raise UserError(
                f"the Ray cluster at {address!r} cannot be joined ({one_line(error)[:300]}): "
                f"{remedy}",
                "address",
            ) from error
        finally:
            if threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGTERM, handler)  # Ray installs its own
    # What Ray says of workers and nodes that die: the coordinator handles it.
    ray._private.worker._worker_logs_enabled = False
    try:
        yield ray
    finally:
        ray.shutdown()


def _reachable(cluster: str) -> str:
    """The address of a cluster, at which Ray answers: Ray itself would try for minutes.

    Raises:
        UserError: it does not.
    """
    from ray._private.services import canonicalize_bootstrap_address

    address = cluster
    try:
        if "://" not in cluster:
            address = canonicalize_bootstrap_address(cluster) or cluster
        host, _, port = address.rpartition("://")[2].rpartition(":")
        with socket.create_connection((host.strip("[]"), int(port)), _SECONDS_TO_CONNECT) as stream:
            if os.environ.get("RAY_USE_TLS", "0") == "0":
                stream.sendall(_PREFACE)
                if stream.recv(4)[3:] != bytes([_SETTINGS]):
                    raise OSError("what answers there is not Ray")
    except (OSError, ValueError, OverflowError) as error:
        raise UserError(
            f"the Ray cluster at {cluster!r} cannot be reached ({one_line(error)}): start it with "
            "`ray start --head`, which says its address, and give that as --address HOST:PORT",
            "address",
        ) from error
    return address
