"""A SLURM cluster of one node on this machine, for tests: its own daemons in a private folder."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

HELD_BY = "TEST_HELD_BY"
"""The environment variable with a folder: a file there holds the job of its name in the array, in
whose runs the algorithms of `held_algorithms` take long."""

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "setpriv")
CPUS = 2

# What keeps tests waiting is short: looks at the queue, grace before SIGKILL, a cleared-up job.
_CONFIG = """
ClusterName=test
SlurmctldHost=localhost
SlurmctldPort={controller_port}
SlurmdPort={node_port}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SwitchType=switch/none
ReturnToService=2
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=1,bf_interval=1,sched_min_interval=10000,batch_sched_delay=0
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
MinJobAge=30
KillWait=10
MaxArraySize={max_array}
SlurmdParameters=config_overrides
GresTypes=gpu
NodeName=localhost NodeAddr=127.0.0.1 CPUs={cpus} Gres=gpu:1 State=UNKNOWN
PartitionName=main Nodes=localhost Default=YES MaxTime=INFINITE State=UP PriorityTier=1
PartitionName=urgent Nodes=localhost MaxTime=INFINITE State=UP PriorityTier=2
"""

MAX_ARRAY = 21


def missing() -> str:
    """Why there can be no cluster here; "" where there can."""
    lacking = [program for program in PROGRAMS if not shutil.which(program, path=_path())]
    if lacking:
        return f"{', '.join(lacking)} not installed (Debian: slurmctld slurmd slurm-client munge)"
    return "" if os.getuid() == 0 else "the daemons of SLURM need root"


@contextmanager
def slurm_cluster():
    """Starts the daemons; yields the environment variables with which SLURM's commands find them.

    They end with this process, however it ends.
    """
    folder = Path(tempfile.mkdtemp(prefix="slurm-"))  # short: a socket's path has 107 bytes
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        (folder / "state").mkdir()
        (folder / "spool").mkdir()
        key = folder / "munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o600)
        config = folder / "slurm.conf"
        controller_port, node_port = _free_ports(2)
        config.write_text(
            _CONFIG.format(
                folder=folder,
                controller_port=controller_port,
                node_port=node_port,
                cpus=CPUS,
                max_array=MAX_ARRAY,
            )
        )
        # Not one to compute on: jobs are told that it is theirs, as of a real one.
        (folder / "gres.conf").write_text("Name=gpu File=/dev/null\n")
        environment = {"SLURM_CONF": str(config), "PATH": _path()}
        files = [f"--{name}-file={folder}/munged.{name}" for name in ("log", "pid", "seed")]
        socket_file = folder / "munge.socket"
        for command in (
            ["munged", "-F", "-f", f"--socket={socket_file}", f"--key-file={key}", *files],
            ["slurmctld", "-D", "-i"],
            ["slurmd", "-D", "-N", "localhost"],
        ):
            stack.enter_context(_daemon(command, folder, environment))
            if command[0] == "munged":
                _wait_until(socket_file.exists, folder)
        _wait_until(lambda: _answer("sinfo", "-h", "-o", "%T", **environment) == "idle", folder)
        yield environment
        _answer("scancel", "--user=root", **environment)
        with suppress(RuntimeError):  # none outlives its cluster
            _wait_until(lambda: not _answer("squeue", "-h", **environment), folder)


def ask(*command):
    """The words that a command of SLURM prints."""
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return done.stdout.split()


def until_queued_again(job, seconds=240):
    """Awaits that a job was requeued and has left its node."""
    state = ("squeue", "-h", "-r", "-o", "%T-%r", "-j", job)
    until(lambda: ask(*state) == ["PENDING-BeginTime"], seconds)


def start(job):
    """Starts a job that was requeued, with all its time: SLURM would wait for two minutes.

    A job whose end was brought forward keeps the short limit, and would be warned at once again.
    """
    time.sleep(1.5)  # SLURM revokes what starts in the second in which the job was cancelled
    ask("scontrol", "update", f"JobId={job}", "StartTime=now", "TimeLimit=60")


def until(holds, seconds=240):
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.1)


@contextmanager
def _daemon(command, folder, environment):
    with (folder / f"{command[0]}.out").open("w") as log:
        process = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", *command],
            env={**os.environ, **environment},
            stdout=log,
            stderr=log,
        )
    try:
        yield
    finally:
        process.terminate()
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _answer(*command, **environment):
    done = subprocess.run(
        command, env={**os.environ, **environment}, capture_output=True, text=True, check=False
    )
    return done.stdout.strip()


def _wait_until(holds, folder, seconds=30):
    end = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > end:
            logs = "\n".join(f.read_text(errors="replace")[-2000:] for f in folder.glob("*.[lo]*"))
            raise RuntimeError(f"the cluster did not start, or end its jobs:\n{logs}")
        time.sleep(0.1)


def _free_ports(count):
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def _path():
    """Debian's daemons lie where only root's shell looks."""
    return os.environ["PATH"] + ":/usr/sbin:/sbin"


if __name__ == "__main__":  # for trying things out: `python slurm_cluster.py bash`
    with slurm_cluster() as environment:
        sys.exit(subprocess.call(sys.argv[1:], env={**os.environ, **environment}))
