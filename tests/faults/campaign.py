"""Kills sweeps at random times, and compares what they end with to sweeps that nobody disturbed.

Every algorithm and every option that keeps state, with each launcher that works elsewhere: workers,
launchers and whole groups get SIGKILL, SIGTERM or SIGINT, and the sweep is launched again. At the
end each run must be done, each record be there once, and records and weights be those of the
undisturbed sweep, bit for bit but for timings. Sweeps pack their finished runs, and so do further
processes, some of which are killed, and some write to scratch; the undisturbed ones do not. The
last line counts.

    python tests/faults/campaign.py --kills 108
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "launchers"))
import ray_cluster
import slurm_cluster

from domainbed.algorithms import ALGORITHMS
from domainbed.runs.folder import RunFolder
from domainbed.runs.packed import text_of
from domainbed.runs.states import DONE, FAILED, RUNNING
from domainbed.sweeps.store import Store

Client = subprocess.Popen[bytes]
HERE = Path(__file__).parent
CONFIGS = {"algorithms": 0.5, "averages": 0.25, "adaptation": 0.25}
"""The sweeps, and their shares of the kills."""
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
TIMINGS = ("step_time", "mem_gb")
SECONDS_A_SWEEP = 1500.0


@dataclass
class Outcome:
    """What is counted."""

    runs: int = 0
    kills: Counter[str] = field(default_factory=Counter)
    lost: list[str] = field(default_factory=list)
    doubled: list[str] = field(default_factory=list)
    differing: list[str] = field(default_factory=list)

    def line(self) -> str:
        kinds = ", ".join(f"{n} {what}" for what, n in sorted(self.kills.items()))
        return (
            f"fault campaign: {self.runs} runs, {self.kills.total()} kills ({kinds}), "
            f"{len(self.lost)} lost, {len(self.doubled)} doubled, {len(self.differing)} differing"
        )


class Local:
    """Worker processes of the launching one."""

    flags = ("--launcher", "local", "--workers", "2")

    def kill_group(self, client: Client, workers: list[int], how: signal.Signals) -> str:
        os.killpg(client.pid, how)
        return f"group {how.name}"


class Slurm:
    """Jobs of a one-node cluster; a group is a job, which is cancelled or requeued."""

    flags = ("--launcher", "slurm", "--tasks_per_job", "5", "--wait")

    def kill_group(self, client: Client, workers: list[int], how: signal.Signals) -> str:
        jobs = slurm_cluster.ask("squeue", "-h", "-r", "-t", "R", "-o", "%i")
        if not jobs:
            raise ProcessLookupError
        job = random.choice(jobs)
        if how == signal.SIGTERM:
            slurm_cluster.ask("scontrol", "requeue", job)
            with suppress(AssertionError):
                slurm_cluster.until_queued_again(job, 30)
                slurm_cluster.start(job)
            return "requeued job"
        slurm_cluster.ask("scancel", "--full", "--signal", "KILL", job)
        return "killed job"


class Ray:
    """Tasks of a cluster of two nodes; a group is a node."""

    def __init__(self, cluster: ray_cluster.RayCluster) -> None:
        self.cluster = cluster
        self.flags = ("--launcher", "ray", "--address", cluster.address, "--wait")

    def kill_group(self, client: Client, workers: list[int], how: signal.Signals) -> str:
        if not workers:
            raise ProcessLookupError
        self.cluster.replace_node_of(random.choice(workers))
        return "node"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--engines", nargs="+", default=["local", "slurm", "ray"])
    parser.add_argument("--configs", nargs="+", default=list(CONFIGS), choices=list(CONFIGS))
    parser.add_argument("--kills", type=int, default=108, help="in all")
    parser.add_argument("--seed", type=int, default=None, help="of the times and the victims")
    parser.add_argument("--folder", type=Path, help="for the sweeps (default: a temporary one)")
    args = parser.parse_args()
    seed = random.randrange(10**6) if args.seed is None else args.seed
    random.seed(seed)
    os.environ |= {"DOMAINBED_HEARTBEAT_SECONDS": "0.5", "DOMAINBED_SILENCE_SECONDS": "5"}
    os.environ["DOMAINBED_CHECKPOINT_SECONDS"] = "1e-9"  # runs are short, and are to be resumed
    outcome = Outcome()
    with ExitStack() as stack:
        root = args.folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        print(f"seed {seed}, in {root}", flush=True)
        engines = {name: _engine(name, stack) for name in args.engines}
        for config in args.configs:
            calm = root / f"{config}-undisturbed"
            with _launched(config, calm, Local.flags) as client:
                client.wait()
            for name, engine in engines.items():
                kills = round(args.kills * CONFIGS[config] / len(engines))
                folder = root / f"{config}-{name}"
                began = time.monotonic()
                _disturb(config, folder, engine, kills, outcome.kills)
                _compare(calm, folder, outcome)
                seconds = time.monotonic() - began
                print(f"{config}, {name}: {seconds:.0f} s. {outcome.line()}", flush=True)
    for what in ("lost", "doubled", "differing"):
        for run in getattr(outcome, what):
            print(f"{what}: {run}")
    print(outcome.line())
    return 1 if outcome.lost or outcome.doubled or outcome.differing else 0


def _engine(name: str, stack: ExitStack) -> Local | Slurm | Ray:
    if name == "slurm":
        os.environ |= stack.enter_context(slurm_cluster.slurm_cluster())
        return Slurm()
    if name == "ray":
        return Ray(stack.enter_context(ray_cluster.ray_cluster()))
    return Local()


@contextmanager
def _launched(config: str, folder: Path, flags: tuple[str, ...]) -> Iterator[Client]:
    """The launching process, the first of a session of its own, which ends with the block."""
    retry = folder.is_dir() and FAILED in _states(folder).values()
    command = [sys.executable, "-m", "domainbed", "sweep", "retry" if retry else "launch"]
    command += [str(HERE / f"{config}.yaml"), "--output_dir", str(folder), "--cores", "1", *flags]
    command += ["--skip_confirmation"]
    disturbed = not folder.name.endswith("-undisturbed")
    command += ["--pack"] if disturbed else []
    if disturbed and config == "averages":  # of all, runs of this sweep leave the most files
        command += ["--scratch", str(folder.parent)]
    if config == "algorithms":
        trained = [name for name in ALGORITHMS if not ALGORITHMS[name].needs_features]
        command += ["--algorithms", *(name for name in trained if name != "T3A")]
    with (folder.parent / f"{folder.name}.log").open("ab") as log:
        client = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
    try:
        yield client
    finally:
        if client.poll() is None:
            os.killpg(client.pid, signal.SIGKILL)
        client.wait()


def _disturb(
    config: str, folder: Path, engine: Local | Slurm | Ray, kills: int, counts: Counter[str]
) -> None:
    """Launches a sweep until all its runs are done, and kills `kills` times meanwhile.

    On a cluster runs go on without their launcher, and are killed without it, too.
    """
    end = time.monotonic() + SECONDS_A_SWEEP
    while time.monotonic() < end:
        with _launched(config, folder, engine.flags) as client:
            while time.monotonic() < end and (client.poll() is None or _workers(folder)):
                time.sleep(random.uniform(0.2, 2.5))
                if random.random() < 0.3:
                    counts["packer SIGKILL"] += _packed_and_killed(folder)
                workers = _workers(folder)
                if kills > 0 and workers:
                    with suppress(ProcessLookupError, subprocess.CalledProcessError, KeyError):
                        counts[_kill(client, workers, engine)] += 1
                        kills -= 1
        states = _states(folder)
        if states and set(states.values()) == {DONE}:
            return
    print(f"{folder}: not done after {SECONDS_A_SWEEP:.0f} s: {Counter(_states(folder).values())}")


def _packed_and_killed(folder: Path) -> bool:
    """Packs what is finished in another process; whether that was killed before it was ready."""
    ready = "import sys, pathlib, domainbed.runs.packing as p; print(flush=True)"
    work = f"{ready}; p.pack(pathlib.Path(sys.argv[1]))"
    command = [sys.executable, "-c", work, str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as packer:
        assert packer.stdout is not None
        packer.stdout.readline()
        with suppress(subprocess.TimeoutExpired):
            packer.wait(random.choice((0.0, 0.005, 0.02, 0.1, 60.0)))
        packer.kill()
        return packer.wait() == -signal.SIGKILL


def _kill(client: Client, workers: list[int], engine: Local | Slurm | Ray) -> str:
    """Kills somebody; returns what it was, for the count.

    Raises:
        ProcessLookupError: it was gone already.
    """
    how = random.choice(SIGNALS)
    there = ("worker", "launcher", "group") if client.poll() is None else ("worker", "group")
    whom = random.choice(there)
    if whom == "group":
        return engine.kill_group(client, workers, how)
    if whom == "worker" and how == signal.SIGINT:
        how = signal.SIGTERM  # workers leave Ctrl-C to their launcher
    os.kill(random.choice(workers) if whom == "worker" else client.pid, how)
    return f"{whom} {how.name}"


def _states(folder: Path) -> dict[str, str]:
    store = Store(folder)
    return dict(store.states(store.planned())) if store.plan.is_file() else {}


def _workers(folder: Path) -> list[int]:
    """The processes that are at work on a run."""
    if not folder.is_dir():
        return []
    found = [RunFolder(path).status() for path in folder.iterdir() if path.is_dir()]
    return [status.pid for status in found if status.state == RUNNING and status.pid]


def _compare(calm: Path, disturbed: Path, outcome: Outcome) -> None:
    """Counts what differs between two folders of the same sweep."""
    planned = Store(calm).planned()
    states = _states(disturbed)
    for run_id, state in _states(calm).items():
        run, name = RunFolder(disturbed / run_id), f"{disturbed.name}/{run_id}"
        assert state == DONE, f"{calm.name}/{run_id} is {state}"
        outcome.runs += 1
        if states.get(run_id) != DONE:
            outcome.lost.append(f"{name} ({planned[run_id]['algorithm']}): {states.get(run_id)}")
            continue
        expected, found = _records(RunFolder(calm / run_id)), _records(run)
        places = [(record.get("stage"), record["step"]) for record in found]
        if len(set(places)) < len(places):
            outcome.doubled.append(f"{name}: records of {places}")
        elif expected != found or not _same_files(calm / run_id, run.path):
            outcome.differing.append(f"{name} ({planned[run_id]['algorithm']})")


def _records(folder: RunFolder) -> list[dict]:
    lines = (text_of(folder.path, folder.results.name) or b"").decode().splitlines()
    records = [json.loads(line) for line in lines]
    for record in records:
        record["args"].pop("output_dir")
        for name in TIMINGS:
            record.pop(name, None)
    return records


def _same_files(left: Path, right: Path) -> bool:
    """Whether both folders have the same weights and predictions."""
    kept = [
        {path.name for path in folder.glob("*") if path.suffix in (".pkl", ".parquet")}
        for folder in (left, right)
    ]
    return kept[0] == kept[1] and all(_same(left / name, right / name) for name in kept[0])


def _same(left: Path, right: Path) -> bool:
    if left.suffix == ".parquet":
        return left.read_bytes() == right.read_bytes()
    one, other = (torch.load(file, weights_only=True)["model_dict"] for file in (left, right))
    return list(one) == list(other) and all(torch.equal(one[name], other[name]) for name in one)


if __name__ == "__main__":
    sys.exit(main())
