"""Runs that are handed to an engine: marked, followed, taken up again and taken back."""

import json
from functools import partial
from typing import ClassVar

import pytest

from domainbed.cli.launching import launch_sweep
from domainbed.errors import UserError
from domainbed.launchers import LAUNCHERS, Handle, JobReport, Launcher
from domainbed.runs.ownership import ENGINE_VARIABLE, JOB_VARIABLE
from domainbed.runs.states import DONE, FAILED, INTERRUPTED, MISSING, PENDING, RUNNING, RunStatus
from domainbed.sweeps.config import load_config
from domainbed.sweeps.engines import as_reported, cancel, in_hand
from domainbed.sweeps.launch import prepare
from domainbed.sweeps.outlook import outlook
from domainbed.sweeps.status import status_json, status_lines, status_of


class Queue(Launcher):
    """Has jobs of two tasks each, and never begins one."""

    blocking = False
    queued: ClassVar[dict] = {}
    said: ClassVar[dict] = {}
    priority: int = 0

    def submit(self, job, tasks, resources, folder):
        jobs = [f"{len(self.queued)}_{position // 2}" for position in range(len(tasks))]
        self.queued.update(zip(jobs, tasks))
        return Handle(jobs)

    def parallelism(self, tasks, resources):
        return tasks

    def ask(self, jobs):
        return {job: self.said.get(job, JobReport()) for job in set(jobs) & set(self.queued)}

    def cancel(self, jobs):
        for job in jobs:
            del self.queued[job]


@pytest.fixture
def queued(monkeypatch):
    """The jobs of the launcher `queue`, which is registered."""
    monkeypatch.setitem(LAUNCHERS._entries, "queue", Queue)
    monkeypatch.setattr(Queue, "queued", {})
    monkeypatch.setattr(Queue, "said", {})
    return Queue.queued


@pytest.fixture
def config(queued, tmp_path):
    return load_config(
        None,
        {
            **{"datasets": ["ColoredDigits"], "algorithms": ["ERM"], "steps": 2, "trials": 1},
            **{"test_envs": [[0], [1], [2]], "hparams_seeds": 1, "selection": ["oracle"]},
            **{"launcher": "queue", "output_dir": str(tmp_path / "sweep"), "device": "cuda"},
        },
    )


def statuses(launch):
    return list(launch.store.statuses(launch.runs).values())


def test_submitted_runs_are_pending_until_the_engine_forgets_them(config, queued):
    launch = prepare(config)
    launch.submit()
    assert list(queued) == ["0_0", "0_1"]
    assert statuses(launch) == [RunStatus(PENDING, "queue", j) for j in ("0_0", "0_0", "0_1")]
    again = prepare(config)
    assert (again.todo, len(again.in_hand)) == ([], 3)
    assert "3 runs queued by an earlier launch" in outlook(again)
    del queued["0_0"]
    assert prepare(config).todo == launch.todo[:2]


def test_what_failed_stays_failed_though_its_mark_is_there(config):
    launch = prepare(config)
    launch.submit()
    launch.store.folder(launch.todo[0]).errors.write_text("Traceback\nno good\n")
    again = prepare(config)
    assert sorted(again.states.values()) == [FAILED, PENDING, PENDING]
    assert again.todo == []
    assert prepare(config, retry=True).todo == launch.todo[:1]


def test_what_another_process_is_at_is_not_queued_but_left_to_a_waiting_launch(config):
    launch = prepare(config)
    with launch.store.folder(launch.todo[0]).exclusive():
        assert prepare(config).todo == launch.todo[1:]
        here = config.model_copy(update={"launcher": {"name": "debug"}})
        assert prepare(here).todo == launch.todo


def test_cancelled_jobs_are_the_engines_no_more(config, queued):
    launch = prepare(config)
    launch.submit()
    found = launch.store.statuses(launch.runs)
    assert cancel(launch.store, found, config.launcher) == {"queue": {"0_0", "0_1"}}
    assert queued == {}
    assert {status.state for status in statuses(launch)} == {MISSING}
    assert cancel(launch.store, launch.store.statuses(launch.runs), config.launcher) == {}


def begin_and_stop(folder, job, monkeypatch):
    """What an interrupted run leaves, in which its job is noted."""
    work_in(job, monkeypatch)
    with folder.exclusive():
        folder.spec.write_text("{}")


def work_in(job, monkeypatch):
    for name, value in {ENGINE_VARIABLE: "queue", JOB_VARIABLE: job}.items():
        monkeypatch.setenv(name, value)


def test_an_interrupted_run_of_a_requeued_job_is_not_submitted_again(config, queued, monkeypatch):
    launch = prepare(config)
    launch.submit()
    first = launch.store.folder(launch.todo[0])
    begin_and_stop(first, "0_0", monkeypatch)
    again = prepare(config)
    assert (again.states[launch.todo[0]], again.todo) == (INTERRUPTED, [])
    assert "1 run interrupted, in jobs that are queued again" in outlook(again)
    assert status_of(again.store, again.planned, ask=asking(again)).total == {PENDING: 3}
    elsewhere = config.model_copy(update={"launcher": {"name": "debug"}})
    monkeypatch.setattr(Queue, "ask", unreachable)
    launch.store.folder(launch.todo[1]).pending.unlink()
    launch.store.folder(launch.todo[2]).pending.unlink()
    assert prepare(elsewhere).todo == launch.todo  # where there is no such engine
    assert launch.store.folder(launch.todo[0]).state() == INTERRUPTED


