"""The states of runs, and of tasks that a launcher was given."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

DONE, RUNNING, PENDING = "done", "running", "pending"
FAILED, INTERRUPTED, MISSING = "failed", "interrupted", "missing"
STATES = (DONE, RUNNING, PENDING, FAILED, INTERRUPTED, MISSING)  # of a run's folder

STARTED, PROGRESS, BUSY = "started", "progress", "busy"  # of a task that a launcher was given

ENDS = (DONE, FAILED, INTERRUPTED, BUSY)  # how a task ends


class Busy(Exception):
    """Another process is at work in the folder."""


class Lost(Busy):
    """Another process has taken over the folder from this one, which must write no more."""


@dataclass(frozen=True)
class RunStatus:
    """What is known about a run.

    Attributes:
        state: one of `STATES`.
        engine: what it was submitted to, such as "slurm"; "" if no launcher said so.
        job: the engine's name of its job.
        host, pid: of the process that works on it, or did last.
        silent_for: seconds since the last sign of life of a process elsewhere.
        options: of a pending run, the launcher and its options that it was submitted with.
        why: what its engine says of its job, where it was asked: why it waits, or how it ended.
        stuck: whether the job waits for what does not happen unless somebody changes something.
    """

    state: str
    engine: str = ""
    job: str = ""
    host: str = ""
    pid: int = 0
    silent_for: float = 0.0
    options: Mapping[str, Any] = field(default_factory=dict, compare=False)
    why: str = ""
    stuck: bool = False
