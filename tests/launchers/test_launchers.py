"""Launchers, with jobs that train nothing."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from domainbed.cores import usable_cores
from domainbed.errors import UserError
from domainbed.launchers import DebugLauncher, LocalLauncher, Resources, create_launcher
from domainbed.launchers.local import visible_gpus
from domainbed.run_folder import Busy
from domainbed.states import BUSY, DONE, FAILED, PROGRESS, STARTED

CPU, CUDA = Resources(device="cpu"), Resources(device="cuda")


@dataclass(frozen=True)
class FakeJob:
    """Does what the task's word says, and notes which process did it."""

    log: str

    def __call__(self, task, on_step):
        with open(self.log, "a") as log:
            print(task, os.getpid(), os.environ.get("OMP_NUM_THREADS"), file=log)
        on_step(1)
        if task == "fail":
            raise ValueError("no good")
        if task == "exit":
            raise SystemExit(3)
        if task == "busy":
            raise Busy
        if task == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if task == "sleep":
            time.sleep(60)


def launch(launcher, tmp_path, tasks):
    events = []
    handle = launcher.submit(FakeJob(str(tmp_path / "log")), tasks, CPU, tmp_path)
    handle.wait(events.append)
    lines = [line.split() for line in (tmp_path / "log").read_text().splitlines()]
    return events, lines


def ends(events):
    return {e.index: e.kind for e in events if e.kind not in (STARTED, PROGRESS)}


@pytest.mark.parametrize("launcher", [DebugLauncher(), LocalLauncher(workers=2)])
def test_a_task_that_fails_exits_or_is_busy_stops_no_other(launcher, tmp_path):
    tasks = ["ok", "fail", "exit", "busy", "ok", "ok"]
    events, lines = launch(launcher, tmp_path, tasks)
    kinds = [DONE, FAILED, FAILED, BUSY, DONE, DONE]
    assert ends(events) == dict(enumerate(kinds))
    assert sorted(line[0] for line in lines) == sorted(tasks)
    failure = next(e for e in events if e.kind == FAILED and e.index == 1)
    assert failure.error.strip().endswith("ValueError: no good")
    assert "Traceback" in failure.error
    assert [e.steps for e in events if e.kind == PROGRESS] == [1] * len(tasks)


def test_a_worker_that_dies_is_replaced_and_fails_only_its_task(tmp_path):
    tasks = ["die", "ok", "die", "ok", "ok"]
    events, lines = launch(LocalLauncher(workers=1), tmp_path, tasks)
    assert ends(events) == {0: FAILED, 1: DONE, 2: FAILED, 3: DONE, 4: DONE}
    assert "signal 9 (SIGKILL)" in next(e.error for e in events if e.kind == FAILED)
    assert [line[0] for line in lines] == tasks
    assert len({line[1] for line in lines}) == 3


def test_workers_persist_and_share_the_cores(tmp_path, monkeypatch):
    monkeypatch.setattr("domainbed.launchers.local.usable_cores", lambda: 6)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    _, lines = launch(LocalLauncher(workers=2), tmp_path, ["ok"] * 12)
    assert len({line[1] for line in lines}) <= 2
    assert {line[2] for line in lines} == {"3"}
    assert "OMP_NUM_THREADS" not in os.environ


def test_an_interrupt_ends_the_workers_at_once(tmp_path):
    def on_event(event):
        if event.kind == PROGRESS:
            raise KeyboardInterrupt

    before = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        LocalLauncher(workers=2).submit(
            FakeJob(str(tmp_path / "log")), ["sleep"] * 3, CPU, tmp_path
        ).wait(on_event)
    assert time.monotonic() - before < 20
    for line in (tmp_path / "log").read_text().splitlines():
        with pytest.raises(ProcessLookupError):
            os.kill(int(line.split()[1]), 0)


def test_parallelism_is_never_more_than_the_tasks():
    assert LocalLauncher(workers=8).parallelism(3, CPU) == 3
    assert LocalLauncher().parallelism(1000, CPU) == usable_cores()
    assert DebugLauncher().parallelism(5, CPU) == 1
    assert LocalLauncher(workers=8).parallelism(0, CPU) == 0


def test_one_worker_per_visible_gpu(monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7")
    assert visible_gpus(None) == ["5", "7"]
    assert LocalLauncher().parallelism(10, CUDA) == 2
    assert LocalLauncher(workers=3).parallelism(10, CUDA) == 3
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert visible_gpus("cuda") == ["0", "1"]
    assert visible_gpus("cuda:1") == []
    assert visible_gpus("cpu") == []


def test_workers_are_pinned_to_gpus_in_turn(monkeypatch):
    places = []

    class Pool:
        def __init__(self, job, tasks, given):
            places.extend(given)

    monkeypatch.setattr("domainbed.launchers.local._Pool", Pool)
    monkeypatch.setattr("domainbed.launchers.local.visible_gpus", lambda device: ["5", "7"])
    LocalLauncher(workers=3).submit(None, ["a", "b", "c", "d"], CUDA, Path())
    assert [place["CUDA_VISIBLE_DEVICES"] for place in places] == ["5", "7", "5"]


def test_unknown_options_are_reported_together_with_the_valid_ones():
    with pytest.raises(UserError, match=r"no option 'cores', 'gpus'\. Known: workers"):
        create_launcher("local", {"cores": 1, "gpus": 2})
    with pytest.raises(UserError, match="Did you mean 'local'"):
        create_launcher("locale", {})


@pytest.mark.parametrize("workers", [0, -1, "two", 1.5, True])
def test_the_number_of_workers_is_checked(workers):
    with pytest.raises(UserError, match=f"workers is {workers!r}: expected a whole number"):
        create_launcher("local", {"workers": workers})


LAUNCH = """
import ctypes, os, sys
from pathlib import Path
from domainbed.launchers import LocalLauncher, Resources

def job(task, on_step):
    with open(task, "w") as file:
        file.write(str(os.getpid()))
    ctypes.PyDLL(None).sleep(120)  # native code that holds the interpreter's lock

if __name__ == "__main__":
    launcher, cpu = LocalLauncher(workers=1), Resources(device="cpu")
    launcher.submit(job, [sys.argv[1]], cpu, Path()).wait(print)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's prctl")
def test_a_worker_in_native_code_ends_with_its_parent(tmp_path):
    (tmp_path / "program.py").write_text(LAUNCH)
    file = tmp_path / "pid"
    parent = subprocess.Popen(
        [sys.executable, str(tmp_path / "program.py"), str(file)],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        stdout=subprocess.DEVNULL,
    )
    wait_until(lambda: file.exists() and file.read_text())
    worker = int(file.read_text())
    time.sleep(0.5)  # it is in native code now
    parent.kill()
    parent.wait()
    try:
        wait_until(lambda: not is_alive(worker), 10)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(worker, signal.SIGKILL)


def wait_until(holds, seconds=60):
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


def is_alive(pid):
    """Whether there is such a process, other than as a zombie that nobody waits for."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
