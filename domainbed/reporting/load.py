"""Loading: from folders of runs to records."""

from __future__ import annotations

import json
import logging
import os
import stat
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from itertools import count, groupby
from pathlib import Path

from domainbed.core.text_table import printable
from domainbed.core.yaml_file import read_yaml
from domainbed.errors import UserError
from domainbed.reporting.chunk import assembled
from domainbed.reporting.chunk_cache import read_files
from domainbed.reporting.exported import SUFFIX, unpacked
from domainbed.runs.folder import RunFolder
from domainbed.runs.records import RUN_KEYS, Records
from domainbed.selection import SELECTION_METHODS

log = logging.getLogger(__name__)

Gaps = dict[tuple[str, str, tuple[int, ...]], str]
"""By dataset, algorithm and test domains, why there are no such runs."""

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
            holds an accuracy that is none; a run.json names another run; the last line of a
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

    chunks = [
        chunk
        for root, of_root in groupby(files, key=files_of.__getitem__)
        for chunk in read_files(root, list(of_root), on_file)
    ]
    whole = assembled(chunks, files)
    if not whole.runs:
        why = _failures(roots) or "wait for the first checkpoint"
        raise UserError(f"no complete record in {_join(roots)}: {why}")
    records = whole.as_records()
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


def planned_selection(folders: Folders) -> list[str] | None:
    """The selection methods that a sweep of this project was planned for, in the tables' order.

    None, that is all of them, if one of the folders does not say.

    Raises:
        UserError: the config of a sweep is damaged.
    """
    planned: set[str] = set()
    for root in as_paths(folders):
        file = root / "sweep.yaml"
        if not file.is_file():
            return None
        config = read_yaml(file)[0]
        names = config.get("selection") if isinstance(config, dict) else [str(config)]
        if not names:
            return None
        if not all(name in SELECTION_METHODS for name in names):
            raise UserError(f"{file} is damaged: {names!r} are no selection methods, repair it")
        planned |= set(names)
    return [name for name in SELECTION_METHODS if name in planned]


def planned_gaps(folders: Folders) -> Gaps:
    """The runs that sweeps of this project left out because they cannot be, and why.

    What cannot be read says nothing: `explain` tells of a damaged plan.
    """
    gaps: Gaps = {}
    for root in as_paths(folders):
        try:
            content = json.loads((root / PLAN_FILE).read_text(encoding="utf-8"))
            for entry in content.get("left_out", ()):
                key = (entry["dataset"], entry["algorithm"], tuple(entry["test_envs"]))
                gaps[key] = str(entry["why"])
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            continue
    return gaps


def by_folder(records: Records, folders: Folders) -> Records:
    """The records with the folder that each run was read from in its algorithm's name.

    Raises:
        UserError: a folder is given twice.
    """
    labels = _folder_labels(folders)
    runs = records.runs
    names = [
        f"{algorithm} [{labels.get(path) or labels[path.parent]}]"
        for algorithm, path in zip(runs["algorithm"], map(Path, runs["folder"]), strict=True)
    ]
    return replace(records, runs=runs.assign(algorithm=names))


def gaps_by_folder(folders: Folders) -> Gaps:
    """As `planned_gaps`, for the names of algorithms that `by_folder` gives."""
    return {
        (dataset, f"{algorithm} [{label}]", envs): why
        for root, label in _folder_labels(folders).items()
        for (dataset, algorithm, envs), why in planned_gaps(root).items()
    }


def _folder_labels(folders: Folders) -> dict[Path, str]:
    """Each folder's name, or its whole path where another has the same."""
    roots = as_paths(folders)
    if len(set(roots)) < len(roots):
        raise UserError(f"a folder is given twice: {_join(roots)}")
    names = [root.resolve().name for root in roots]
    return {
        root: name if names.count(name) == 1 else str(root)
        for root, name in zip(roots, names, strict=True)
    }


def run_folders(root: Path) -> list[Path]:
    """The folders of `root` that may be runs, by name; `root` itself first if it is a run.

    Raises:
        UserError: `root` is not a folder.
    """
    return list(map(Path, _run_folders(root)))


def _run_folders(root: Path) -> list[str]:
    """As texts: to make many thousands of paths takes longer than to find them."""
    if not root.is_dir():
        what = "is not a folder" if root.exists() else "does not exist"
        raise UserError(f"{str(root)!r} {what}: name a sweep folder or a run folder")
    with os.scandir(root) as entries:  # far fewer system calls than by `Path.iterdir`
        found = [entry for entry in entries if entry.is_dir() and _stays(root, entry)]
    inside = [entry.path for entry in sorted(found, key=lambda entry: entry.name)]
    return [str(root), *inside] if (root / RECORDS_FILE).is_file() else inside


def record_files(root: Path) -> list[Path]:
    """The files of records in `root`.

    Raises:
        UserError: there is none.
    """
    files = [f"{folder}/{RECORDS_FILE}" for folder in _run_folders(root)]
    found = [Path(file) for file in files if _is_own_file(root, file)]
    if not found:
        sweeps = _sweeps_inside(root)
        why = _failures([root]) or (_not_read(sweeps) if sweeps else "")
        why = why or f"neither it nor a folder in it holds {RECORDS_FILE}"
        raise UserError(f"no records in {str(root)!r}: {why}")
    return found


def _sweeps_inside(root: Path, files: Iterable[Path] = ()) -> list[str]:
    """The sweeps in a folder, where that is none itself; `files` are the records found in it."""
    if (root / PLAN_FILE).is_file():  # what lies in it is its own, such as its new trials
        return []
    runs = set(map(os.path.dirname, files))  # of which none is a sweep
    with os.scandir(root) as entries:
        inside = sorted(entry.path for entry in entries if entry.path not in runs)
    return [path for path in inside if os.path.isfile(f"{path}/{PLAN_FILE}")]


def _not_read(sweeps: Sequence[str]) -> str:
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


def _is_own_file(root: Path, file: str) -> bool:
    try:
        mode = os.lstat(file).st_mode  # one system call, where there are many thousands of files
    except OSError:
        return False
    return stat.S_ISREG(mode) or (
        stat.S_ISLNK(mode) and os.path.isfile(file) and _stays(root, Path(file))
    )


def _stays(root: Path, path: Path | os.DirEntry[str]) -> bool:
    """Whether a file or folder found in `root` is no link that leads elsewhere."""
    if not path.is_symlink() or Path(path).resolve().is_relative_to(root.resolve()):
        return True
    log.warning("warning: %s is a link that leaves %s: not followed", Path(path), root)
    return False


def _join(paths: Iterable[str | Path]) -> str:
    return ", ".join(repr(str(path)) for path in paths)


def _warn_of_unfinished(files: Sequence[Path]) -> None:
    unfinished = sum(not os.path.exists(f"{os.path.dirname(file)}/done") for file in files)
    # Records that others made may come without any mark of the end.
    marked = unfinished < len(files) or any(file.with_name("run.json").exists() for file in files)
    if unfinished and marked:
        log.warning(
            "warning: %d of %d runs are not finished: their records so far count as they are",
            unfinished, len(files),
        )  # fmt: skip


def _warn_of_sweeps_inside(roots: Sequence[Path], files: Sequence[Path]) -> None:
    named = {root.resolve() for root in roots}
    found = [sweep for root in roots for sweep in _sweeps_inside(root, files)]
    if sweeps := [sweep for sweep in found if Path(sweep).resolve() not in named]:
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