def unreachable(self, jobs):
    raise UserError("there is no `squeue` here")


def asking(launch):
    return partial(as_reported, launch.store, launch.config.launcher)


def test_a_status_says_what_the_engine_says(config, queued, monkeypatch):
    launch = prepare(config)
    launch.submit()
    folders = list(map(launch.store.folder, launch.todo))
    log = launch.store.launcher_folder / "0_0.out"
    log.parent.mkdir()
    log.write_text("loading\n\nno such module: cuda\n")
    folders[0].link_log(log)

    def told(said):
        Queue.said = said
        found = status_of(launch.store, launch.planned, ask=asking(launch))
        return found, "\n".join(status_lines(found))

    found, lines = told({"0_0": JobReport(PENDING, "Resources"), "0_1": JobReport(RUNNING)})
    assert (found.total, found.may_change) == ({PENDING: 3}, True)
    assert "  2 runs, queue jobs 0_0: Resources" in lines
    found, lines = told(dict.fromkeys(queued, JobReport(PENDING, "PartitionConfig", stuck=True)))
    assert (found.total, found.may_change) == ({PENDING: 3}, False)
    assert "  3 runs, queue jobs 0_0, 0_1: cannot start: PartitionConfig" in lines
    del queued["0_1"]
    found, lines = told({"0_0": JobReport(FAILED, "FAILED")})
    assert (found.total, found.may_change) == ({FAILED: 2, MISSING: 1}, False)
    said = "queue job 0_0 ended before the run began: FAILED (loading / no such module: cuda)"
    assert said in lines
    assert "  1 run, queue jobs 0_1: which it does not know any more" in lines
    assert json.loads(status_json(found))["gone"][0]["runs"] == 1
    monkeypatch.setattr(Queue, "ask", unreachable)
    found, lines = told({})
    assert found.total == {PENDING: 3}


def test_queued_runs_keep_their_options_until_they_are_resubmitted(config, queued, monkeypatch):
    launch = prepare(config)
    launch.submit()
    other = config.model_copy(update={"launcher": {"name": "queue", "priority": 3}})
    again = prepare(other)
    assert again.todo == []
    assert (
        "3 of them keep the options that they were submitted with (no others): "
        "`--resubmit` submits them again with those of this launch"
    ) in outlook(again)
    assert prepare(config).outdated == {}
    work_in("0_0", monkeypatch)
    with launch.store.folder(launch.todo[0]).exclusive():
        begun = prepare(other, resubmit=True)
        assert begun.todo == launch.todo[2:]
    launch.store.folder(launch.todo[0]).mark_pending("queue", "0_0", {})
    anew = prepare(other, resubmit=True)
    assert anew.todo == launch.todo
    assert "3 runs are queued: withdrawn, then resubmitted" in outlook(anew)
    anew.submit()
    assert len(queued) == 2
    assert prepare(other).outdated == {}


def test_nothing_is_offered_when_all_is_done(config, capsys):
    launch = prepare(config)
    launch.submit()
    for folder in map(launch.store.folder, launch.todo):
        folder.results.write_text("{}\n")
        folder.done.touch()
    assert launch_sweep(config) == 0
    assert capsys.readouterr().out.splitlines()[-1] == (
        f"All runs are done (3): `domainbed collect {config.output_dir}` shows the tables."
    )


def test_an_engine_that_is_unknown_here_is_named():
    of = {"a": RunStatus(PENDING, "slurmy", "7"), "b": RunStatus(DONE), "c": RunStatus(RUNNING)}
    with pytest.raises(UserError, match="unknown launcher 'slurmy'"):
        in_hand(of, {"name": "local"})


def test_a_launch_returns_when_it_has_submitted(config, capsys):
    assert launch_sweep(config) == 0
    root = config.output_dir
    said = capsys.readouterr().out.splitlines()[-2:]
    assert said[0] == "submitted 3 runs as 2 jobs: 0_0 … 0_1"
    assert said[1].startswith(f"`domainbed sweep status {root}` shows their states")
    assert launch_sweep(config) == 0
    assert "submitted" not in capsys.readouterr().out


def test_devices_are_those_of_where_runs_are_done(config, monkeypatch):
    monkeypatch.setattr("torch.empty", lambda *args, **options: 1 / 0)
    assert not any("device" in line for line in prepare(config).obstacles())


def test_commands_of_jobs_are_shown(tmp_path):
    """A sweep's folder may be a stranger's; a run's own options are not repeated."""
    launcher = {
        "name": "slurm",
        "cores": 2,
        "setup": ["curl x | sh"],
        "python": "\x1b[2Jnice python",
    }
    values = {"datasets": ["ColoredDigits"], "algorithms": ["ERM"], "output_dir": str(tmp_path)}
    told = outlook(prepare(load_config(None, {**values, "launcher": launcher})))
    assert "its jobs are started with setup ['curl x | sh'], python nice python" in told


def test_a_sweep_on_domainnet_says_how_long_others_train(tmp_path):
    def told(**fields):
        values = {"datasets": ["DomainNet"], "algorithms": ["ERM"], "output_dir": str(tmp_path)}
        return "\n".join(outlook(prepare(load_config(None, {**values, **fields}))))

    assert "5,001 updates, as in DomainBed; most papers train 15,001" in told()
    assert "15,001" not in told(steps=15001)
    assert "15,001" not in told(datasets=["PACS"])
