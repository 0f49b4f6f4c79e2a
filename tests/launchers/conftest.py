"""Clusters for tests of launchers, and of what is launched on them."""

import os
from pathlib import Path

import pytest
import slurm_cluster

_IMPORTED_BY_JOBS = (Path(__file__).parent, Path(__file__).parents[2])


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
