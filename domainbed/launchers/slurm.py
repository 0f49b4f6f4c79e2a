"""The launcher for SLURM clusters: job arrays through submitit, with one or several tasks a job.

A job executes its tasks in worker processes, as the launcher local does. SLURM warns a job some
time before its time limit (SIGUSR2), and ends or preempts it with SIGTERM: on either, the tasks
write what they can resume from. A job that was warned requeues itself; a preempted one is requeued
by SLURM.
"""

import math
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import redirect_stderr
from dataclasses import replace
from functools import partial
from io import StringIO
from pathlib import Path
from types import FrameType
from typing import Annotated, Any, ClassVar

from pydantic import Field

from domainbed.core.settings import Items, Text, checked
from domainbed.core.stopping import handled
from domainbed.errors import UserError
from domainbed.launchers.base import (
    LAUNCHERS,
    Event,
    Handle,
    Job,
    JobReport,
    Launcher,
    Resources,
    failed,
)
from domainbed.launchers.event_files import EventReader, EventWriter
from domainbed.launchers.local import LocalLauncher
from domainbed.runs.ownership import ENGINE_VARIABLE, JOB_VARIABLE
from domainbed.runs.states import BUSY, DONE, FAILED, INTERRUPTED, PENDING, PROGRESS, RUNNING

# The states of SLURM's jobs that are neither queued nor running, nor will be.
_ENDED = (
    *("BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL"),
    *("OUT_OF_MEMORY", "PREEMPTED", "REVOKED", "TIMEOUT"),
)
# Of these, those of a job that another time would come to the same end.
_BY_ITSELF = ("BOOT_FAIL", "FAILED", "OUT_OF_MEMORY")
# Of the reasons for which SLURM lets a job wait: until somebody changes the job, or the cluster.
_STUCK = re.compile(
    r"PartitionConfig|Partition(Down|Inactive|NodeLimit|TimeLimit)|BadConstraints"
    r"|DependencyNeverSatisfied|ReservationDeleted|JobHeld.*|JobHoldMaxRequeue|.*requeued.held"
    r"|Invalid(Account|QOS)|(Account|QOS)NotAllowed|.*Per(Job|Node)(Limit)?|.*MinutesLimit"
)
_NAME = "domainbed"  # of its jobs: others that a folder names are not asked for, nor cancelled
_JOB = re.compile(r"\d+(_\d+)?")  # a job of an array: 12_3
_SECONDS_OF_WARNING = 90
_MOST_FRUITLESS_TRIES = 3
_MOST_JOBS_A_COMMAND = 500
_SECONDS_TO_ANSWER = 30.0  # of a command; without the controller some try for ever
_COMPLETING = "COMPLETING"  # of a job that leaves its node: to end, or to be queued again
_MAX_ARRAY = re.compile(r"MaxArraySize\s*=\s*(\d+)")
# Options of sbatch that the launcher sets, and what to give in their place.
_OF_THE_LAUNCHER = {
    **{"array": "give max_jobs", "cpus-per-task": "give cores", "gpus-per-node": "give gpus"},
    **{"mem": "give memory_gb", "time": "give minutes"},
    **dict.fromkeys(("requeue", "no-requeue"), "give the launcher's requeue"),
    **dict.fromkeys(("partition", "account", "qos", "constraint"), "give the launcher's own"),
    **dict.fromkeys(
        ("error", "job-name", "open-mode", "output", "signal", "wckey"), "it cannot be changed"
    ),
}


def _sbatch(options: dict[str, Any]) -> dict[str, Any]:
    """By the names that sbatch has for them; those that are false are left out."""
    named = {name.strip("-").replace("_", "-"): value for name, value in options.items()}
    for name in named.keys() & _OF_THE_LAUNCHER:
        raise UserError(
            f"the launcher sets {name!r} of sbatch itself: {_OF_THE_LAUNCHER[name]}", name
        )
    return {name: value for name, value in named.items() if value not in (None, False)}


