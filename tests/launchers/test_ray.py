"""The launcher for Ray, on a real cluster of two nodes, with jobs that train nothing."""

import contextlib
import os
import socket
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path

import pytest
from jobs import WordJob
from submission import CPU, Submission
from waiting import wait_until

from domainbed.errors import UserError
from domainbed.launchers import RayLauncher, Resources, create_launcher
from domainbed.launchers import ray as engine
from domainbed.launchers.ray import NAMESPACE, connected, needs_of, places, task_options
from domainbed.runs.states import DONE, FAILED, INTERRUPTED, PENDING, RUNNING, STARTED

PATH = os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parents[2])])


def test_a_task_that_loses_its_worker_is_begun_again_but_not_for_ever(ray_nodes, tmp_path):
    tasks = ["die", "die once", "term once", "ok"]
    done = Submission(tmp_path, tasks, RayLauncher(address=ray_nodes.address)).wait()
    assert done.ends() == {0: FAILED, 1: DONE, 2: DONE, 3: DONE}
    assert sorted(done.job.begun()) == sorted(tasks[:3] * 2 + ["ok"])
    (error,) = [event.error for event in done.events if event.kind == FAILED]
    assert error.startswith("2 workers died at it: out of memory, or by a signal")
    assert {line[2] for line in done.job.lines()} == {"1"}  # threads: one core each
    assert done.job.failures() == [f"die: {error.strip()}"]


def test_what_loses_its_node_is_begun_elsewhere(ray_nodes, tmp_path):
    submitted = Submission(tmp_path, ["wait once"], RayLauncher(address=ray_nodes.address))

    def lose_node():
        wait_until(submitted.job.pids)
        ray_nodes.replace_node_of(*submitted.job.pids())

    submitted.wait(STARTED, lose_node)
    assert submitted.ends() == {0: DONE}
    assert submitted.job.begun() == ["wait once"] * 2
    assert len(submitted.job.pids()) == 2


def test_a_coordinator_that_is_lost_is_replaced_and_begins_what_has_not_ended(ray_nodes, tmp_path):
    tasks = ["ok", "fail", "wait once"]
    submitted = Submission(tmp_path, tasks, RayLauncher(address=ray_nodes.address))
    wait_until(lambda: "wait once" in submitted.job.begun())
    assert submitted.in_hand() >= {submitted.handle.jobs[2]}
    kill_coordinator(submitted.handle)
    assert submitted.in_hand() >= {submitted.handle.jobs[2]}  # it is away, and not for good
    submitted.wait()
    begun = submitted.job.begun()
    assert (submitted.ends()[0], submitted.ends()[1], submitted.ends()[2]) == (DONE, FAILED, DONE)
    assert (begun.count("ok"), begun.count("fail"), begun.count("wait once")) == (1, 1, 2)


def kill_coordinator(handle):
    """As when its node is lost: Ray starts it anew."""
    with connected(handle.jobs[0].partition("@")[2]) as ray:
        name = handle.jobs[0].rpartition("_")[0]
        ray.kill(ray.get_actor(name, namespace=NAMESPACE), no_restart=False)


def test_what_is_to_be_done_when_all_have_ended_is_done_once(ray_nodes, tmp_path):
    """By the coordinator, though nobody waits; by this process, if it comes too late."""
    launcher, after, later = RayLauncher(address=ray_nodes.address), tmp_path / "a", tmp_path / "b"
    submitted = Submission(tmp_path, ["slow", "fail"], launcher)
    jobs, folder = submitted.handle.jobs, tmp_path / ".launcher"
    assert launcher.submit_after(jobs, partial(os.mkdir, after), CPU, folder) == jobs[-1]
    assert not after.exists()
    wait_until(after.is_dir)
    assert sorted(submitted.job.begun()) == ["fail", "slow"]
    wait_until(lambda: not launcher.ask(jobs))
    launcher.submit_after(jobs, partial(os.mkdir, later), CPU, folder)
    assert later.is_dir()


def test_a_time_limit_fails_a_task_that_can_go_on(ray_nodes, tmp_path):
    limited = Resources(device="cpu", minutes=0.02)
    submitted = Submission(
        tmp_path, ["wait", "ok"], RayLauncher(address=ray_nodes.address), limited
    ).wait()
    assert submitted.ends() == {0: FAILED, 1: DONE}
    (error,) = [event.error for event in submitted.events if event.kind == FAILED]
    assert error == "it reached the time limit of 0.02 minutes, and can resume\n"
    assert submitted.job.failures() == [f"wait: {error.strip()}"]


