"""The contract of trackers: a run begins, records come, it ends."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from domainbed.core.registry import Registry


@dataclass(frozen=True)
class TrackedRun:
    """What a tracker is told of a run.

    Attributes:
        run_id: the same whenever the run goes on.
        name: it, in words.
        sweep: the name of the folder that the run's folder is in.
        folder: the run's own, for files.
        spec: what defines the run, as JSON values.
        next_step: the step that it goes on from; 0 of a run that begins.
    """

    run_id: str
    name: str
    sweep: str
    folder: Path
    spec: Mapping[str, Any]
    next_step: int = 0


class Tracker(ABC):
    """Where the records of one run are sent, beside results.jsonl. Made anew for each run.

    What a method raises ends the tracking of the run, with a warning, and not the run. A run that
    was interrupted begins again with another tracker; records since its last checkpoint come twice.
    """

    packages: tuple[str, ...] = ()
    """Modules that must be there to import."""

    @abstractmethod
    def begin(self, run: TrackedRun) -> None:
        """Called once, before any record."""

    @abstractmethod
    def record(self, step: int, values: Mapping[str, float]) -> None:
        """Takes a record: its step, counted on over all stages, and its finite numbers by key."""

    @abstractmethod
    def end(self, state: str) -> None:
        """Called once at the end: "done", "failed" or "interrupted"."""


TRACKERS: Registry[type[Tracker]] = Registry("tracker", entry_point_group="domainbed.runs.trackers")
