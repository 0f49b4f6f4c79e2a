"""The launcher for one machine, with jobs that train nothing."""

import _thread
import os
import time
from pathlib import Path

import pytest
from jobs import WordJob
from site_launcher import is_alive

from domainbed.core.cores import usable_cores
from domainbed.errors import UserError
from domainbed.launchers import DebugLauncher, LocalLauncher, Resources, create_launcher
from domainbed.launchers.local import _signals_held_back, visible_gpus
from domainbed.runs.states import DONE, FAILED, INTERRUPTED, PROGRESS, STARTED

CPU, CUDA = Resources(device="cpu"), Resources(device="cuda")


def launch(launcher, tmp_path, tasks, resources=CPU):
    """The events, and what the tasks noted: words and processes."""
    events = []
    job = WordJob(str(tmp_path / "log"))
    launcher.submit(job, tasks, resources, tmp_path).wait(events.append)
    return events, job.lines()


def ends(events):
    return {e.index: e.kind for e in events if e.kind not in (STARTED, PROGRESS)}


def test_a_worker_that_dies_is_replaced_and_its_task_given_out_again(tmp_path, caplog):
    events, lines = launch(LocalLauncher(workers=1), tmp_path, ["die once", "ok"])
    assert ends(events) == {0: DONE, 1: DONE}
    assert [line[0] for line in lines] == ["die once", "die once", "ok"]
    assert len({line[1] for line in lines}) == 2
    assert "a worker died with signal 9 (SIGKILL): out of memory?: it is replaced" in caplog.text


def test_a_task_that_kills_two_workers_fails_alone(tmp_path):
    events, lines = launch(LocalLauncher(workers=1), tmp_path, ["die", "ok"])
    assert ends(events) == {0: FAILED, 1: DONE}
    [error] = [e.error for e in events if e.kind == FAILED]
    assert error == "2 workers died at it, the last with signal 9 (SIGKILL): out of memory?\n"
    assert [line[0] for line in lines] == ["die", "die", "ok"]
    assert WordJob(str(tmp_path / "log")).failures() == [f"die: {error.strip()}"]


def test_a_worker_that_somebody_stops_is_replaced_and_no_death_is_counted(tmp_path, caplog):
    events, lines = launch(LocalLauncher(workers=1), tmp_path, ["term once", "ok"])
    assert ends(events) == {0: DONE, 1: DONE}
    assert [line[0] for line in lines] == ["term once", "term once", "ok"]
    assert not caplog.text


def test_a_worker_ends_as_a_process_does(tmp_path):
    events, _ = launch(LocalLauncher(workers=1), tmp_path, ["leave open"])
    assert ends(events) == {0: DONE}
    assert (tmp_path / "log.handled").read_text() == "by a handler"
    assert (tmp_path / "log.open").read_text() == "left open"


def test_a_task_over_its_time_limit_is_stopped_and_fails(tmp_path):
    resources = Resources(device="cpu", minutes=0.01)
    events, _ = launch(LocalLauncher(workers=1), tmp_path, ["wait", "ok"], resources)
    assert ends(events) == {0: FAILED, 1: DONE}
    [error] = [e.error for e in events if e.kind == FAILED]
    assert error == "it reached the time limit of 0.01 minutes, and can resume\n"
    assert WordJob(str(tmp_path / "log")).failures() == [f"wait: {error.strip()}"]


def test_a_task_that_does_not_heed_its_time_limit_is_killed(tmp_path, monkeypatch):
    monkeypatch.setattr("domainbed.launchers.local.SECONDS_TO_STOP", 0.5)
    resources = Resources(device="cpu", minutes=0.01)
    began = time.monotonic()
    events, lines = launch(LocalLauncher(workers=1), tmp_path, ["sleep"], resources)
    assert time.monotonic() - began < 30
    assert ends(events) == {0: FAILED}
    assert "time limit" in events[-1].error
    assert len(lines) == 1


def test_workers_persist_and_share_the_cores(tmp_path, monkeypatch):
    monkeypatch.setattr("domainbed.launchers.local.usable_cores", lambda: 6)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    _, lines = launch(LocalLauncher(workers=2), tmp_path, ["ok"] * 12)
    assert len({line[1] for line in lines}) <= 2
    assert {line[2] for line in lines} == {"3"}
    assert "OMP_NUM_THREADS" not in os.environ


def test_an_interrupt_lets_tasks_stop_where_they_can_go_on(tmp_path, caplog):
    events = []

    def on_event(event):
        events.append(event)
        if [e.kind for e in events].count(PROGRESS) == 2 and event.kind == PROGRESS:
            raise KeyboardInterrupt

    job = WordJob(str(tmp_path / "log"))
    handle = LocalLauncher(workers=2).submit(job, ["wait"] * 3, CPU, tmp_path)
    with pytest.raises(KeyboardInterrupt):
        handle.wait(on_event)
    assert ends(events) == {0: INTERRUPTED, 1: INTERRUPTED}
    assert "stopping: 2 runs may take" in caplog.text
    assert not [pid for pid in job.pids() if is_alive(pid)]