SUBMIT = """
import sys
from pathlib import Path
from jobs import WordJob
from submission import CPU, Submission
from waiting import wait_until
from domainbed.launchers import RayLauncher, Resources

folder, address = sys.argv[1:]
launcher = RayLauncher(address=address or None)
job, tasks = WordJob(folder + "/log"), ["slow", "fail", "slow"]
handle = launcher.submit(job, tasks, Resources(device="cpu"), Path(folder, ".launcher"))
print(*handle.jobs)
if launcher.blocking:
    ends = {}
    handle.wait(lambda event: ends.update({event.index: event.kind}))
    print(*[ends[index] for index in range(3)])
"""


def submit_elsewhere(folder, address):
    """Submits tasks from a process of its own; returns what that printed."""
    done = subprocess.run(
        [sys.executable, "-c", SUBMIT, str(folder), address],
        env={**os.environ, "PYTHONPATH": PATH},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert done.stderr == ""  # Ray says nothing on the terminal
    return done.stdout.splitlines()


def test_tasks_outlive_the_process_that_submitted_them(ray_nodes, tmp_path):
    (line,) = submit_elsewhere(tmp_path, ray_nodes.address)
    jobs = line.split()
    launcher = RayLauncher()
    assert launcher.ask(jobs)
    wait_until(lambda: not launcher.ask(jobs))
    assert sorted(WordJob(str(tmp_path / "log")).begun()) == ["fail", "slow", "slow"]


def test_a_cluster_of_its_own_ends_with_the_launch(tmp_path, monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    jobs, states = submit_elsewhere(tmp_path, "")
    host, _, pid = jobs.split()[0].rpartition(":")
    assert states.split() == [DONE, FAILED, DONE]
    job = WordJob(str(tmp_path / "log"))
    assert {(line[-2], line[-1]) for line in job.lines()} == {("ray", f"{host}:{pid}")}
    for process in job.pids():
        wait_until(lambda process=process: not Path(f"/proc/{process}").exists())


def test_what_a_task_prints_is_in_its_log(ray_nodes, tmp_path):
    submitted = Submission(tmp_path, ["print", "ok"], RayLauncher(address=ray_nodes.address)).wait()
    assert submitted.ends() == {0: DONE, 1: DONE}
    logs = [file.read_text() for file in submitted.handle.logs]
    assert logs == ["from Python\nfrom below\n", ""]


def test_a_cluster_that_cannot_be_reached_is_one_line(tmp_path):
    with pytest.raises(UserError) as refusal:
        RayLauncher(address="localhost:1").submit(print, [1], CPU, tmp_path)
    assert str(refusal.value) == (
        "the Ray cluster at 'localhost:1' cannot be reached ([Errno 111] Connection refused): "
        "start it with `ray start --head`, which says its address, and give that as --address "
        "HOST:PORT"
    )
    for address in ("nowhere", "ray.invalid:6379", "localhost:99999"):
        with pytest.raises(UserError, match=f"{address}' cannot be reached"):
            RayLauncher(address=address).parallelism(1, CPU)


@pytest.mark.parametrize(
    ("answer", "said"),
    [(b"HTTP/1.0 400 Bad request\r\n", "what answers there is not Ray"), (b"", "timed out")],
)
def test_what_is_no_ray_is_not_waited_for(answer, said, monkeypatch, capfd):
    """Something else at the port, and a controller that stands still: Ray would try for minutes."""
    monkeypatch.setattr(engine, "_SECONDS_TO_CONNECT", 0.3)
    server = socket.create_server(("", 0))  # Ray takes 127.0.0.1 for this machine's own address
    address = f"127.0.0.1:{server.getsockname()[1]}"

    def serve():
        with contextlib.suppress(OSError):
            accepted.append(server.accept()[0])
            accepted[0].sendall(answer)

    accepted = []
    serving = threading.Thread(target=serve)
    serving.start()
    with pytest.raises(UserError, match=f"'{address}' cannot be reached .*{said}"):
        RayLauncher(address=address).parallelism(1, CPU)
    serving.join()
    for each in [server, *accepted]:
        each.close()
    assert capfd.readouterr() == ("", "")


def test_why_a_task_waits_is_what_it_asks_for_and_what_there_is(ray_nodes, tmp_path, caplog):
    launcher = RayLauncher(address=ray_nodes.address)
    large = Submission(tmp_path / "large", ["ok"], launcher, Resources(device="cpu", cores=64))
    why = "asks for 64 CPU, and the nodes have at most 1 CPU"
    assert caplog.text.count(f"warning: a run {why}: runs wait until one joins") == 1
    small = Submission(tmp_path / "small", ["wait"] * 3, launcher)
    wait_until(lambda: len(small.job.begun()) == 2)

    def reports():
        said = launcher.ask([*large.handle.jobs, *small.handle.jobs])
        return sorted((each.state, each.why, each.stuck) for each in said.values())

    expected = [
        (PENDING, "asks for 1 CPU; free are 0 of 2 CPU", False),
        (PENDING, why, True),
        *[(RUNNING, "", False)] * 2,
    ]
    wait_until(lambda: reports() == expected)
    for submitted in (large, small):
        submitted.cancel()
        submitted.wait()


@pytest.mark.slow  # it starts two clusters
def test_arguments_of_ray_init_reach_the_cluster_and_its_tasks(tmp_path, monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    init = {"resources": {"licence": 1}, "runtime_env": {"env_vars": {"OMP_NUM_THREADS": "3"}}}
    launcher, _ = create_launcher("ray", {"init": init})
    submitted = Submission(tmp_path, ["ok"], launcher).wait()
    assert submitted.ends() == {0: DONE}
    assert [line[2] for line in submitted.job.lines()] == ["3"]
    too_large = Submission(tmp_path, ["ok"], launcher, Resources(device="cpu", cores=4711))
    with pytest.raises(UserError, match="a run asks for 4711 CPU, and the nodes have at most"):
        too_large.wait()


def test_jobs_of_a_cluster_that_is_gone_are_unknown_and_said_so(caplog):
    assert RayLauncher().ask(["ray-0123456789ab_7@localhost:1"]) == {}
    assert "cannot be reached" in caplog.text
    with pytest.raises(UserError, match="cannot be reached"):
        RayLauncher().cancel(["ray-0123456789ab_7@localhost:1"])


def test_without_ray_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r"needs Ray \(.*pip install ray"):
        RayLauncher(address="localhost:1").submit(print, [1], CPU, tmp_path)


def test_ray_address_names_the_cluster(monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert RayLauncher().blocking
    assert not RayLauncher(address="auto").blocking
    monkeypatch.setenv("RAY_ADDRESS", "localhost:1")
    assert not RayLauncher().blocking
    with pytest.raises(UserError, match="'localhost:1' cannot be reached"):
        RayLauncher().parallelism(1, CPU)


NODES = [{"CPU": 0.0}, {"CPU": 8.0, "memory": 16e9}, {"CPU": 4.0, "GPU": 2.0, "memory": 64e9}]


@pytest.mark.parametrize(
    ("resources", "count"),
    [
        ({"device": "cpu"}, 12),
        ({}, 2),  # a GPU each, where the cluster has GPUs
        ({"gpus": 0.5}, 4),
        ({"gpus": 0.25}, 4),  # by then, cores are short
        ({"gpus": 0, "cores": 3}, 3),
        ({"gpus": 0, "memory_gb": 8}, 6),
        ({"gpus": 3}, 0),
    ],
)
def test_as_many_tasks_at_a_time_as_the_nodes_have_room_for(resources, count):
    assert places(NODES, needs_of(NODES, Resources(**resources))) == count


def test_ray_is_asked_for_the_resources_of_a_task():
    options = task_options(needs_of(NODES, Resources(cores=2, gpus=0.25, memory_gb=1.5)))
    asked = {name: options[name] for name in ("num_cpus", "num_gpus", "memory")}
    assert asked == {"num_cpus": 2, "num_gpus": 0.25, "memory": 1_500_000_000}
    assert options["runtime_env"]["env_vars"]["OMP_NUM_THREADS"] == "2"
    assert task_options(needs_of(NODES, CPU))["num_gpus"] == 0
    with pytest.raises(UserError, match=r"gpus is 1\.5: expected a share of one GPU, or a whole"):
        needs_of(NODES, Resources(gpus=1.5))
    launcher, resources = create_launcher("ray", {"address": "auto", "gpus": 0.5, "minutes": 5.0})
    assert (launcher.address, resources.gpus, resources.minutes) == ("auto", 0.5, 5)


def test_runs_share_a_gpu_of_the_cluster(ray_nodes, tmp_path):
    """The GPU is one that a node claims to have: Ray shares it out all the same."""
    node = ray_nodes.add_node(num_cpus=4, num_gpus=1)
    try:
        resources = Resources(gpus=0.5)
        submitted = Submission(
            tmp_path, ["wait"] * 3, RayLauncher(address=ray_nodes.address), resources
        )
        wait_until(lambda: len(submitted.job.begun()) == 2)
        time.sleep(1)
        assert [line[3] for line in submitted.job.lines()] == ["0", "0"]
        submitted.cancel()
        submitted.wait()
        assert submitted.ends() == dict.fromkeys(range(3), INTERRUPTED)
    finally:
        ray_nodes.kill_node(node)
