"""Connections to Ray: refused in one line, in bounded time, and without what Ray prints."""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from domainbed.core.cores import usable_cores
from domainbed.errors import UserError, one_line
from domainbed.launchers.ray_tasks import printing_to

NAMESPACE = "domainbed"
_SECONDS_TO_CONNECT = 10.0
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
"""What an HTTP/2 connection begins with; a server of gRPC answers with its settings at once."""
_SETTINGS = 4
_TOKEN_FILE = "~/.ray/auth_token"
_STORE_BYTES = 100 * 2**20  # of Ray's objects: tasks and events are small, and travel in files


@contextlib.contextmanager
def connected(cluster: str | None, init: Mapping[str, Any] = MappingProxyType({})) -> Iterator[Any]:
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
    options: dict[str, Any] = {
        **{"address": _reachable(cluster) if cluster else "local", "namespace": NAMESPACE},
        **{"log_to_driver": False, "configure_logging": True, "logging_level": logging.CRITICAL},
    }
    if not cluster:
        options |= {"num_cpus": usable_cores(), "object_store_memory": _STORE_BYTES}
        options["include_dashboard"] = False
    handler = signal.getsignal(signal.SIGTERM)
    with tempfile.NamedTemporaryFile() as said:
        try:
            with printing_to(Path(said.name)):  # what its native code prints of a failure
                ray.init(**{**options, **init})
        except Exception as error:
            raise _refused(options["address"], error, Path(said.name)) from error
        finally:
            if threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGTERM, handler)  # Ray installs its own
    # What Ray says of workers and nodes that die: the coordinator handles it.
    ray._private.worker._worker_logs_enabled = False
    try:
        yield ray
    finally:
        ray.shutdown()


def _refused(address: str, error: Exception, said: Path) -> UserError:
    """Why a cluster cannot be joined."""
    if "Unauthenticated" in said.read_text(errors="replace"):
        return UserError(
            f"the Ray cluster at {address!r} wants its authentication token: copy "
            f"{_TOKEN_FILE} from the machine that started it, or set RAY_AUTH_MODE=token and "
            "RAY_AUTH_TOKEN",
            "address",
        )
    return UserError(
        f"the Ray cluster at {address!r} cannot be joined ({one_line(error)[:300]}): is this "
        "machine one of its nodes, with the same versions of Python and Ray?",
        "address",
    )


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
        place = host.strip("[]"), int(port)
        with socket.create_connection(place, _SECONDS_TO_CONNECT) as stream:
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
