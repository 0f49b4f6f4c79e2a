"""The folder of one run: its paths and its state."""

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from domainbed.core.files import CHANGED, digest_of, parse_sealed_json, write_text
from domainbed.core.plugins import changed
from domainbed.core.text_table import printable
from domainbed.core.yaml_file import read_yaml
from domainbed.errors import UserError, in_shell
from domainbed.runs.ownership import is_owners, newest, owning, seems_at_work, silent_for
from domainbed.runs.packed import is_packed, text_of
from domainbed.runs.states import (
    DONE,
    FAILED,
    INTERRUPTED,
    MISSING,
    PENDING,
    RUNNING,
    RunStatus,
)

NOT_WHOLE = "it is marked as done, but its records are not whole"

_BARE_MARKS = (b"", b"done")  # of DomainBed and of earlier versions
_RECORDS = re.compile(rb"results\.jsonl: (\d+) bytes, sha256 [0-9a-f]{64}$")


class RunFolder:
    """Every path of a run. The layout of results, `done` and `out.txt` is DomainBed's.

    Attributes:
        home: the folder that all machines see; another one where it is a copy, see `runs.scratch`.
        results: one JSON record a line.
        done: exists when the run is finished, with the digest of its records.
        out: what was printed.
        errors: the traceback of a run that failed.
        model: the trained weights.
        predictions: what they say of every image.
        spec: the run's identity.
        environment: versions, device and time.
        checkpoint: everything a killed run needs to resume; removed when it is done.
        checkpoint_before: the one before it.
        pending: the engine that has the run in its queue, and its job; removed when it starts.
        log: a link to what that job prints.
        before: what it left before it was redone, in folders numbered from 1.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = self.home = Path(path)
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
        self.log = self.path / "job.log"
        self.before = self.path / "before"

    def model_file(self, average: str = "", step: int | None = None, stage: int = 1) -> Path:
        """The file of the last weights, or of an average; with a `step`, of those at its record."""
        of_stage = f"_stage{stage}" if stage > 1 else ""
        at_step = "" if step is None else f"{of_stage}_step{step}"
        of_average = f".{average}" if average else ""
        return self.path / f"model{at_step}{of_average}.pkl"

    def refuse_foreign(self) -> None:
        """Refuses a folder with files that do not belong to a run.

        Raises:
            UserError: the folder is not empty, and no run's.
        """
        if self.spec.exists() or not self.path.is_dir():
            return
        # Version 0.1.0 left a lock.
        names = {self.errors.name, self.pending.name, self.log.name, "lock", self.before.name}
        strange = [n for n in os.listdir(self.path) if n not in names and not is_owners(n)]
        if strange and not self.has_results():
            raise UserError(
                f"{str(self.path)!r} is not empty, and no run's ({min(strange)!r} lies there): "
                "choose another --output_dir"
            )

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Owns the folder, see `ownership.owning`.

        Raises:
            Busy: another process is at work in it, or has taken it over.
            Interrupted: a stop was requested before it was clear whether one is.
            UserError: there can be no such folder, it cannot be written to or was removed, or a
                file in it that is written to is a link.
        """
        with owning(self.path):
            for file in (self.out, self.results, self.errors):
                if file.is_symlink():
                    raise UserError(
                        f"{file} is a link, and a run writes to no file elsewhere: remove it"
                    )
            self.pending.unlink(missing_ok=True)
            yield

    def mark_pending(self, engine: str, job: str, options: Mapping[str, Any]) -> None:
        """Notes that an engine has the run in its queue; creates the folder if need be.

        `options` are the launcher and its options.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        content = {"engine": engine, "job": job, "options": options}
        with suppress(FileNotFoundError):  # it has been taken up already, and swept
            write_text(self.pending, json.dumps(content) + "\n")

    def link_log(self, file: Path) -> None:
        """Links `log` to a file, which need not exist yet; does nothing where links are impossible.

        The link is relative: a sweep's folder may be moved.
        """
        with suppress(OSError):
            self.log.unlink(missing_ok=True)
            self.log.symlink_to(os.path.relpath(file, self.path))

    def mark_done(self, records: str) -> None:
        """Marks the run as finished; `records` are those that results.jsonl has to hold."""
        write_text(self.done, f"done\n{seal_of(records.encode())}\n")

    def is_done(self) -> bool:
        """Whether the run is marked as done, and its records have the size that they had then.

        So it is if it is packed, see `runs.packed`.

        Of a mark without a digest, the last record is there to its end. The last line end may be
        missing, as editors leave it out.
        """
        return is_done(os.fspath(self.path)) or is_packed(self.path)

    def state(self) -> str:
        """One of `STATES`."""
        return self.status().state

    def status(self) -> RunStatus:
        """What is known about the run; only its state if it is done."""
        if self.is_done():  # first: of most folders of a large sweep nothing else is asked
            return RunStatus(DONE)
        last = self._last_owner()
        if last.state == RUNNING:
            return last
        if self.last_error():
            return replace(last, state=FAILED)
        if waiting := self._pending():
            return waiting
        begun = self.spec.exists() or self.results.exists()
        return replace(last, state=INTERRUPTED if begun else MISSING)

    def _last_owner(self) -> RunStatus:
        """RUNNING, or a status with who worked on it last, whose state remains to be found."""
        found = newest(self.path)
        if found is None:
            return RunStatus(MISSING)
        state = RUNNING if seems_at_work(self.path, found) else MISSING
        if found.owner is None:
            return RunStatus(state)
        process, is_silent = found.owner.process, not found.owner.has_left()
        seconds = silent_for(self.path, found) if is_silent else 0.0
        return RunStatus(
            state, found.owner.engine, found.owner.job, process.host, process.pid, seconds
        )

    def _pending(self) -> RunStatus | None:
        try:
            content = json.loads(self.pending.read_bytes())
            engine, job = str(content["engine"]), str(content["job"])
            return RunStatus(PENDING, engine, job, options=dict(content.get("options", {})))
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
        has_failed = (
            self.spec.exists()
            or not (self.out.exists() or self.results.exists())
            or "Traceback (most recent call last)" in text
        )
        return printable(text.splitlines()[-1]) if text and has_failed else ""

    def has_results(self) -> bool:
        """Whether there is a record, or a mark that all were written."""
        return (
            (self.results.exists() and self.results.stat().st_size > 0)
            or self.done.exists()
            or is_packed(self.path)
        )

    def changed_plugins(self, missing: bool = True) -> list[str]:
        """The plug-ins that differ from those which a session of the run was made with, by name.

        None where nothing was recorded yet; see `plugins.changed`.
        """
        if not self.has_results():
            return []
        facts = self.read_json(self.environment) or {}
        return changed(
            [
                each
                for session in (facts, *facts.get("resumed", ()))
                for each in session.get("plugins", {}).items()
            ],
            missing,
        )

    def set_aside(self) -> Path:
        """Moves what the run left into a folder of its own in `before`; returns that.

        To be called by the owner of the folder.
        """
        earlier = os.listdir(self.before) if self.before.is_dir() else []
        place = self.before / str(1 + len(earlier))
        place.mkdir(parents=True)
        # A process killed meanwhile leaves what says that this is to be done.
        last = [self.results.name, self.done.name, self.spec.name, self.environment.name]
        names = [n for n in os.listdir(self.path) if n != self.before.name and not is_owners(n)]
        for name in [*(n for n in names if n not in last), *(n for n in last if n in names)]:
            os.replace(self.path / name, place / name)
        return place

    def read_json(self, file: Path) -> dict[str, Any] | None:
        """The contents of `spec` or `environment`, or None if it is not there.

        Raises:
            UserError: the file is damaged.
        """
        try:
            text = text_of(self.path, file.name)
            return None if text is None else parse_sealed_json(text)
        except (ValueError, RecursionError, OSError) as error:
            # Without its environment a run resumes; without its spec nobody knows whose it is.
            remedy = "remove it" if file == self.environment else "repair it, or remove its folder"
            raise UserError(f"{file} is damaged ({error}): {remedy}") from error


def plugin_hint(path: Path) -> str:
    """What brings names that a sweep, or a run, has from plug-ins: " (--plugins … brings it)"."""
    flag = plugin_flag(path)
    return f" ({flag} brings it)" if flag else ""


def plugin_flag(path: Path) -> str:
    """The flag with the plug-ins of a sweep's folder, or of a run's; "" where there are none."""
    names: list[str] = []
    for file in (path / "sweep.yaml", path.parent / "sweep.yaml"):
        if file.is_file() and not names:  # beside a sweep's folder there may be its config
            content = read_yaml(file)[0]
            names += content.get("plugins", ()) if isinstance(content, dict) else ()
    if not names:
        run = RunFolder(path)
        names = list((run.read_json(run.environment) or {}).get("plugins", ()))
    return printable(f"--plugins {in_shell(*names)}") if names else ""


def made_with_others(runs: str, plugins: Iterable[str]) -> UserError:
    """That `runs` ("the run in … was") were made with other versions of plug-ins."""
    return UserError(
        f"{runs} made with another version of {', '.join(plugins)}: --plugins_changed accept "
        "counts and resumes what is there, --plugins_changed redo does it again and keeps it",
        "plugins_changed",
    )


def is_done(path: str) -> bool:
    """As `RunFolder.is_done`, of a path: a look at 100,000 folders makes no object for each."""
    try:
        with open(f"{path}/done", "rb", buffering=0) as stream:
            mark = stream.read().strip()
        if sealed := _RECORDS.search(mark):
            whole = int(sealed[1])
            return os.stat(f"{path}/results.jsonl").st_size in (whole, whole - 1)
        with open(f"{path}/results.jsonl", "rb", buffering=0) as stream:
            stream.seek(-1, os.SEEK_END)
            return mark in _BARE_MARKS and stream.read(1) in (b"\n", b"}")
    except OSError:  # there is no mark, or there are no records
        return False


def seal_of(records: bytes) -> str:
    """What the mark of a finished run, and the first line of a checkpoint, say of the records."""
    return f"results.jsonl: {len(records)} bytes, sha256 {digest_of(records)}"


def read_records(folder: Path) -> tuple[bytes, bool]:
    """The content of a run's results.jsonl, and whether damage to it would be noticed.

    That of a finished run is compared with its mark, that of an unfinished one with the first line
    of its checkpoint, which knows all but records that were written after it. DomainBed and earlier
    versions of this project wrote no digest.

    Raises:
        UserError: it has another digest, or the mark of the finished run is damaged.
        OSError: it cannot be read.
    """
    results, done = folder / "results.jsonl", folder / "done"
    # The mark first: of a run under way the records may grow meanwhile.
    of_end = text_of(folder, done.name)
    is_finished = of_end is not None
    mark = _checkpoint_title(folder) if of_end is None else of_end.strip()
    content, sealed = text_of(folder, results.name), _RECORDS.search(mark)
    if content is None:
        raise FileNotFoundError(f"there is no {results}")
    if is_finished and not content.endswith(b"\n"):
        content += b"\n"  # an editor may have left it out; of a torn record more is missing
    if sealed is None:
        if is_finished and mark not in _BARE_MARKS:
            raise UserError(f"{done} is damaged: remove {folder}, and do the run again")
        # A run that has just begun has no checkpoint yet.
        return content, not is_finished and not mark and (folder / "run.json").exists()
    known = content if is_finished else content[: int(sealed[1])]
    if sealed[0].decode() != seal_of(known):
        remedy = (
            f"remove {folder}, and do the run again"
            if is_finished
            else "resume the run, which writes its records again from its checkpoint"
        )
        raise UserError(f"{results} is damaged ({CHANGED}): {remedy}")
    return content, True


def _checkpoint_title(folder: Path) -> bytes:
    """The first line of a run's checkpoint; empty if it has none."""
    for name in ("checkpoint.pt", "checkpoint.before.pt"):
        with suppress(OSError), open(folder / name, "rb") as stream:
            return stream.readline(300).strip()
    return b""
