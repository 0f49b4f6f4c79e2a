"""What a run can be found to be, and what a launcher tells of a task: each word once."""

from __future__ import annotations

from dataclasses import dataclass

DONE, RUNNING, PENDING = "done", "running", "pending"
FAILED, INTERRUPTED, MISSING = "failed", "interrupted", "missing"
STATES = (DONE, RUNNING, PENDING, FAILED, INTERRUPTED, MISSING)
"""Of a run's folder."""

STARTED, PROGRESS, BUSY = "started", "progress", "busy"
"""Of a task that a launcher was given."""

ENDS = (DONE, FAILED, INTERRUPTED, BUSY)
"""What it is at its end."""


class Busy(Exception):
    """Another process is at work in the folder."""


class Lost(Busy):
    """Another process has taken the folder over from this one, which must write nothing more."""


@dataclass(frozen=True)
class RunStatus:
    """What is known of a run.

    Attributes:
        state: one of `STATES`.
        engine: what it was handed to, "slurm" say; "" where no launcher said so.
        job: the engine's name of its job.
        host, pid: of the process that is at it, or was at last.
        silent_for: seconds since a process elsewhere last told that it is at work.
    """

    state: str
    engine: str = ""
    job: str = ""
    host: str = ""
    pid: int = 0
    silent_for: float = 0.0
