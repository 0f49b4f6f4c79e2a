"""What `domainbed sweep status` tells of folders in every state."""

import json
import shutil
import sys
import time
from types import SimpleNamespace

import pytest

from domainbed.cli import launching, run
from domainbed.errors import UserError
from domainbed.runs.states import RunStatus
from domainbed.spec import RunSpec
from domainbed.sweeps import status as module
from domainbed.sweeps.config import SweepConfig
from domainbed.sweeps.status import status_json, status_lines, status_of, summary_line
from domainbed.sweeps.store import Store


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path)


@pytest.fixture
def runs():
    """Six of 100 steps."""
    specs = [
        RunSpec.create("ColoredDigits", "ERM", [0], steps=100, trial_seed=trial)
        for trial in range(6)
    ]
    return {spec.run_id: spec.planned() for spec in specs}


def record(step, **more):
    return json.dumps({"step": step, **more}) + "\n"


def finish(folder, seconds):
    folder.path.mkdir(exist_ok=True)
    folder.results.write_text(record(99))
    folder.environment.write_text(json.dumps({"seconds": seconds}))
    folder.done.write_text("done")


def test_pace_and_time_left_by_hand(store, runs):
    """Of six runs of a minute two are done, one is half done, one failed, one waits."""
    first, second, running, failed, pending, _ = (store.folder(run_id) for run_id in runs)
    finish(first, 50.0)
    finish(second, 70.0)
    failed.path.mkdir()
    failed.errors.write_text("it broke\n")
    pending.path.mkdir()
    pending.mark_pending("slurm", "123_4", {})
    with running.exclusive():
        running.results.write_text(record(9) + record(49))
        found = status_of(store, runs)
    expected = {"done": 2, "running": 1, "failed": 1, "pending": 1, "missing": 1}
    assert found.total == expected
    assert found.pace == pytest.approx(60)
    assert found.left == pytest.approx(30 + 60 + 60)  # a failed run is not done again
    summary = "2 of 6 runs done, 1 running, 1 pending, 1 failed, 1 missing"
    assert summary_line(found) == f"{summary}; 60 runs an hour, about 2m30s left"
    lines = "\n".join(status_lines(found))
    assert "ERM on ColoredDigits, test domain 0, hparams seed 0, trial 2  50%  on " in lines
    assert "  1 run, slurm jobs 123_4" in lines
    assert "    it broke" in lines
    content = json.loads(status_json(found))
    assert content["running"][0]["taken"] == 0.5
    assert content["pending"] == [
        {"engine": "slurm", "job": "123_4", "why": "", "stuck": False, "runs": 1}
    ]
    assert (content["runs_per_hour"], content["seconds_left"]) == (60.0, 150.0)
    assert content["total"] == {**dict.fromkeys(content["total"], 0), **expected}


@pytest.mark.parametrize(
    ("content", "taken"),
    [
        (record(24), 0.25),
        (record(24, stage=2, args={"stages": 2}), 0.625),
        ('{"step": 24', 0),
        ("\n", 0),
        ("[]\n", 0),
        (None, 0),
    ],
)
def test_the_share_of_steps_that_a_record_tells_of(store, content, taken):
    folder = store.folder("a")
    folder.path.mkdir()
    if content is not None:
        folder.results.write_text(content)
    assert module.share_taken(folder, 100) == taken


def test_where_a_run_is_under_way(store, runs, monkeypatch):
    there = RunStatus("running", "ray", "job7", host="node3", pid=42, silent_for=33.0)
    monkeypatch.setattr(Store, "statuses", lambda self, ids, known: dict.fromkeys(ids, there))
    lines = status_lines(status_of(store, runs))
    assert lines[4].endswith("  0%  on node3, process 42, ray job job7, silent for 33s")
    monkeypatch.setattr(module, "_LISTED", 4)
    assert status_lines(status_of(store, runs))[-1] == "  and 2 more"


