"""Events of tasks executed elsewhere, in files on a shared file system."""

import contextlib
import json
import math
import os
import time
from collections.abc import Iterable
from dataclasses import asdict
from itertools import count
from pathlib import Path

from domainbed.launchers.base import Event
from domainbed.runs.states import PROGRESS

_ENDING = ".events.jsonl"
# Of the progress of one task: thousands may write to one file server.
_SECONDS_BETWEEN_REPORTS = 5.0


class EventWriter:
    """Writes one process's events to a file of its own: `<job>.<n>.events.jsonl`, n from 1 on.

    Appends of several machines to one file would mix on NFS.
    """

    def __init__(self, folder: Path, job: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        for number in count(1):
            with contextlib.suppress(FileExistsError):
                self._stream = os.open(
                    folder / f"{job}.{number}{_ENDING}",
                    os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_APPEND,
                    0o666,
                )
                break
        self._next_report: dict[int, float] = {}  # by task, by the monotonic clock

    def send(self, event: Event) -> None:
        """Appends an event; where that fails, on a full disk for example, the task continues."""
        if event.kind == PROGRESS:
            if time.monotonic() < self._next_report.get(event.index, -math.inf):
                return
            self._next_report[event.index] = time.monotonic() + _SECONDS_BETWEEN_REPORTS
        with contextlib.suppress(OSError):
            # Between line ends: a line that was torn by a full disk spoils no other.
            os.write(self._stream, f"\n{json.dumps(asdict(event))}\n".encode())


class EventReader:
    """Reads the events of some jobs as they are written."""

    def __init__(self, folder: Path, jobs: Iterable[str]) -> None:
        self._folder = folder
        self._jobs = set(jobs)
        self._offsets: dict[Path, int] = {}

    def read(self) -> list[Event]:
        """The events since the last call; those of one job in the order in which they were sent."""
        ours = [f for f in self._folder.glob(f"*{_ENDING}") if _job_and_number(f)[0] in self._jobs]
        grown = [file for file in ours if file.stat().st_size > self._offsets.get(file, 0)]
        return [event for file in sorted(grown, key=_job_and_number) for event in self._new(file)]

    def _new(self, file: Path) -> list[Event]:
        # Opened each time: NFS shows what others wrote to whoever opens a file.
        with file.open("rb") as stream:
            stream.seek(self._offsets.get(file, 0))
            whole, newline, _ = stream.read().rpartition(b"\n")
        self._offsets[file] = self._offsets.get(file, 0) + len(whole + newline)
        events = []
        for line in whole.splitlines():
            with contextlib.suppress(ValueError, TypeError):  # empty or torn
                events.append(Event(**json.loads(line)))
        return events


def _job_and_number(file: Path) -> tuple[str, int]:
    job, _, number = file.name.removesuffix(_ENDING).rpartition(".")
    return job, int(number)
