"""Clusters for tests of launchers, and for each launcher the options for tests of the contract.

A fixture `<name>_options` sees to it that the launcher's engine is there, and skips where it is not
installed.
"""

import os
from pathlib import Path

import pytest
import ray_cluster
import slurm_cluster
from site_launcher import SiteLauncher

from domainbed.launchers import LAUNCHERS

_IMPORTED_BY_JOBS = (Path(__file__).parent, Path(__file__).parents[2])


@pytest.fixture
def debug_options():
    return {}


@pytest.fixture
def local_options():
    return {"workers": 1, "cores": 1}


@pytest.fixture
def site_options(monkeypatch):
    """A launcher that is no part of the package, and does not block."""
    monkeypatch.setitem(LAUNCHERS._entries, "site", SiteLauncher)
    return {"tasks_per_job": 2}


@pytest.fixture(scope="session")
def _slurm_environment():
    if reason := slurm_cluster.missing():
        (pytest.fail if os.environ.get("CI") else pytest.skip)(reason)
    with slurm_cluster.slurm_cluster() as environment:
        yield environment


@pytest.fixture
def slurm(_slurm_environment, monkeypatch):
    """A SLURM cluster of one node, which this process and all that it starts find."""
    for name, value in _slurm_environment.items():
        monkeypatch.setenv(name, value)
    path = [*map(str, _IMPORTED_BY_JOBS), *filter(None, [os.environ.get("PYTHONPATH")])]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(path))
    return slurm_cluster


@pytest.fixture
def slurm_options(slurm):
    return {"tasks_per_job": 3, "cores": 1, "max_jobs": slurm.CPUS}


@pytest.fixture(scope="session")
def ray_nodes():
    """A Ray cluster of two nodes."""
    if reason := ray_cluster.missing():
        (pytest.fail if os.environ.get("CI") else pytest.skip)(reason)
    with ray_cluster.ray_cluster() as cluster:
        yield cluster


@pytest.fixture
def ray_options(ray_nodes):
    return {"address": ray_nodes.address}
