"""The folder of one run: its paths and its state."""

from __future__ import annotations

import errno
import json
import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import BaseFileLock, FileLock, Timeout

from domainbed.errors import UserError
from domainbed.files import naming, write_text
from domainbed.states import (
    DONE,
    FAILED,
    INTERRUPTED,
    MISSING,
    PENDING,
    RUNNING,
    Busy,
    RunStatus,
)
from domainbed.text_table import printable

__all__ = ["NOT_WHOLE", "Busy", "RunFolder"]

log = logging.getLogger(__name__)

_NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP)
NOT_WHOLE = "it is marked as done, but its records are not whole"
_WRITTEN_ASIDE = (
    *("results", "done", "run", "environment", "checkpoint", "model", "predictions", "err"),
    "pending",
)


class RunFolder:
    """Every path of a run. The layout of results, `done` and `out.txt` is DomainBed's.

    Attributes:
        results: one JSON record a line.
        done: exists when the run is finished.
        out: what was printed.
        errors: the traceback of a run that failed.
        model: the trained weights.
        predictions: what they say of every image.
        spec: the run's identity.
        environment: versions, device and time.
        checkpoint: everything a killed run needs to go on; gone when it is done.
        checkpoint_before: the one before it.
        pending: the engine that the run was handed to, and its job; gone when it is taken up.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self.results = self.path / "results.jsonl"
        self.done = self.path / "done"
        self.out = self.path / "out.txt"
        self.errors = self.path / "err.txt"
        self.model = self.path / "model.pkl"
        self.predictions = self.path / "predictions.parquet"
        self.spec = self.path / "run.json"
        self.environment = self.path / "environment.json"
        self.checkpoint = self.path / "checkpoint.pt"
        self.checkpoint_before = self.path / "checkpoint.before.pt"
        self.pending = self.path / "pending.json"
        self._lock = self.path / "lock"

    def model_at(self, step: int, stage: int = 1, average: str = "") -> Path:
        """The weights at one record, or their average, where they are kept."""
        of_stage = f"_stage{stage}" if stage > 1 else ""
        of_average = f".{average}" if average else ""
        return self.path / f"model{of_stage}_step{step}{of_average}.pkl"

    def averaged_model(self, average: str) -> Path:
        """The weights of an average of a training's."""
        return self.path / f"model.{average}.pkl"

    def refuse_foreign(self) -> None:
        """Makes sure that nothing of the user's own lies here.

        Raises:
            UserError: the folder is not empty, and no run's.
        """
        if self.spec.exists() or not self.path.is_dir():
            return
        names = {file.name for file in (self._lock, self.errors, self.pending)}
        strange = sorted(f.name for f in self.path.iterdir() if f.name not in names)
        if strange and not self.has_results():
            raise UserError(
                f"{str(self.path)!r} is not empty, and no run's ({strange[0]!r} lies there): "
                "choose another --output_dir"
            )

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Holds the folder; the system lets go of it when the process dies, however it dies.

        Raises:
            Busy: another process holds it.
            UserError: there can be no such folder, or no lock in it, or a file in it that is
                written to is a link.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            # A look at the state holds the lock for an instant: that is nobody at work.
            lock = _acquired(self._lock, timeout=0.5)
        except Timeout:
            raise Busy(f"another process is at work in {self.path}") from None
        except OSError as error:
            reason = f"cannot be made, or locked ({error.strerror})"
            if error.errno in _NO_LOCKS:
                reason = f"is on a file system without file locks ({error.strerror})"
            raise UserError(
                f"the folder {str(self.path)!r} {reason}: choose another output folder"
            ) from error
        try:
            self._warn_of_soft_lock(lock)
            self._refuse_links()
            for left_over in self.path.glob("*.[0-9]*.tmp"):  # of a process that was killed
                if left_over.name.partition(".")[0] in _WRITTEN_ASIDE:
                    left_over.unlink(missing_ok=True)
            self.clear_pending()
            yield
        finally:
            lock.release()

    def mark_pending(self, engine: str, job: str) -> None:
        """Notes that an engine has the run in its queue; makes the folder if need be."""
        self.path.mkdir(parents=True, exist_ok=True)
        write_text(self.pending, json.dumps({"engine": engine, "job": job}) + "\n")

    def clear_pending(self) -> None:
        """Forgets it."""
        self.pending.unlink(missing_ok=True)

    def append_result(self, line: str) -> None:
        """Adds a record, on disk before this returns."""
        with naming(self.results), self.results.open("a", encoding="utf-8") as stream:
            stream.write(line)
            stream.flush()
            os.fsync(stream.fileno())

    def _warn_of_soft_lock(self, lock: BaseFileLock) -> None:
        if type(lock) is not FileLock:  # it has become a marker: see `_acquired`
            log.warning(
                "warning: the file system of %s has no file locks: if this machine dies, the run "
                "is taken for running until you remove %s", self.path, self._lock,
            )  # fmt: skip

    def _refuse_links(self) -> None:
        for file in (self.out, self.results, self.errors):
            if file.is_symlink():
                raise UserError(
                    f"{file} is a link, and a run writes to no file elsewhere: remove it"
                )

    def is_done(self) -> bool:
        """Whether the run is marked as done, and its last record is there to its end."""
        return is_done(os.fspath(self.path))

    def state(self) -> str:
        """One of `STATES`."""
        return self.status().state

    def status(self) -> RunStatus:
        """What is known of the run; of one that is done, that it is."""
        if self.is_done():  # first: of most folders of a large sweep nothing else is asked
            return RunStatus(DONE)
        if self._held():
            return RunStatus(RUNNING)
        if self.last_error():
            return RunStatus(FAILED)
        if waiting := self._pending():
            return waiting
        begun = self.spec.exists() or self.results.exists()
        return RunStatus(INTERRUPTED if begun else MISSING)

    def _pending(self) -> RunStatus | None:
        try:
            content = json.loads(self.pending.read_bytes())
            return RunStatus(PENDING, engine=str(content["engine"]), job=str(content["job"]))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, LookupError, TypeError):  # which job it is cannot be read
            return RunStatus(PENDING)

    def last_error(self) -> str:
        """The last line of a failed run's err.txt, as `printable` text; "" where no run failed.

        DomainBed's err.txt may hold warnings only: beside what DomainBed printed or recorded, and
        without `spec`, a traceback tells a failure.
        """
        if self.is_done():
            return ""
        return self._error_on_file() or (NOT_WHOLE if self.done.exists() else "")

    def _error_on_file(self) -> str:
        if not self.errors.is_file():
            return ""
        if self.errors.is_symlink():
            return f"{self.errors} is a link: remove it"
        text = self.errors.read_text(encoding="utf-8", errors="replace").strip()
        is_own = self.spec.exists() or not (self.out.exists() or self.results.exists())
        has_failed = is_own or "Traceback (most recent call last)" in text
        return printable(text.splitlines()[-1]) if text and has_failed else ""

    def has_results(self) -> bool:
        """Whether there is a record, or a mark that all of them were written."""
        return self.done.exists() or (self.results.exists() and self.results.stat().st_size > 0)

    def _held(self) -> bool:
        if not self._lock.exists():
            return False
        try:
            _acquired(self._lock, timeout=0).release()
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
            content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
            if not isinstance(content, dict):
                raise ValueError("no JSON object")
            return content
        except (ValueError, RecursionError, OSError) as error:
            raise UserError(
                f"{file} is damaged ({error}): repair it, or remove its folder"
            ) from error


def is_done(path: str) -> bool:
    """As `RunFolder.is_done`, of a path: a look at 100,000 folders makes no object for each."""
    if not os.path.exists(f"{path}/done"):
        return False
    try:
        with open(f"{path}/results.jsonl", "rb", buffering=0) as stream:
            stream.seek(-1, os.SEEK_END)
            return stream.read(1) == b"\n"
    except OSError:  # there is none, or it is empty
        return False


def _acquired(file: Path, timeout: float) -> BaseFileLock:
    """A lock, held; of another class where the file system has none, and a marker stands for it.

    Raises:
        Timeout: another process holds it.
    """
    lock = FileLock(file, timeout=timeout)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that of `filelock` names neither file nor remedy
        lock.acquire()
    return lock
