"""What every launcher does: each test runs over all that are registered, and a site's own."""

from __future__ import annotations

import json
import threading
from dataclasses import dataclass
from pathlib import Path

import pytest
from jobs import WordJob
from submission import in_hand, wait_for

from domainbed.cli.launching import launch_sweep
from domainbed.launchers import LAUNCHERS, Launcher, Resources, create_launcher
from domainbed.runs.states import BUSY, DONE, ENDS, FAILED, INTERRUPTED, STARTED
from domainbed.sweeps.config import load_config
from domainbed.sweeps.launch import prepare

NAMES = [*LAUNCHERS, "site"]


@dataclass
class Case:
    """A launcher that can be used here."""

    name: str
    options: dict
    folder: Path

    def __post_init__(self):
        self.launcher: Launcher
        self.launcher, resources = create_launcher(self.name, self.options)
        self.resources = resources.model_copy(update={"device": "cpu"})
        self.job = WordJob(str(self.folder / "log"))

    def submit(self, tasks):
        return self.launcher.submit(self.job, tasks, self.resources, self.folder / ".launcher")

    def done(self, tasks):
        """The handle of tasks that were waited for, and the events."""
        events = []
        handle = self.submit(tasks)
        wait_for(handle, self.launcher, events.append)
        return handle, events


@pytest.fixture(params=NAMES)
def case(request, tmp_path):
    return Case(request.param, request.getfixturevalue(f"{request.param}_options"), tmp_path)


def test_every_end_of_a_task_is_told_once_and_stops_no_other(case):
    tasks = ["ok", "fail", "exit", "busy", "ok", "ok"]
    _, events = case.done(tasks)
    ends = [(event.index, event.kind) for event in events if event.kind in ENDS]
    assert sorted(ends) == list(enumerate([DONE, FAILED, FAILED, BUSY, DONE, DONE]))
    assert sorted(case.job.begun()) == sorted(tasks)
    for index in range(len(tasks)):
        kinds = [event.kind for event in events if event.index == index]
        assert (kinds[0], kinds[-1] in ENDS) == (STARTED, True)
        assert kinds.count("progress") >= 1
    errors = {event.index: event.error for event in events if event.kind == FAILED}
    assert errors[1].strip().endswith("ValueError: no good")
    assert "Traceback" in errors[1]


def test_tasks_find_which_engine_does_them_and_as_which_job(case):
    handle, _ = case.done(["first", "second", "third"])
    found = {line[0]: line[-2:] for line in case.job.lines()}
    jobs = dict(zip(["first", "second", "third"], handle.jobs))
    assert found == {task: [case.name, job] for task, job in jobs.items()}
    assert all(jobs.values())


def test_nothing_to_do_is_no_fault(case):
    handle, events = case.done([])
    assert (list(handle.jobs), events) == ([], [])
    assert case.launcher.parallelism(0, case.resources) == 0


def test_at_most_all_tasks_are_done_at_a_time(case):
    assert 1 <= case.launcher.parallelism(1000, case.resources) <= 1000
    assert case.launcher.parallelism(1, case.resources) == 1


def test_cancelled_tasks_are_stopped_or_not_begun(case):
    if case.launcher.blocking:
        pytest.skip("its tasks stop with this process")
    handle = case.submit(["wait"] * 6)

    def on_event(event):
        events.append(event)
        if event.kind == "progress" and not cancelled:
            cancelled.append(event.index)
            case.launcher.cancel(set(handle.jobs))

    events, cancelled = [], []
    watched = threading.Timer(100, case.launcher.cancel, [set(handle.jobs)])  # rather than to hang
    watched.start()
    wait_for(handle, case.launcher, on_event)
    watched.cancel()
    assert {event.kind for event in events if event.kind in ENDS} == {INTERRUPTED}
    assert cancelled[0] in [event.index for event in events if event.kind == INTERRUPTED]
    assert not in_hand(case.launcher, handle.jobs)


def test_an_engine_knows_its_jobs_until_they_end(case):
    handle = case.submit(["wait", "wait"])
    if case.launcher.blocking:
        assert in_hand(case.launcher, handle.jobs) == set()
        assert case.job.begun() == []  # nothing before it is waited for
        return
    assert in_hand(case.launcher, handle.jobs) == set(handle.jobs)
    assert case.launcher.ask(["nothing-of-the-kind"] if case.name != "site" else []) == {}
    other, _ = create_launcher(case.name, case.options)
    other.cancel(handle.jobs)  # from elsewhere, later
    events = []
    wait_for(handle, case.launcher, events.append)
    assert in_hand(case.launcher, handle.jobs) == set()
    assert DONE not in {event.kind for event in events}


def test_the_options_are_the_fields_and_resources_of_the_launcher(case):
    assert set(case.launcher.resource_options) <= set(Resources.model_fields) - {"device"}
    assert not set(case.launcher.resource_options) & set(type(case.launcher).model_fields)
    with pytest.raises(Exception, match="has no option 'nonsense'"):
        create_launcher(case.name, {**case.options, "nonsense": 1})


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The records of a small sweep that the launcher `debug` did."""
    return records(sweep({"name": "debug"}, tmp_path_factory.mktemp("debug")))


def test_a_sweep_has_the_same_records(case, undisturbed, tmp_path):
    launch = sweep({"name": case.name, **case.options}, tmp_path)
    assert set(launch.store.states(launch.runs).values()) == {DONE}
    assert records(launch) == undisturbed
    assert prepare(launch.config).todo == []


def test_a_launch_that_waits_stays_for_runs_of_an_earlier_one(site_options, tmp_path, capsys):
    config = config_of({"name": "site", **site_options}, tmp_path)
    assert launch_sweep(config) == 0
    assert launch_sweep(config, wait=True) == 0
    told = capsys.readouterr().out
    assert "submitted 2 runs as 1 jobs" in told
    assert "0 to do" in told
    assert "All runs are done (2)" in told


def sweep(launcher, folder):
    """A launched sweep of two runs."""
    launch = prepare(config_of(launcher, folder))
    assert launch_sweep(launch.config, wait=True) == 0
    return launch


def config_of(launcher, folder):
    return load_config(
        None,
        {
            **{"datasets": ["ColoredDigits"], "algorithms": ["ERM"], "test_envs": [[0], [1]]},
            **{"trials": 1, "hparams_seeds": 1, "selection": ["oracle"], "steps": 4},
            **{"checkpoint_freq": 2, "device": "cpu", "output_dir": str(folder / "sweep")},
            "launcher": launcher,
        },
    )


def records(launch):
    """What the tables are made of, by run."""
    lines = {i: launch.store.folder(i).results.read_text().splitlines() for i in launch.runs}
    return {i: [_without_times(json.loads(line)) for line in own] for i, own in lines.items()}


def _without_times(record):
    return {k: v for k, v in record.items() if k not in ("step_time", "args", "mem_gb")}