@LAUNCHERS.register(name="slurm")
class SlurmLauncher(Launcher):
    """Submits the tasks as one job array; `cores`, `gpus` and so on are those of one task."""

    blocking: ClassVar[bool] = False
    has_after: ClassVar[bool] = True
    resource_options: ClassVar[tuple[str, ...]] = ("cores", "gpus", "memory_gb", "minutes")

    partition: Text | None = Field(None, description="partition of SLURM")
    account: Text | None = Field(None, description="account that SLURM charges")
    qos: Text | None = Field(None, description="quality of service of SLURM")
    constraint: Text | None = Field(None, description="features that SLURM's nodes must have")
    sbatch: Annotated[dict[str, Any], checked(_sbatch)] = Field(
        {}, description="further options of sbatch, such as {mail-type: FAIL, gres: 'gpu:a100:1'}"
    )
    requeue: bool = Field(
        True, description="SLURM may execute a job again: after its time limit, or a preemption"
    )
    setup: Items[Text] = Field(
        (), description="shell commands that a job of SLURM begins with, such as 'module load …'"
    )
    python: Text | None = Field(
        None,
        description="shell command for Python in a job of SLURM, as in a container: "
        "'apptainer exec image.sif python'",
        json_schema_extra={"default_text": "the one that launches"},
    )
    tasks_per_job: int = Field(1, ge=1, description="runs in one job of SLURM")
    workers_per_job: int = Field(
        1, ge=1, description="runs that one job of SLURM executes at the same time"
    )
    max_jobs: int | None = Field(
        None,
        ge=1,
        description="jobs of SLURM at the same time",
        json_schema_extra={"default_text": "as many as SLURM allows"},
    )

    def submit(self, job: Job, tasks: Sequence[Any], resources: Resources, folder: Path) -> Handle:
        # A folder for each submission: a newly installed cluster numbers its jobs from 1 on.
        folder = folder.absolute() / f"slurm-{uuid.uuid4().hex[:12]}"
        numbered, size = list(enumerate(tasks)), self.tasks_per_job
        packs = [numbered[first : first + size] for first in range(0, len(numbered), size)]
        do = partial(do_batch, job, self.workers_per_job, resources, self.requeue, folder)
        jobs: list[str] = []
        after = ""
        self._refuse_cores(resources)
        found = _MAX_ARRAY.search(_answer("scontrol", "show", "config"))
        largest = max(1, int(found[1])) if found else 1000  # SLURM's default
        try:
            while len(jobs) < len(packs):
                jobs += self._submit(
                    do, packs[len(jobs) : len(jobs) + largest], resources, folder, after
                )
                if self.max_jobs:  # which is of one array: the next one waits for it
                    after = f"afterany:{_array(jobs[-1])}"
        except UserError:
            if jobs:
                self.cancel(jobs)
            shutil.rmtree(folder, ignore_errors=True)
            raise
        names = [name for name, pack in zip(jobs, packs) for _ in pack]
        return Handle(names, [folder / f"{name}_0_log.out" for name in names])

    def _refuse_cores(self, resources: Resources) -> None:
        """SLURM itself may take a job that no node is large enough for, and never start it.

        Raises:
            UserError: there is no such node.
        """
        asked = (resources.cores or 0) * self.workers_per_job
        where = [f"--partition={self.partition}"] if self.partition else []
        sizes = _answer("sinfo", "--noheader", "--exact", "--format=%c", *where)
        largest = max(map(int, sizes.split()), default=asked)
        if asked > largest:
            raise UserError(
                f"a job asks for {asked} cores, and SLURM's largest node has {largest}: give fewer "
                "--cores, or --workers_per_job",
                "cores",
            )

    def submit_after(
        self, jobs: Sequence[str], work: Callable[[], None], resources: Resources, folder: Path
    ) -> str:
        folder = folder.absolute() / f"slurm-{uuid.uuid4().hex[:12]}"
        after = "afterany:" + ":".join(dict.fromkeys(map(_array, jobs)))
        (name,) = self._submit(lambda _: work(), [None], resources, folder, after)
        return name

    def _submit(
        self,
        do: Callable[[Any], None],
        packs: Sequence[Any],
        resources: Resources,
        folder: Path,
        after: str,
    ) -> list[str]:
        """The names of the jobs that do one pack each, once those that `after` names have ended.

        Raises:
            UserError: SLURM refuses them.
        """
        # `exec`, and no `srun`: SLURM's signals reach the Python process itself, and it alone is
        # warned, not the processes that it started.
        python = self.python or shlex.quote(sys.executable)
        executor = _submitit().SlurmExecutor(folder, python=f"exec {python}")
        parameters = self._parameters(len(packs), resources)
        own = parameters["additional_parameters"]
        if dependency := ",".join(filter(None, [str(own.get("dependency", "")), after])):
            own["dependency"] = dependency
        executor.update_parameters(**parameters)
        try:
            with redirect_stderr(StringIO()):  # submitit prints a refusal itself, and raises it
                return [each.job_id for each in executor.map_array(do, packs)]
        except RuntimeError as error:  # of submitit, about the exit status of `sbatch`
            raise UserError(f"SLURM refuses the jobs: {_words(str(error))}", "launcher") from error

    def parallelism(self, tasks: int, resources: Resources) -> int:
        jobs = math.ceil(tasks / self.tasks_per_job)
        return min(tasks, min(jobs, self.max_jobs or jobs) * self.workers_per_job)

    def ask(self, jobs: Iterable[str]) -> dict[str, JobReport]:
        asked = set(jobs)
        arrays = sorted({_array(job) for job in asked if _JOB.fullmatch(job)})
        if not arrays:
            return {}
        try:
            printed = _answer(
                *("squeue", "--noheader", "--array", "--states=all"),
                *(f"--name={_NAME}", "--format=%i %T %r", f"--jobs={','.join(arrays)}"),
            )
        except UserError as error:
            if "Invalid job id" in str(error):  # what it says where it knows none of them any more
                return {}
            raise
        rows = [line.split(maxsplit=2) for line in printed.splitlines()]
        return {job: _report(state, reason) for job, state, reason in rows if job in asked}

    def cancel(self, jobs: Iterable[str]) -> None:
        there = sorted(job for job, report in self.ask(jobs).items() if report.in_hand)
        for first in range(0, len(there), _MOST_JOBS_A_COMMAND):
            _answer("scancel", "--quiet", *there[first : first + _MOST_JOBS_A_COMMAND])

    def _parameters(self, jobs: int, resources: Resources) -> dict[str, Any]:
        """What a job asks SLURM for, as submitit calls it."""
        workers, warning, minutes = self.workers_per_job, _SECONDS_OF_WARNING, None
        if resources.minutes:
            minutes = math.ceil(resources.minutes * math.ceil(self.tasks_per_job / workers))
            # Of a short time a part: SLURM warns up to a minute early.
            warning = min(warning, minutes * 15)
        memory = math.ceil((resources.memory_gb or 0) * workers * 1024)
        return {
            "job_name": _NAME,
            "partition": self.partition,
            "account": self.account,
            "qos": self.qos,
            "constraint": self.constraint,
            # These commands may have changed the folder.
            "setup": [*self.setup, f"cd {shlex.quote(os.getcwd())} || exit 1"],
            "array_parallelism": self.max_jobs or jobs,
            "cpus_per_task": (resources.cores or 0) * workers or None,
            "gpus_per_node": math.ceil((resources.gpus or 0) * workers) or None,
            "mem": f"{memory}M" if memory else None,
            "time": minutes,  # None: SLURM's own default, not submitit's
            "wckey": None,
            "use_srun": False,
            "stderr_to_stdout": True,
            "additional_parameters": {
                "signal": f"B:USR2@{warning}",
                "requeue" if self.requeue else "no-requeue": True,
                **self.sbatch,
            },
        }


