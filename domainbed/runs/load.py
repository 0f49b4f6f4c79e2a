"""Loading: from folders of runs to records."""

from __future__ import annotations

import logging
import os
import stat
from collections.abc import Callable, Iterable, Sequence
from itertools import count, groupby
from pathlib import Path

from domainbed.core.text_table import printable
from domainbed.errors import UserError
from domainbed.runs.exported import SUFFIX, unpacked
from domainbed.runs.folder import RunFolder
from domainbed.runs.record_cache import joined, read_files
from domainbed.runs.records import RUN_KEYS, Records

log = logging.getLogger(__name__)

RECORDS_FILE = "results.jsonl"
PLAN_FILE = "plan.json"

Folders = str | Path | Sequence[str | Path]
Progress = Callable[[int, int], None]


def load_records(folders: Folders, progress: Progress | None = None) -> Records:
    """Reads the records of all runs in one or several folders, DomainBed's own included.

    Args:
        folders: a sweep folder (of run folders), a run folder, or a list of such.
        progress: called with (run folders read, run folders in all).

    Returns:
        The runs in the order of their folders' names, and their numbers. Links that lead out of
        a folder are not followed, and sweeps in a folder of sweeps not read, with a warning.

    Raises:
        UserError: a folder does not exist or holds no records; a line is damaged, lacks a key or
            holds an accuracy outside [0, 1]; a run.json names another run; the last line of a
            finished run is cut off. That of an unfinished run is skipped, with a warning.
    """
    roots = as_paths(folders)
    files_of: dict[Path, Path] = {}
    for root in roots:
        files_of |= {file: root for file in record_files(root) if file not in files_of}
    files, counted = list(files_of), count()

    def on_file() -> None:
        if progress:
            progress(next(counted) + 1, len(files))

    by_root = groupby(files, key=files_of.__getitem__)
    batch = joined([read_files(root, list(of_root), on_file) for root, of_root in by_root])
    if not batch.runs:
        why = _failures(roots) or "wait for the first checkpoint"
        raise UserError(f"no complete record in {_join(roots)}: {why}")
    records = batch.as_records()
    _warn_of_duplicates(records)
    _warn_of_unfinished(files)
    _warn_of_sweeps_inside(roots, files)
    return records


def as_paths(folders: Folders) -> list[Path]:
    """One or several folders as a list; an exported sweep as the folder that it holds.

    Raises:
        UserError: a name is empty, or a file holds no sweep.
    """
    several = [folders] if isinstance(folders, (str, Path)) else list(folders)
    if "" in several:
        raise UserError("the name of a folder is empty: name a sweep folder or a run folder")
    paths = map(Path, several)
    return [unpacked(path) if path.suffix == SUFFIX else path for path in paths]


def run_folders(root: Path) -> list[Path]:
    """The folders of `root` that may be runs, by name; `root` itself first if it is a run.

    Raises:
        UserError: `root` is not a folder.
    """
    if not root.is_dir():
        what = "is not a folder" if root.exists() else "does not exist"
        raise UserError(f"{str(root)!r} {what}: name a sweep folder or a run folder")
    with os.scandir(root) as entries:  # far fewer system calls than by `Path.iterdir`
        found = sorted((entry for entry in entries if entry.is_dir()), key=lambda entry: entry.name)
    inside = [root / entry.name for entry in found if not entry.is_symlink() or _stays(root, entry)]
    return [root, *inside] if (root / RECORDS_FILE).is_file() else inside


def record_files(root: Path) -> list[Path]:
    """The files of records in `root`.

    Raises:
        UserError: there is no such file.
    """
    files = [folder / RECORDS_FILE for folder in run_folders(root)]
    found = [file for file in files if _is_own_file(root, file)]
    if not found:
        sweeps = _sweeps_inside(root)
        why = _failures([root]) or (_not_read(sweeps) if sweeps else "")
        why = why or f"neither it nor a folder in it holds {RECORDS_FILE}"
        raise UserError(f"no records in {str(root)!r}: {why}")
    return found


def _sweeps_inside(root: Path, files: Iterable[Path] = ()) -> list[Path]:
    """The sweeps in a folder that is not a sweep itself; `files` are the records found in it."""
    if (root / PLAN_FILE).is_file():  # what lies in it is its own, such as its new trials
        return []
    runs = {file.parent for file in files}
    others = [path for path in root.iterdir() if path not in runs]
    return sorted(path for path in others if (path / PLAN_FILE).is_file())


def _not_read(sweeps: Sequence[Path]) -> str:
    """What is said of sweeps that are not read with the folder that they lie in."""
    first = printable(sweeps[0])
    if len(sweeps) == 1:
        return f"{first} is a sweep of its own, and is not read: name it"
    return (
        f"{first} and {len(sweeps) - 1} more are sweeps of their own, and are not read: name them"
    )


def _failures(roots: Iterable[Path]) -> str:
    """How many runs failed, and why the first one did; "" if none did."""
    folders = [RunFolder(path) for root in roots for path in run_folders(root)]
    failed = [(folder.path, error) for folder in folders if (error := folder.last_error())]
    if not failed:
        return ""
    runs = "1 run" if len(failed) == 1 else f"{len(failed)} runs"
    return f"{runs} failed, such as {failed[0][0]}: {failed[0][1]}"


def _is_own_file(root: Path, file: Path) -> bool:
    try:
        mode = os.lstat(file).st_mode  # one system call, where there are many thousands of files
    except OSError:
        return False
    return stat.S_ISREG(mode) or (file.is_file() and _stays(root, file))


def _stays(root: Path, link: str | os.PathLike[str]) -> bool:
    """Whether a link found in `root` leads to something in it."""
    path = Path(link)
    if path.resolve().is_relative_to(root.resolve()):
        return True
    log.warning("warning: %s is a link that leaves %s: not followed", path, root)
    return False


def _join(paths: Iterable[str | Path]) -> str:
    return ", ".join(repr(str(path)) for path in paths)


def _warn_of_unfinished(files: Sequence[Path]) -> None:
    unfinished = sum(not os.path.exists(f"{file.parent}/done") for file in files)
    # Records of other programs may come without any mark of the end.
    marked = unfinished < len(files) or any(file.with_name("run.json").exists() for file in files)
    if unfinished and marked:
        log.warning(
            "warning: %d of %d runs are not finished: their records so far count as they are",
            unfinished, len(files),
        )  # fmt: skip


def _warn_of_sweeps_inside(roots: Sequence[Path], files: Sequence[Path]) -> None:
    named = {root.resolve() for root in roots}
    found = [sweep for root in roots for sweep in _sweeps_inside(root, files)]
    if sweeps := [sweep for sweep in found if sweep.resolve() not in named]:
        log.warning("warning: %s", _not_read(sweeps))


def _warn_of_duplicates(records: Records) -> None:
    runs = records.runs[records.runs.duplicated(RUN_KEYS, keep=False)]
    if runs.empty:
        return
    steps = records.values.loc[records.values["run"].isin(runs.index), ["run", "step"]]
    table = steps.drop_duplicates().join(runs, on="run").sort_values(["run", "step"])
    repeated = table[table.duplicated([*RUN_KEYS, "step"])]
    if repeated.empty:
        return
    first = repeated.iloc[0]
    same = (table[RUN_KEYS] == first[RUN_KEYS]).all(axis=1)
    folders = table.loc[same & (table["step"] == first["step"]), "folder"].unique()
    log.warning(
        "warning: %d records are there twice, such as step %d of %s: keep one of each run",
        len(repeated), first["step"], _join(folders),
    )  # fmt: skip
