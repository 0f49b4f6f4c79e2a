"""A launch that stays until the runs of earlier launches have ended, too."""

import os
import signal
import threading
import time
from typing import ClassVar

import pytest

from domainbed.cli.launching import launch_sweep
from domainbed.errors import UserError
from domainbed.launchers import LAUNCHERS, Handle, Launcher
from domainbed.runs.states import DONE, FAILED, INTERRUPTED, PENDING, PROGRESS, STARTED
from domainbed.sweeps import following
from domainbed.sweeps.config import load_config
from domainbed.sweeps.launch import prepare


class Board(Launcher):
    """An engine that only keeps a list; `answers` is emptied first, and raised."""

    blocking: ClassVar[bool] = False
    jobs: ClassVar[list] = []
    answers: ClassVar[list] = []

    def submit(self, job, tasks, resources, folder):
        new = [str(len(self.jobs) + position) for position in range(len(tasks))]
        self.jobs.extend(new)
        return Posted(new)

    def parallelism(self, tasks, resources):
        return tasks

    def known(self, jobs):
        if self.answers:
            raise self.answers.pop()
        return set(jobs) & set(self.jobs)


class Posted(Handle):
    waited_for = threading.Event()

    def wait(self, on_event):
        self.waited_for.set()

    def cancel(self):
        pass


@pytest.fixture
def launch(monkeypatch, tmp_path):
    """Three runs that an earlier launch has handed to the engine."""
    monkeypatch.setitem(LAUNCHERS._entries, "board", Board)
    monkeypatch.setattr(Board, "jobs", [])
    monkeypatch.setattr(Posted, "waited_for", threading.Event())
    monkeypatch.setattr(following, "_SECONDS_BETWEEN_LOOKS", 0.05)
    monkeypatch.setattr(following, "_SHARE_OF_LOOKS", 1)
    monkeypatch.setattr(following, "_SECONDS_BETWEEN_QUESTIONS", 0.3)
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
    first, second, third = map(launch.store.folder, launch.runs)
    assert (launch.todo, launch.others) == ([], list(launch.runs))
    ended = []

    def do():
        Posted.waited_for.wait(20)
        for number, folder in enumerate([first, second, third]):
            with folder.exclusive():
                time.sleep(0.2)
                folder.spec.write_text("{}")
                finish(folder) if number else folder.errors.write_text("no good\n")
            ended.append(number)

    doing = threading.Thread(target=do)
    doing.start()
    assert launch_sweep(launch.config, wait=True) == 1
    assert ended[:2] == [0, 1]
    doing.join()
    told = capsys.readouterr().out
    assert "3 runs queued by an earlier launch" in told
    assert "2 of 3 runs are done, 1 failed." in told
    assert "no good" in told
    assert Board.jobs == ["0", "1", "2"]  # none was submitted again


def test_what_becomes_of_them_is_told_as_of_own_runs(launch, caplog):
    """The first is done, the second taken back while it waits, the third while it runs."""
    first, second, third = map(launch.store.folder, launch.runs)
    events = []

    def until_told(index, kind, steps=0):
        end = time.monotonic() + 20
        while (index, kind, steps) not in [(e.index, e.kind, e.steps) for e in events]:
            assert time.monotonic() < end, events
            time.sleep(0.01)

    def do():
        with first.exclusive():
            until_told(5, STARTED)
            first.results.write_text('{"step": 3}\n')
            until_told(5, PROGRESS, 4)
            finish(first)
        until_told(5, DONE)
        Board.answers.append(UserError("the engine is away"))
        with third.exclusive():
            third.spec.touch()
            until_told(7, STARTED)
            Board.jobs.remove("2")
            Board.jobs.remove("1")
            until_told(6, INTERRUPTED)

    doing = threading.Thread(target=do)
    doing.start()
    watched = threading.Timer(60, Board.jobs.clear)  # rather than to wait for ever
    watched.start()
    theirs = dict(enumerate((launch.runs[run_id] for run_id in launch.others), 5))
    for event in following.follow(launch.store, theirs, launch.config.launcher):
        events.append(event)
    watched.cancel()
    doing.join()
    ends = [(e.index, e.kind) for e in events if e.kind in (DONE, FAILED, INTERRUPTED)]
    assert ends == [(5, DONE), (6, INTERRUPTED), (7, INTERRUPTED)]
    assert [e.index for e in events if e.kind == STARTED] == [5, 7]
    assert second.state() == PENDING  # nothing was written
    assert caplog.text.count("the engine is away") == 1


def test_an_interrupt_ends_the_waiting_and_no_run(launch, capsys):
    timer = threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    assert launch_sweep(launch.config, wait=True) == 130
    assert "no longer waiting: 0 of 3 runs are done" in capsys.readouterr().err
    assert set(launch.store.states(launch.runs).values()) == {PENDING}


def test_who_does_not_wait_follows_nothing(launch):
    assert launch_sweep(launch.config) == 0
    assert launch.execute() == {}
