"""The launcher for SLURM, on a real cluster of one node, with jobs that train nothing."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
import slurm_cluster
from jobs import WordJob
from slurm_cluster import ask, start, until, until_queued_again
from submission import CPU, Submission, in_hand

from domainbed.errors import UserError
from domainbed.launchers import Event, Resources, SlurmLauncher, create_launcher
from domainbed.launchers import slurm as engine
from domainbed.launchers.event_files import EventReader
from domainbed.runs.ownership import ENGINE_VARIABLE, JOB_VARIABLE
from domainbed.runs.states import (
    BUSY,
    DONE,
    FAILED,
    INTERRUPTED,
    PROGRESS,
    STARTED,
)


def test_several_tasks_are_done_in_one_job(slurm, tmp_path):
    tasks = ["ok", "fail", "exit", "busy", "die once", "die"]
    submitted = Submission(tmp_path, tasks, SlurmLauncher(tasks_per_job=4))
    jobs = submitted.handle.jobs
    first, last = jobs[0], jobs[4]
    assert jobs == [first] * 4 + [last] * 2
    assert (first.partition("_")[2], last.partition("_")[2]) == ("0", "1")
    assert set(submitted.launcher.ask([*jobs, "", "no job", "4711_2"])) == {first, last}
    submitted.wait()
    kinds = [DONE, FAILED, FAILED, BUSY, DONE, FAILED]
    assert submitted.ends() == dict(enumerate(kinds))
    failure = next(e for e in submitted.events if e.kind == FAILED and e.index == 1)
    assert failure.error.strip().endswith("ValueError: no good")
    assert submitted.job.failures() == [  # those of the other two could tell it themselves
        "die: 2 workers died at it, the last with signal 9 (SIGKILL): out of memory?"
    ]
    noted = {line[0]: [line[2], *line[4:]] for line in submitted.job.lines()}
    assert noted["fail"] == ["1", "slurm", first]
    assert noted["die once"] == ["1", "slurm", last]
    other, *_, log = submitted.handle.logs
    assert "a worker died with signal 9 (SIGKILL)" in log.read_text()
    assert other != log


def test_workers_of_a_job_share_its_cores_and_gpus(slurm, tmp_path):
    shares = Resources(cores=1, gpus=0.5)
    submitted = Submission(
        tmp_path, ["ok"] * 3, SlurmLauncher(tasks_per_job=3, workers_per_job=2), shares
    ).wait()
    assert submitted.ends() == dict.fromkeys(range(3), DONE)
    assert 1 <= len(submitted.job.pids()) <= 2
    assert {tuple(line[2:4]) for line in submitted.job.lines()} == {("1", "0")}  # threads, GPU
    [log] = set(submitted.handle.logs)
    assert ask("squeue", "--states=all", "-h", "-o", "%C", "-j", submitted.handle.jobs[0]) == ["2"]
    assert log.exists()


def test_a_job_that_is_cancelled_from_outside_is_interrupted(slurm, tmp_path):
    submitted = Submission(tmp_path, ["wait", "ok"], SlurmLauncher(tasks_per_job=2))
    [job] = set(submitted.handle.jobs)
    submitted.wait(STARTED, lambda: ask("scancel", job))
    assert submitted.ends() == {0: INTERRUPTED, 1: INTERRUPTED}
    assert submitted.job.begun() == ["wait"]
    assert submitted.in_hand() == set()
    submitted.cancel()  # nothing is left to cancel


def requeue(job):
    ask("scontrol", "requeue", job)


def preempt(job):
    everything = ("--cpus-per-task", str(slurm_cluster.CPUS), "--output", "/dev/null")
    ask("sbatch", "--partition", "urgent", *everything, "--wrap", "true")


@pytest.mark.parametrize("take_away", [requeue, pytest.param(preempt, marks=pytest.mark.slow)])
def test_a_job_that_is_requeued_goes_on_with_what_is_left(slurm, tmp_path, take_away):
    submitted = Submission(
        tmp_path, ["fail", "ok", "wait once", "ok"], SlurmLauncher(tasks_per_job=4)
    )
    [job] = set(submitted.handle.jobs)

    def disturb():
        until(lambda: "wait once" in submitted.job.begun())
        take_away(job)
        until_queued_again(job)
        start(job)

    submitted.wait(STARTED, disturb)
    assert submitted.ends() == {0: FAILED, 1: DONE, 2: DONE, 3: DONE}
    assert submitted.job.begun() == ["fail", "ok", "wait once", "wait once", "ok"]
    kinds = [event.kind for event in submitted.events]
    assert kinds.count(FAILED) == 1
    assert kinds.count(DONE) == 3


@pytest.mark.slow  # the shortest limit is a minute
def test_a_job_is_warned_before_its_time_limit_and_goes_on(slurm, tmp_path):
    submitted = Submission(tmp_path, ["wait once"], SlurmLauncher(), Resources(minutes=1, cores=1))
    [job] = submitted.handle.jobs

    def start_again():
        until_queued_again(job)
        start(job)

    submitted.wait(STARTED, start_again)
    assert submitted.ends() == {0: DONE}
    assert submitted.job.begun() == ["wait once", "wait once"]


def test_only_so_many_jobs_run_at_a_time_and_all_can_be_cancelled(slurm, tmp_path):
    submitted = Submission(tmp_path, ["wait"] * 3, SlurmLauncher(max_jobs=1))
    jobs = submitted.handle.jobs
    reasons = []

    def look():
        reasons.extend(ask("squeue", "-h", "-r", "-o", "%T-%r", "-j", jobs[0].partition("_")[0]))
        submitted.cancel()

    submitted.wait(STARTED, look)
    waiting = "PENDING-JobArrayTaskLimit"
    assert sorted(reasons) == [waiting, waiting, "RUNNING-None"]
    assert submitted.ends() == dict.fromkeys(range(3), INTERRUPTED)
    assert len(submitted.job.begun()) == 1
    assert submitted.in_hand() == set()
    assert submitted.launcher.parallelism(3, CPU) == 1


@pytest.mark.parametrize(
    ("options", "tasks", "words"),
    [
        (
            {"partition": "nope"},
            1,
            "invalid partition specified: nope; Batch job submission failed",
        ),
        ({"constraint": "fast"}, 1, "Batch job submission failed: Invalid feature specification"),
        ({"sbatch": {"reservation": "none"}}, 30, "Requested reservation is invalid"),
    ],
)
def test_a_refusal_says_what_slurm_said(slurm, tmp_path, capfd, options, tasks, words):
    with pytest.raises(UserError) as refusal:
        SlurmLauncher(**options).submit(print, [None] * tasks, CPU, tmp_path)
    assert str(refusal.value).startswith("SLURM refuses the jobs: ")
    assert words in str(refusal.value)
    assert "\n" not in str(refusal.value)
    assert list(tmp_path.iterdir()) == []
    assert capfd.readouterr() == ("", "")


def test_options_of_sbatch_pass_and_what_starts_python(slurm, tmp_path):
    """A container is what stands before its Python; modules are loaded by a line of `setup`."""
    container = tmp_path / "container"
    container.write_text('#!/bin/sh\necho "$1" > "$0.image"\nshift\nexec "$@"\n')
    container.chmod(0o755)
    (tmp_path / "modules.sh").write_text('module() { export LOADED="$2"; }\n')
    launcher = SlurmLauncher(
        sbatch={"mail_type": "FAIL", "--mail-user": "me@localhost", "exclusive": True,
                "comment": "it's ours", "gres": "gpu:1", "nice": False, "dependency": "singleton"},
        requeue=False,
        setup=[f". {tmp_path}/modules.sh", "module load cuda/12.4",
               f'echo "$LOADED" > {tmp_path}/loaded'],
        python=f"{container} image.sif {sys.executable}",
    )  # fmt: skip
    submitted = Submission(tmp_path / "of_jobs", ["ok"], launcher)
    [job] = submitted.handle.jobs
    shown = subprocess.run(
        ["scontrol", "show", "job", job], capture_output=True, text=True, check=True
    ).stdout
    for words in ("Requeue=0", "MailUser=me@localhost", "MailType=FAIL", "Comment=it's ours",
                  "OverSubscribe=NO", "TresPerNode=gres:gpu:1"):  # fmt: skip
        assert words in shown
    submitted.wait()
    assert submitted.ends() == {0: DONE}
    assert (tmp_path / "loaded").read_text() == "cuda/12.4\n"
    assert Path(f"{container}.image").read_text() == "image.sif\n"
    with pytest.raises(UserError, match=r"'time' of sbatch itself: give minutes"):
        create_launcher("slurm", {"sbatch": {"time": 3}})
    with pytest.raises(UserError, match="'job-name' of sbatch itself: it cannot be changed"):
        create_launcher("slurm", {"sbatch": {"job_name": "mine"}})


def test_more_jobs_than_an_array_may_have_are_several_arrays(slurm, tmp_path):
    """`max_jobs` holds for all of them; what is to be done after them waits for all."""
    count = slurm_cluster.MAX_ARRAY + 2
    launcher = SlurmLauncher(max_jobs=1)
    ask("scontrol", "update", "PartitionName=main", "State=DOWN")
    try:
        handle = launcher.submit(
            WordJob(str(tmp_path / "log")), ["ok"] * count, CPU, tmp_path / "launcher"
        )
        arrays = list(dict.fromkeys(job.partition("_")[0] for job in handle.jobs))
        assert len(set(handle.jobs)) == count
        assert len(arrays) == 2
        after = launcher.submit_after(
            handle.jobs, Path(tmp_path / "after").touch, CPU, tmp_path / "launcher"
        )
        waits = {job: ask("squeue", "-h", "-o", "%E", "-j", job) for job in (arrays[1], after)}
        assert arrays[0] in waits[arrays[1]][0]
        assert all(f"afterany:{array}_*" in waits[after][0] for array in arrays)
        launcher.cancel(handle.jobs)
    finally:
        ask("scontrol", "update", "PartitionName=main", "State=UP")
    until((tmp_path / "after").exists, 30)
    assert in_hand(launcher, handle.jobs) == set()


def test_too_much_memory_is_refused(slurm, tmp_path):
    with pytest.raises(UserError, match="Memory specification can not be satisfied"):
        SlurmLauncher().submit(print, [None], Resources(memory_gb=1e6), tmp_path)


def test_a_job_that_takes_no_step_is_not_queued_again_for_ever(monkeypatch):
    asked = []
    monkeypatch.setattr(engine, "_answer", lambda *command: asked.append(command))
    fruitless = [Event(STARTED, 0), Event(INTERRUPTED, 0), Event(STARTED, 1), Event(INTERRUPTED, 1)]
    engine._requeue("7_1", fruitless * 2)
    engine._requeue("7_1", [*fruitless * 2, Event(PROGRESS, 1, steps=1), *fruitless])
    assert asked == [("scontrol", "requeue", "7_1")] * 2
    with pytest.raises(UserError, match="too short to take a step in it: give more --minutes"):
        engine._requeue("7_1", fruitless * 3)


def test_the_tasks_of_a_job_that_is_not_queued_again_have_failed(monkeypatch, tmp_path):
    def refuse(name, told):
        raise UserError("the time limit is too short")

    def warn():
        until(lambda: job.begun())
        os.kill(os.getpid(), signal.SIGUSR2)

    job = WordJob(str(tmp_path / "log"))
    environment = SimpleNamespace(JobEnvironment=lambda: SimpleNamespace(job_id="7_1"))
    monkeypatch.setattr(engine, "_submitit", lambda: environment)
    monkeypatch.setattr(engine, "_requeue", refuse)
    for name in (ENGINE_VARIABLE, JOB_VARIABLE):
        monkeypatch.setenv(name, "")
    warning = threading.Thread(target=warn)
    warning.start()
    with pytest.raises(UserError, match="too short"):
        engine.do_batch(job, 1, CPU, True, tmp_path, [(3, "wait"), (5, "ok")])
    warning.join()
    assert job.failures() == [
        "wait: the time limit is too short",
        "ok: the time limit is too short",
    ]
    ends = [event for event in EventReader(tmp_path, ["7_1"]).read() if event.kind == FAILED]
    assert [event.index for event in ends] == [3, 5]


def test_without_slurm_the_launcher_says_where_to_use_it(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match=r"there is no `sinfo` here: use .* on a login node"):
        SlurmLauncher().submit(print, [None], CPU, tmp_path)
    with pytest.raises(UserError, match="there is no `squeue` here"):
        SlurmLauncher().ask(["12"])
    assert SlurmLauncher().ask([""]) == {}


def test_what_a_job_asks_for_follows_from_its_tasks():
    options = {"tasks_per_job": 10, "workers_per_job": 4, "max_jobs": 7}
    asked = {"cores": 3, "gpus": 0.25, "memory_gb": 1.5, "minutes": 2.5}
    launcher, resources = create_launcher("slurm", {**options, **asked, "qos": "low"})
    parameters = launcher._parameters(100, resources)
    assert parameters["cpus_per_task"] == 12
    assert parameters["gpus_per_node"] == 1
    assert parameters["mem"] == "6144M"
    assert parameters["time"] == 8  # three rounds of 2.5 minutes
    assert parameters["array_parallelism"] == 7
    assert parameters["qos"] == "low"
    assert parameters["additional_parameters"] == {"signal": "B:USR2@90", "requeue": True}
    assert launcher.parallelism(1000, resources) == 28
    assert launcher.parallelism(25, resources) == 12
    short = launcher._parameters(1, Resources(minutes=1))
    assert short["additional_parameters"]["signal"] == "B:USR2@45"
