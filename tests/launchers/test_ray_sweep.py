"""A sweep on a Ray cluster that loses a node ends as one that nothing happened to."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
from waiting import wait_until

from domainbed.launchers.event_files import EventReader
from domainbed.launchers.ray_tasks import TEAM
from domainbed.reporting import collect
from domainbed.runs.states import DONE, PENDING, RUNNING
from domainbed.sweeps.config import load_config
from domainbed.sweeps.launch import prepare

STEPS, EVERY = 60, 5
REPOSITORY = Path(__file__).parents[2]


def prepared(folder, launcher):
    """Four runs, which leave a checkpoint with each record."""
    config = {
        **{"datasets": ["ColoredDigits"], "algorithms": ["ERM", "CORAL"], "test_envs": [[0], [1]]},
        **{"trials": 1, "hparams_seeds": 1, "selection": ["oracle"], "device": "cpu"},
        **{"steps": STEPS, "checkpoint_freq": EVERY, "hparams": {"batch_size": 16}},
    }
    return prepare(load_config(None, {**config, "output_dir": str(folder), "launcher": launcher}))


def records(launch):
    """Of each run, without timings and places."""
    found = {}
    for run_id in launch.runs:
        lines = launch.store.folder(run_id).results.read_text().splitlines()
        found[run_id] = [json.loads(line) for line in lines]
        for record in found[run_id]:
            del record["step_time"], record["args"]["output_dir"]
    return found


def weights(launch):
    files = {i: launch.store.folder(i).model for i in launch.runs}
    loaded = {i: torch.load(file, weights_only=True) for i, file in files.items()}
    return {(i, k): tensor for i in files for k, tensor in loaded[i]["model_dict"].items()}


def has_recorded(folder):
    return folder.results.exists() and folder.results.read_text().count("\n") >= 2


@pytest.mark.slow
def test_a_sweep_that_loses_a_node_ends_as_an_undisturbed_one(ray_nodes, tmp_path):
    undisturbed = prepared(tmp_path / "debug", "debug")
    assert undisturbed.execute() == {}
    launcher = {"name": "ray", "address": ray_nodes.address}
    launch = prepared(tmp_path / "ray", launcher)
    folders = [launch.store.folder(run_id) for run_id in launch.runs]
    handle = launch.submit()
    waiting = [folder.status() for folder in folders if folder.state() == PENDING]
    assert {(status.engine, status.job) for status in waiting} <= {("ray", j) for j in handle.jobs}
    assert prepared(tmp_path / "ray", launcher).todo == []  # the cluster has them in hand

    wait_until(lambda: sum(map(has_recorded, folders)) >= 2, 300)  # one on each node
    under_way = [folder for folder in folders if folder.state() == RUNNING]
    lost = under_way[0].status().pid
    ray_nodes.replace_node_of(lost)
    assert prepared(tmp_path / "ray", launcher).todo == []  # it is begun again without a launch
    wait_until(lambda: all(folder.state() == DONE for folder in folders), 300)

    events = EventReader(handle.logs[0].parent, [TEAM]).read()
    begun = [event.index for event in events if event.kind == "started"]
    assert len(begun) == len(folders) + 1  # one run was lost, and begun again
    assert [folder.state() for folder in folders] == [DONE] * 4
    assert records(launch) == records(undisturbed)
    ours, theirs = weights(launch), weights(undisturbed)
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []
    tables = [
        collect(each.store.root).drop(columns="folder", errors="ignore")
        for each in (launch, undisturbed)
    ]
    pd.testing.assert_frame_equal(*tables)
    assert prepared(tmp_path / "ray", launcher).todo == []


@pytest.mark.slow
def test_the_commands_of_the_page_work_on_a_cluster(ray_nodes, tmp_path):
    page = (REPOSITORY / "docs" / "clusters.md").read_text()
    (tmp_path / "ray.yaml").write_text(between(page, "<!-- file: ray.yaml -->\n```yaml\n", "```"))
    commands = between(page, "gives these commands on one -->\n```sh\n", "```").splitlines()
    assert len(commands) == 4
    said = []
    for command in commands:
        words = command.partition("#")[0].replace("head:6379", ray_nodes.address).split()
        done = subprocess.run(
            [sys.executable, "-m", *words],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr
        said.append(done.stdout)
    assert "submitted 2 runs as 2 jobs: ray-" in said[0]
    assert "All runs are done (2)" in said[3]


def between(text, before, after):
    return text.partition(before)[2].partition(after)[0]