def test_what_was_done_is_not_looked_at_again(store, runs):
    first, second, *_ = runs
    finish(store.folder(first), 1.0)
    before = status_of(store, runs)
    shutil.rmtree(store.folder(first).path)
    finish(store.folder(second), 1.0)
    assert status_of(store, runs, before).total == {"done": 2, "missing": 4}
    assert status_of(store, runs).total == {"done": 1, "missing": 5}


@pytest.fixture
def planned(store, runs):
    """The sweep's folder with two runs to do; the first is done, the second missing."""
    two = [
        RunSpec.create("ColoredDigits", "ERM", [0], steps=100, trial_seed=trial)
        for trial in range(2)
    ]
    config = SweepConfig(datasets=("ColoredDigits",), algorithms=("ERM",))
    store.write_plan(config, {spec.run_id: spec.planned() for spec in two})
    finish(store.folder(two[0].run_id), 1.0)
    return store.folder(two[1].run_id)


def pause_by(sleep, monkeypatch):
    """What the command does between two looks; other threads of the process sleep as ever."""
    slept = []
    clock = SimpleNamespace(
        sleep=lambda seconds: (slept.append(seconds), sleep(seconds)),
        strftime=time.strftime,
        monotonic=lambda: sum(slept),
    )
    monkeypatch.setattr(launching, "time", clock)


def test_watching_in_a_log_until_all_is_done(store, planned, monkeypatch, capsys):
    pauses = []
    pause_by(lambda s: (pauses.append(s), finish(planned, 1.0)), monkeypatch)
    assert run(["sweep", "status", "--watch", str(store.root)]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first.endswith("1 of 2 runs done, 1 missing")
    assert second.endswith("2 of 2 runs done")
    assert pauses == [2.0]


def test_watching_on_a_terminal(store, planned, monkeypatch, capsys):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    small = SimpleNamespace(get_terminal_size=lambda: (30, 5))
    monkeypatch.setattr(launching, "shutil", small)

    def fail(seconds):
        assert seconds == 0.5
        planned.path.mkdir()
        planned.errors.write_text("it broke\n")

    pause_by(fail, monkeypatch)
    assert run(["sweep", "status", "--watch", "--every", "0.5", str(store.root)]) == 1
    screens = capsys.readouterr().out.split("\x1b[H")[1:]
    assert len(screens) == 2
    for screen in screens:
        lines = screen.removesuffix("\x1b[J").split("\x1b[K\n")
        assert len(lines) == 5
        assert max(map(len, lines)) <= 30
    assert "1 of 2 runs done, 1 f" in screens[1]


def test_watching_ends_where_nothing_is_running_and_nothing_will_be(
    store, planned, monkeypatch, capsys
):
    """A minute later: a launch needs some seconds until its first runs are marked."""
    pauses = []
    pause_by(pauses.append, monkeypatch)
    assert run(["sweep", "status", "--watch", "--every", "25", str(store.root)]) == 1
    assert pauses == [25, 25, 25]
    assert capsys.readouterr().out.endswith("Nothing is running, and no engine will start a run.\n")


def test_ctrl_c_ends_watching(store, planned, monkeypatch):
    def interrupt(seconds):
        raise KeyboardInterrupt

    pause_by(interrupt, monkeypatch)
    assert run(["sweep", "status", "--watch", str(store.root)]) == 0


def test_what_cannot_be_watched(store, planned):
    def watch(*words):
        return run(["sweep", "status", str(store.root), *words])

    with pytest.raises(UserError, match="--watch is for people"):
        watch("--watch", "--json")
    with pytest.raises(UserError, match="--every 0: expected seconds above 0 and at most 86400"):
        watch("--watch", "--every", "0")
    for never in ("inf", "nan", "1e9"):
        with pytest.raises(UserError, match="expected seconds above 0 and at most 86400"):
            watch("--watch", "--every", never)
    with pytest.raises(UserError, match="with --watch"):
        watch("--every", "3")