def do_batch(
    job: Job,
    workers: int,
    resources: Resources,
    requeue: bool,
    folder: Path,
    tasks: Sequence[tuple[int, Any]],
) -> None:
    """Executes the tasks of one job, or after a requeue the remaining ones; runs on a node.

    Args:
        job: what to do with a task.
        workers: how many tasks are done at the same time.
        resources: of one task.
        requeue: whether a job that is warned of its time limit is to be executed again.
        folder: where events go.
        tasks: with their positions in the list of all.
    """
    name: str = _submitit().JobEnvironment().job_id
    os.environ.update({ENGINE_VARIABLE: "slurm", JOB_VARIABLE: name})
    told = EventReader(folder, [name]).read()
    writer = EventWriter(folder, name)
    ended = {event.index for event in told if event.kind in (DONE, FAILED)}
    left = {index: task for index, task in tasks if index not in ended}
    indices = list(left)

    def tell(event: Event) -> None:
        told.append(replace(event, index=indices[event.index]))
        writer.send(told[-1])
        if event.kind in (DONE, FAILED, BUSY):
            del left[told[-1].index]

    # By SLURM's own word: where it binds jobs to no cores, the system names all of the node.
    cores = int(os.environ.get("SLURM_CPUS_ON_NODE", "1"))
    share = Resources(cores=resources.cores or max(1, cores // workers), device=resources.device)
    handle = LocalLauncher(workers=workers).submit(job, list(left.values()), share, folder)
    came: set[int] = set()

    def on_signal(number: int, frame: FrameType | None) -> None:
        came.add(number)
        handle.cancel()

    with handled([signal.SIGTERM, signal.SIGUSR2], on_signal):
        handle.wait(tell)
    if signal.SIGUSR2 in came and left and requeue:
        try:
            _requeue(name, told)
        except UserError as error:
            for index, task in left.items():
                writer.send(failed(job, index, task, f"{error}\n"))
            raise


def _requeue(name: str, told: Iterable[Event]) -> None:
    """Has SLURM execute this job again.

    Raises:
        UserError: several consecutive tries have not taken a step.
    """
    fruitless: Counter[int] = Counter()
    for event in told:
        if event.kind in (PROGRESS, DONE, FAILED):
            fruitless.clear()
        fruitless[event.index] += event.kind == INTERRUPTED
    if max(fruitless.values()) >= _MOST_FRUITLESS_TRIES:
        raise UserError("the time limit is too short to take a step in it: give more --minutes")
    _answer("scontrol", "requeue", name)


def _array(job: str) -> str:
    """The job array that a job is of."""
    return job.partition("_")[0]


def _report(state: str, reason: str) -> JobReport:
    if state == PENDING.upper():
        return JobReport(PENDING, reason, bool(_STUCK.fullmatch(reason)))
    if state in (*_ENDED, _COMPLETING):
        return JobReport(FAILED if state in _BY_ITSELF else INTERRUPTED, state)
    return JobReport(RUNNING, state)


def _answer(*command: str) -> str:
    """What a command of SLURM prints.

    Raises:
        UserError: it is not there, or fails, with what it says.
    """
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=_SECONDS_TO_ANSWER
        )
    except FileNotFoundError:
        raise UserError(f"there is no `{command[0]}` here: {_ELSEWHERE}", "launcher") from None
    except subprocess.TimeoutExpired:
        raise UserError(
            f"`{command[0]}` of SLURM did not answer within {_SECONDS_TO_ANSWER:g} seconds",
            "launcher",
        ) from None
    if done.returncode:
        raise UserError(f"`{command[0]}` of SLURM failed: {_words(done.stderr)}", "launcher")
    return done.stdout


_ELSEWHERE = "use the launcher slurm where SLURM's commands are, as on a login node of its cluster"


def _words(printed: str) -> str:
    """What a command of SLURM reports as wrong, in one line."""
    lines = [line.partition("error: ")[2] or line for line in printed.splitlines()]
    return "; ".join(line.strip() for line in lines if line.strip()) or "it says nothing"


def _submitit() -> Any:
    try:
        import submitit
    except ImportError:
        raise UserError(
            "the launcher slurm needs submitit: pip install submitit", "launcher"
        ) from None
    if not shutil.which("sbatch") or not shutil.which("srun"):  # both are of the same package
        raise UserError(f"there is no `sbatch` here: {_ELSEWHERE}", "launcher")
    return submitit
