"""A launch that stays until its runs, and those of earlier launches, have ended."""

import os
import signal
import threading
import time
from functools import partial
from typing import ClassVar

import pytest

from domainbed.cli import launching
from domainbed.cli.launching import launch_sweep
from domainbed.errors import UserError
from domainbed.launchers import LAUNCHERS, Handle, JobReport, Launcher
from domainbed.runs.states import FAILED, PENDING
from domainbed.sweeps.config import load_config
from domainbed.sweeps.engines import as_reported
from domainbed.sweeps.launch import prepare
from domainbed.sweeps.status import status_of


class Board(Launcher):
    """An engine that only keeps a list; `answers` is emptied first, and raised."""

    blocking: ClassVar[bool] = False
    jobs: ClassVar[dict] = {}
    answers: ClassVar[list] = []

    def submit(self, job, tasks, resources, folder):
        new = [str(len(self.jobs) + position) for position in range(len(tasks))]
        self.jobs.update(dict.fromkeys(new, JobReport()))
        return Handle(new)

    def parallelism(self, tasks, resources):
        return tasks

    def ask(self, jobs):
        if self.answers:
            raise self.answers.pop()
        return {job: self.jobs[job] for job in set(jobs) & set(self.jobs)}


@pytest.fixture
def launch(monkeypatch, tmp_path):
    """Three runs that an earlier launch has handed to the engine."""
    monkeypatch.setitem(LAUNCHERS._entries, "board", Board)
    monkeypatch.setattr(Board, "jobs", {})
    monkeypatch.setattr(launching, "_SHORTEST_PAUSE", 0.05)
    monkeypatch.setenv("DOMAINBED_SILENCE_SECONDS", "0.5")
    fields = {
        **{"datasets": ["ColoredDigits"], "algorithms": ["ERM"], "test_envs": [[0], [1], [2]]},
        **{"trials": 1, "hparams_seeds": 1, "selection": ["oracle"], "steps": 10},
        **{"launcher": "board", "output_dir": str(tmp_path / "sweep")},
    }
    config = load_config(None, fields)
    prepare(config).submit()
    return prepare(config)


def finish(folder):
    folder.results.write_text("{}\n")
    folder.done.touch()


def test_a_launch_that_waits_ends_with_the_runs_of_others(launch, capsys):
    assert (launch.todo, launch.others) == ([], list(launch.runs))
    ended = []

    def do():
        for number, folder in enumerate(map(launch.store.folder, launch.runs)):
            with folder.exclusive():
                time.sleep(0.2)
                folder.spec.write_text("{}")
                finish(folder) if number else folder.errors.write_text("no good\n")
            ended.append(number)

    doing = threading.Timer(0.5, do)
    doing.start()
    assert launch_sweep(launch.config, wait=True) == 1
    assert ended[:2] == [0, 1]
    doing.join()
    told = capsys.readouterr().out
    assert "3 runs queued by an earlier launch" in told
    assert " of 3 runs done, 1 running" in told
    assert "2 of 3 runs are done, 1 failed." in told
    assert "no good" in told
    assert list(Board.jobs) == ["0", "1", "2"]  # none was submitted again


def test_a_launch_that_waits_ends_where_nothing_can_start(launch, capsys, caplog):
    """One job cannot start, one ended before its run began, one is gone; at first none answers."""
    Board.jobs["0"] = JobReport(PENDING, "PartitionConfig", stuck=True)
    Board.jobs["1"] = JobReport(FAILED, "FAILED")
    del Board.jobs["2"]
    Board.answers.append(UserError("the engine is away"))
    ask = partial(as_reported, launch.store, launch.config.launcher)
    found = launching.watch(partial(status_of, launch.store, launch.planned, ask=ask))
    assert found.total == {"pending": 1, "failed": 1, "missing": 1}
    assert caplog.text.count("the engine is away") == 1
    told = capsys.readouterr().out
    assert "1 run, board jobs 0: cannot start: PartitionConfig" in told
    assert "board job 1 ended before the run began: FAILED" in told
    assert "1 run, board jobs 2: which it does not know any more" in told
    assert told.endswith("Nothing is running, and no engine will start a run.\n")
    stuck = JobReport(PENDING, "PartitionConfig", stuck=True)
    Board.jobs.update(dict.fromkeys(("0", "1", "2"), stuck))
    assert launch_sweep(launch.config, wait=True) == 1
    told = capsys.readouterr().out
    assert "0 of 3 runs are done, 0 failed.\n3 runs more: not started, or not by this" in told


def test_an_interrupt_ends_the_waiting_and_no_run(launch, capsys):
    timer = threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    assert launch_sweep(launch.config, wait=True) == 130
    assert "no longer waiting: 0 of 3 runs are done" in capsys.readouterr().err
    assert set(launch.store.states(launch.runs).values()) == {PENDING}
