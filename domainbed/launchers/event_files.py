"""Events of tasks that are done elsewhere: files on a shared file system, tailed by the launch."""

from __future__ import annotations

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
_SECONDS_BETWEEN_REPORTS = 5.0
"""Of the progress of one task: thousands may write to one file server."""


class EventWriter:
    """What one process tells, in a file of its own: `<job>.<n>.events.jsonl`, n from 1 on.

    Appends of several machines to one file would mix on NFS.
    """

    def __init__(self, folder: Path, job: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        for number in count(1):
            with contextlib.suppress(FileExistsError):
                file = folder / f"{job}.{number}{_ENDING}"
                self._stream = os.open(
                    file, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_APPEND, 0o666
                )
                break
        self._reported: dict[int, float] = {}

    def send(self, event: Event) -> None:
        """Appends an event; where that fails, on a full disk say, the task goes on unheard."""
        if event.kind == PROGRESS and not self._is_due(event.index):
            return
        with contextlib.suppress(OSError):
            # Between line ends: a line that was torn by a full disk spoils no other.
            os.write(self._stream, f"\n{json.dumps(asdict(event))}\n".encode())

    def _is_due(self, index: int) -> bool:
        due = time.monotonic() >= self._reported.get(index, -math.inf) + _SECONDS_BETWEEN_REPORTS
        if due:
            self._reported[index] = time.monotonic()
        return due


class EventReader:
    """Tails the events of some jobs."""

    def __init__(self, folder: Path, jobs: Iterable[str]) -> None:
        self._folder = folder
        self._jobs = set(jobs)
        self._offsets: dict[str, int] = {}

    def read(self) -> list[Event]:
        """The events since the last call; those of one job are in the order they were sent in."""
        return [event for name in self._files() for event in self._read_on(name)]

    def _files(self) -> list[str]:
        """Names of files that have grown."""
        try:
            with os.scandir(self._folder) as entries:
                ours = [e for e in entries if e.name.endswith(_ENDING) and self._is_ours(e.name)]
                grown = [e.name for e in ours if e.stat().st_size > self._offsets.get(e.name, 0)]
        except FileNotFoundError:
            return []
        return sorted(grown, key=lambda name: (_job_of(name), int(name.split(".")[-3])))

    def _is_ours(self, name: str) -> bool:
        return _job_of(name) in self._jobs

    def _read_on(self, name: str) -> list[Event]:
        # Opened anew each time: NFS shows what others wrote to who opens a file.
        with (self._folder / name).open("rb") as stream:
            stream.seek(self._offsets.get(name, 0))
            whole, newline, _ = stream.read().rpartition(b"\n")
        self._offsets[name] = self._offsets.get(name, 0) + len(whole + newline)
        return [event for line in whole.splitlines() for event in _parsed(line)]


def _job_of(name: str) -> str:
    return name.removesuffix(_ENDING).rpartition(".")[0]


def _parsed(line: bytes) -> list[Event]:
    """One event, or none where a line is empty or torn."""
    try:
        return [Event(**json.loads(line))]
    except (ValueError, TypeError):
        return []
