"""The folder of one run: its paths and its state."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from domainbed.errors import UserError

DONE, RUNNING, FAILED, UNFINISHED, MISSING = "done", "running", "failed", "unfinished", "missing"
STATES = (DONE, RUNNING, FAILED, UNFINISHED, MISSING)


class Busy(Exception):
    """Another process is at work in the folder."""


class RunFolder:
    """Every path of a run. The layout of results, `done` and `out.txt` is DomainBed's.

    Attributes:
        results: one JSON record a line.
        done: exists when the run is finished.
        out: what was printed.
        errors: the traceback of a run that failed.
        model: the trained weights.
        spec: the run's identity.
        environment: versions, device and time.
        checkpoint: everything a killed run needs to go on; gone when it is done.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self.results = self.path / "results.jsonl"
        self.done = self.path / "done"
        self.out = self.path / "out.txt"
        self.errors = self.path / "err.txt"
        self.model = self.path / "model.pkl"
        self.spec = self.path / "run.json"
        self.environment = self.path / "environment.json"
        self.checkpoint = self.path / "checkpoint.pt"
        self._lock = self.path / "lock"

    def model_at(self, step: int) -> Path:
        """The weights at one record, where all of them are kept."""
        return self.path / f"model_step{step}.pkl"

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Holds the folder; the system lets go of it when the process dies, however it dies.

        Raises:
            Busy: another process holds it.
            UserError: there can be no such folder.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"the folder {str(self.path)!r} cannot be made ({error.strerror}): choose another "
                "output folder"
            ) from error
        try:
            # A look at the state holds the lock for an instant: that is nobody at work.
            with FileLock(self._lock, timeout=0.5):
                for left_over in self.path.glob("*.tmp"):  # of a process that was killed
                    left_over.unlink(missing_ok=True)
                yield
        except Timeout:
            raise Busy(f"another process is at work in {self.path}") from None

    def state(self) -> str:
        """One of `STATES`."""
        if self.done.exists():
            return DONE
        if self._held():
            return RUNNING
        if self.last_error():
            return FAILED
        return UNFINISHED if self.spec.exists() or self.results.exists() else MISSING

    def last_error(self) -> str:
        """The last line of a failed run's err.txt; "" where no run failed.

        DomainBed's err.txt may hold warnings only: without `spec`, a traceback tells a failure.
        """
        if not self.errors.is_file():
            return ""
        text = self.errors.read_text(encoding="utf-8", errors="replace").strip()
        has_failed = self.spec.exists() or "Traceback (most recent call last)" in text
        return text.splitlines()[-1] if text and has_failed else ""

    def has_results(self) -> bool:
        """Whether there is a record, or a mark that all of them were written."""
        return self.done.exists() or (self.results.exists() and self.results.stat().st_size > 0)

    def _held(self) -> bool:
        if not self._lock.exists():
            return False
        try:
            with FileLock(self._lock, timeout=0):
                return False
        except Timeout:
            return True
        except OSError:  # somebody else's folder, which may only be read
            return False

    def read_json(self, file: Path) -> dict[str, Any] | None:
        """The contents of `spec` or `environment`, or None if it is not there.

        Raises:
            UserError: the file is damaged.
        """
        if not file.exists():
            return None
        try:
            return json.loads(file.read_text(encoding="utf-8"))
        except ValueError as error:
            raise UserError(
                f"{file} is damaged ({error}): repair it, or remove its folder"
            ) from error
