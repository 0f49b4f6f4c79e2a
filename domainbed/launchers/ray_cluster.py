"""The connection to a Ray cluster, and what its nodes have room for."""

from __future__ import annotations

import importlib
import logging
import os
import signal
import socket
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from domainbed.core.cores import usable_cores
from domainbed.errors import UserError, one_line
from domainbed.launchers.base import Resources

log = logging.getLogger(__name__)

NAMESPACE = "domainbed"
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
_SECONDS_TO_CONNECT = 10.0
_STORE_BYTES = 100 * 2**20  # of Ray's objects: tasks and events are small, and travel in files


@contextmanager
def connected(cluster: str | None) -> Iterator[Any]:
    """Ray, connected to a cluster, or to one made here; a connection that there is stays.

    Raises:
        UserError: Ray is not installed, or the cluster cannot be reached, or refuses.
    """
    ray = imported()
    if ray.is_initialized():
        yield ray
        return
    address = _reachable(cluster) if cluster else "local"
    own = {} if cluster else {"num_cpus": usable_cores(), "object_store_memory": _STORE_BYTES}
    own |= {} if cluster else {"include_dashboard": False}
    with _refusals_told(address), _signal_handler_kept(signal.SIGTERM):
        ray.init(
            address=address, namespace=NAMESPACE, log_to_driver=False, configure_logging=True,
            logging_level=logging.CRITICAL, **own,
        )  # fmt: skip
    # What Ray says of workers and nodes that die: the coordinator sees to them.
    ray._private.worker._worker_logs_enabled = False
    try:
        yield ray
    finally:
        ray.shutdown()


def imported() -> Any:
    # Before it is imported: it reads them then.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "1")  # else it announces a change
    try:
        return importlib.import_module("ray")
    except ImportError as error:
        raise UserError(
            f"the launcher 'ray' needs Ray ({error}): pip install 'domainbed[ray]'", "name"
        ) from error


@contextmanager
def _refusals_told(address: str) -> Iterator[None]:
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"the Ray cluster at {address!r} cannot be joined ({one_line(error)[:300]}): is this "
            "machine one of its nodes, with the same versions of Python and Ray?",
            "address",
        ) from error


def _reachable(cluster: str) -> str:
    """The address of a cluster, at which something answers: Ray itself would try for minutes.

    Raises:
        UserError: nothing does.
    """
    from ray._private.services import canonicalize_bootstrap_address

    address = cluster
    try:
        if "://" not in cluster:
            address = canonicalize_bootstrap_address(cluster) or cluster
        host, _, port = address.rpartition("://")[2].rpartition(":")
        socket.create_connection((host.strip("[]"), int(port)), _SECONDS_TO_CONNECT).close()
    except (OSError, ValueError, OverflowError) as error:
        raise UserError(
            f"the Ray cluster at {cluster!r} cannot be reached ({one_line(error)}): start it with "
            "`ray start --head`, which says its address, and give that as --address HOST:PORT",
            "address",
        ) from error
    return address


@contextmanager
def _signal_handler_kept(number: signal.Signals) -> Iterator[None]:
    """Ray takes a signal's handler over; what this process does at the signal is not its affair."""
    before = signal.getsignal(number)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(number, before)


def nodes_of(ray: Any) -> list[dict[str, float]]:
    """What each node of the cluster has."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def needs_of(nodes: Sequence[Mapping[str, float]], resources: Resources) -> dict[str, float]:
    """What a task takes of a node, by Ray's names. Where there are GPUs, one, unless told."""
    gpus = resources.gpus
    if gpus is None:
        wanted = resources.device is None or resources.device.startswith("cuda")
        gpus = float(wanted and any(node.get("GPU") for node in nodes))
    if gpus > 1 and gpus != int(gpus):
        raise UserError(f"gpus is {gpus:g}: expected a share of one GPU, or a whole number", "gpus")
    memory = (resources.memory_gb or 0) * 1e9
    return {"CPU": resources.cores or 1, "GPU": gpus, "memory": float(round(memory))}


def places(nodes: Sequence[Mapping[str, float]], needs: Mapping[str, float]) -> int:
    """How many tasks the nodes have room for at the same time."""
    return sum(
        min(int(node.get(what, 0) / need + 1e-6) for what, need in needs.items() if need)
        for node in nodes
    )


def warn_of_no_place(nodes: Sequence[Mapping[str, float]], needs: Mapping[str, float]) -> None:
    if not places(nodes, needs):
        words = ", ".join(f"{need:g} {what}" for what, need in needs.items() if need)
        log.warning(
            "warning: no node of the Ray cluster has what a run asks for (%s): runs wait until "
            "one joins", words,
        )  # fmt: skip


def task_options(needs: Mapping[str, float]) -> dict[str, Any]:
    """Of Ray's `remote`. It ends a worker that had a GPU after a task, which frees the memory."""
    threads = dict.fromkeys(_THREAD_VARIABLES, str(int(needs["CPU"])))
    return {
        "num_cpus": needs["CPU"],
        "num_gpus": needs["GPU"],
        "memory": int(needs["memory"]) or None,
        "max_retries": 0,  # the coordinator decides
        "runtime_env": {"env_vars": threads},
    }
