"""A Ray cluster on this machine, for tests: a head that does no tasks, and nodes that may die."""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import os
import shutil
import tempfile
from pathlib import Path

STORE_BYTES = 100 * 2**20  # near the least that Ray takes


def missing() -> str:
    """Why there can be no cluster here; "" where there can."""
    return "" if importlib.util.find_spec("ray") else "ray is not installed"


class RayCluster:
    """A head without cores, and nodes of one core each.

    Attributes:
        address: HOST:PORT.
    """

    def __init__(self, folder: str) -> None:
        # Workers as nice as Ray makes them would starve beside tests in parallel.
        os.environ.update({"RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0"})
        os.makedirs("/tmp/ray", exist_ok=True)  # where Ray notes the address, whatever temp_dir is
        from ray.cluster_utils import Cluster

        logging.getLogger("ray").setLevel(logging.CRITICAL)
        self._cluster = Cluster(shutdown_at_exit=False)
        self._cluster.add_node(
            num_cpus=0, include_dashboard=False, object_store_memory=STORE_BYTES, temp_dir=folder
        )
        self.address = self._cluster.address
        self._nodes = {}  # by the process of each

    def add_node(self, **resources):
        """Starts a node of one core, and waits until the cluster has it."""
        options = {"num_cpus": 1, "object_store_memory": STORE_BYTES, **resources}
        node = self._cluster.add_node(**options)
        self._nodes[node.all_processes["raylet"][0].process.pid] = node
        return node

    def kill_node(self, node) -> None:
        """As when a machine loses its power: SIGKILL to the node and to its workers."""
        self._cluster.remove_node(node, allow_graceful=False)

    def replace_node_of(self, worker: int) -> None:
        """Kills the node of a worker process, and starts another."""
        raylet = int(Path(f"/proc/{worker}/stat").read_text().rpartition(")")[2].split()[1])
        self.kill_node(self._nodes[raylet])
        self.add_node()

    def shutdown(self) -> None:
        self._cluster.shutdown()


@contextlib.contextmanager
def ray_cluster(nodes: int = 2):
    """A cluster with so many nodes, each of one core; it ends with the block."""
    folder = tempfile.mkdtemp(prefix="ray-")  # short: a socket's path has 107 bytes
    cluster = RayCluster(folder)
    try:
        for _ in range(nodes):
            cluster.add_node()
        yield cluster
    finally:
        cluster.shutdown()
        shutil.rmtree(folder, ignore_errors=True)