def test_a_second_interrupt_ends_the_workers_at_once(tmp_path):
    begun = []

    def on_event(event):
        begun.extend([event.index] if event.kind == PROGRESS else [])
        if len(begun) == 2 and event.kind in (PROGRESS, INTERRUPTED):  # 1 is not yet at its end
            raise KeyboardInterrupt

    job = WordJob(str(tmp_path / "log"))
    handle = LocalLauncher(workers=2).submit(job, ["wait", "sleep", "ok"], CPU, tmp_path)
    before = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        handle.wait(on_event)
    assert time.monotonic() - before < 20
    assert not [pid for pid in job.pids() if is_alive(pid)]


def test_parallelism_is_never_more_than_the_tasks():
    assert LocalLauncher(workers=8).parallelism(3, CPU) == 3
    assert LocalLauncher().parallelism(1000, CPU) == usable_cores()
    assert DebugLauncher().parallelism(5, CPU) == 1
    assert LocalLauncher(workers=8).parallelism(0, CPU) == 0


@pytest.fixture
def four_gpus(monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 4)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr("domainbed.launchers.local.usable_cores", lambda: 12)


def places(monkeypatch, launcher, resources=CUDA, tasks=100):
    """The GPU and the threads of each worker that there would be."""
    given = []
    monkeypatch.setattr(
        "domainbed.launchers.local.Pool", lambda job, tasks, places, minutes: given.extend(places)
    )
    launcher.submit(None, [""] * tasks, resources, Path())
    return [(p.get("CUDA_VISIBLE_DEVICES"), int(p["OMP_NUM_THREADS"])) for p in given]


@pytest.mark.usefixtures("four_gpus")
def test_one_worker_per_visible_gpu(monkeypatch):
    assert places(monkeypatch, LocalLauncher()) == [(gpu, 3) for gpu in "0123"]
    assert places(monkeypatch, LocalLauncher(), tasks=2) == [("0", 3), ("1", 3)]
    assert places(monkeypatch, LocalLauncher(), CPU) == [(None, 1)] * 12
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7")
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert places(monkeypatch, LocalLauncher()) == [("5", 6), ("7", 6)]
    assert LocalLauncher().parallelism(10, CUDA) == 2
    assert visible_gpus("cuda:1") == []


@pytest.mark.usefixtures("four_gpus")
def test_runs_that_share_a_gpu_are_spread_over_all_gpus_first(monkeypatch):
    shared = LocalLauncher(runs_per_gpu=3, gpu_ids=(1, "3"))
    assert places(monkeypatch, shared) == [(gpu, 2) for gpu in ("1", "3") * 3]
    assert shared.parallelism(100, CUDA) == 6
    assert places(monkeypatch, shared, tasks=2) == [("1", 2), ("3", 2)]
    fewer = LocalLauncher(workers=3, runs_per_gpu=3, gpu_ids=(1, 3))
    assert places(monkeypatch, fewer) == [("1", 4), ("3", 4), ("1", 4)]


@pytest.mark.usefixtures("four_gpus")
def test_cores_are_those_of_each_worker(monkeypatch):
    resources = Resources(device="cpu", cores=5)
    assert places(monkeypatch, LocalLauncher(), resources) == [(None, 5)] * 2
    assert places(monkeypatch, LocalLauncher(workers=3), resources) == [(None, 5)] * 3
    on_gpus = Resources(device="cuda", cores=2)
    assert places(monkeypatch, LocalLauncher(), on_gpus) == [(gpu, 2) for gpu in "0123"]


@pytest.mark.usefixtures("four_gpus")
@pytest.mark.parametrize(
    ("device", "says"), [("cuda", "7, 9: .* here, 0, 1, 2, 3"), ("cpu", "0, 7, 9: .* none")]
)
def test_gpus_that_are_not_there_cannot_be_chosen(device, says):
    launcher = LocalLauncher(gpu_ids=(0, 7, 9))
    with pytest.raises(UserError, match=f"gpu_ids has {says}"):
        launcher.submit(None, ["a"], Resources(device=device), Path())


def test_unknown_options_are_reported_together_with_the_valid_ones():
    known = "workers, runs_per_gpu, gpu_ids, cores, minutes"
    with pytest.raises(UserError, match=rf"no option 'partition', 'gpus'\. Known: {known}"):
        create_launcher("local", {"partition": 1, "gpus": 2})
    with pytest.raises(UserError, match="Did you mean 'local'"):
        create_launcher("locale", {})
    launcher, resources = create_launcher("local", {"workers": 2, "cores": 3, "minutes": 90})
    assert (launcher.workers, resources.cores, resources.minutes) == (2, 3, 90)


@pytest.mark.parametrize("workers", [0, -1, "two", 1.5, True])
def test_the_number_of_workers_is_checked(workers):
    with pytest.raises(UserError, match=f"workers is {workers!r}: expected a whole number"):
        create_launcher("local", {"workers": workers})


def wait_until(holds, seconds=60):
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


def test_an_interrupt_waits_until_a_worker_knows_its_task():
    done = []

    def start():
        with _signals_held_back():
            _thread.interrupt_main()  # as where another thread takes the signal
            time.sleep(0.01)
            done.append("told")

    with pytest.raises(KeyboardInterrupt):
        start()
    assert done == ["told"]
