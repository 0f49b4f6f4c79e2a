"""Loading: from folders of runs to records.

Files are read in batches, and finished runs of large sweeps are parsed once. A sweep's cache holds
these alone, with the times, size and inode of their files: what has changed or was replaced is read
again. A damaged or foreign cache counts as none.
"""

import hashlib
import itertools
import json
import os
import stat
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from domainbed.config.baselines import PREFIX, baseline_files
from domainbed.core.files import cache_folder, written_aside
from domainbed.core.text_table import count, printable
from domainbed.errors import UserError, log
from domainbed.runs.batches import Batch, joined, read_batch
from domainbed.runs.exported import SUFFIX, unpacked
from domainbed.runs.folder import RunFolder
from domainbed.runs.packed import is_packed, pack_of, packed_runs, title_of
from domainbed.runs.records import RUN_KEYS, Records
from domainbed.runs.results_file import parse_json
from domainbed.runs.variants import told_apart

RECORDS_FILE = "results.jsonl"
PLAN_FILE = "plan.json"

Folders = str | Path | Sequence[str | Path]
Progress = Callable[[int, int], None]

LEAST_FILES = 500  # of a folder whose runs are cached: fewer are read quickly

_NAMED = 5  # of the runs that are left out
_BATCH = 250  # files whose records are in memory as objects
_SETTLED = 2e9  # ns: a younger file could change again and keep its times
# The files of all code that a cache comes from.
_CODE = [
    str(sys.modules[f"domainbed.{name}"].__file__)
    for name in (
        *("runs.load", "runs.batches", "core.files", "runs.packed", "runs.folder"),
        *("runs.results_file", "core.names"),
    )
]

_DIGEST = 32  # bytes

# By folder, what shows a change of its files; of a packed run, the digest of the pack.
Stamps = Mapping[str, Any]


def load_records(folders: Folders, progress: Progress | None = None) -> Records:
    """Reads the records of all runs in one or several folders, DomainBed's own included.

    Args:
        folders: a sweep folder (of run folders), a run folder, an exported sweep, a folder of
            such, or a list of these.
        progress: called with (run folders read, run folders in all).

    Returns:
        The runs in the order of their folders' names, and their numbers. Links that lead out of
        a folder are not followed, and sweeps in a folder of sweeps not read, with a warning.

    A run is left out, with a warning, whose records do not have the digest that they were written
    with, or cannot be what a run recorded: a line is damaged, lacks a key or holds an accuracy
    outside [0, 1], or a run.json names another run. A last line that is cut off is skipped, with
    a warning, where the run is not finished.

    Raises:
        UserError: a folder does not exist or holds no records, or every run is left out.
    """
    roots = as_paths(folders)
    files_of: dict[Path, Path] = {}
    for root in roots:
        files_of |= {file: root for file in record_files(root) if file not in files_of}
    files, counted = list(files_of), itertools.count()

    def on_file() -> None:
        if progress:
            progress(next(counted) + 1, len(files))

    by_root = itertools.groupby(files, key=files_of.__getitem__)
    damages: list[UserError] = []
    batch = joined([read_files(root, list(own), on_file, damages) for root, own in by_root])
    if not batch.runs:
        if damages:
            raise damages[0]
        why = _failures(roots) or "wait for the first checkpoint"
        raise UserError(f"no complete record in {_join(roots)}: {why}")
    records = batch.as_records()
    records = replace(records, runs=told_apart(records.runs))
    _warn_of_what_is_left_out(roots, files, damages)
    _warn_of_what_counts(records, files)
    _warn_of_duplicates(records)
    return records


def as_paths(folders: Folders) -> list[Path]:
    """One or several folders as a list; an exported sweep as the folder that it holds.

    `baseline:NAME` stands for the exports of a released baseline, a folder that has exports and no
    records for these.

    Raises:
        UserError: a name is empty or of no baseline, or a file holds no sweep.
    """
    several = [folders] if isinstance(folders, (str, Path)) else list(folders)
    if "" in several:
        raise UserError("the name of a folder is empty: name a sweep folder or a run folder")
    paths: list[Path] = []
    for each in map(str, several):
        released = each.startswith(PREFIX)
        found = baseline_files(each.removeprefix(PREFIX)) if released else _exports_in(Path(each))
        paths += found or [Path(each)]
    return [unpacked(path) if path.suffix == SUFFIX else path for path in paths]


def _exports_in(folder: Path) -> list[Path]:
    """None of a folder that has records: an export in it may be a part of them."""
    patterns = PLAN_FILE, RECORDS_FILE, f"*/{RECORDS_FILE}"
    recorded = any(found for pattern in patterns for found in folder.glob(pattern))
    return [] if recorded else sorted(folder.glob(f"*{SUFFIX}"))


def run_folders(root: Path) -> list[Path]:
    """The folders of `root` that may be runs, by name; `root` itself first if it is a run.

    Raises:
        UserError: `root` is not a folder.
    """
    if is_packed(root):
        return [root]
    if not root.is_dir():
        raise UserError(
            f"{str(root)!r} {'is not a folder' if root.exists() else 'does not exist'}: name a "
            "sweep folder or a run folder"
        )
    with os.scandir(root) as entries:  # far fewer system calls than by `Path.iterdir`
        found = [entry for entry in entries if entry.is_dir()]
    names = {entry.name for entry in found if not entry.is_symlink() or _stays(root, entry)}
    inside = [root / name for name in sorted(names | packed_runs(root).keys())]
    return [root, *inside] if (root / RECORDS_FILE).is_file() else inside


def record_files(root: Path) -> list[Path]:
    """The files of records in `root`.

    Raises:
        UserError: there is no such file.
    """
    files = [folder / RECORDS_FILE for folder in run_folders(root)]
    found = [file for file in files if pack_of(file.parent) or _is_own_file(root, file)]
    if not found:
        sweeps = _sweeps_inside(root)
        why = _failures([root]) or (
            _not_read(sweeps)
            if sweeps
            else f"neither it nor a folder in it holds {RECORDS_FILE}, and it has no exports: "
            f"of a folder of sweeps, name these ({root}/*)"
        )
        raise UserError(f"no records in {str(root)!r}: {why}")
    return found


def _sweeps_inside(root: Path, files: Iterable[Path] = ()) -> list[Path]:
    """The sweeps in a folder that is not a sweep itself; `files` are the records found in it."""
    # What lies in a sweep is its own, such as its new trials; a packed run has no folder.
    if (root / PLAN_FILE).is_file() or not root.is_dir():
        return []
    runs = {file.parent for file in files}
    return sorted(p for p in root.iterdir() if p not in runs and (p / PLAN_FILE).is_file())


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
    failed = [f"{folder.path}: {error}" for folder in folders if (error := folder.last_error())]
    return f"{count(len(failed), 'run')} failed, such as {failed[0]}" if failed else ""


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


def _warn_of_what_is_left_out(
    roots: Sequence[Path], files: Sequence[Path], damages: Sequence[UserError]
) -> None:
    named = {root.resolve() for root in roots}
    found = [sweep for root in roots for sweep in _sweeps_inside(root, files)]
    if sweeps := [sweep for sweep in found if sweep.resolve() not in named]:
        log.warning("warning: %s", _not_read(sweeps))
    for damage in damages[:_NAMED]:
        log.warning("warning: %s; the run is left out", printable(damage))
    if (more := len(damages) - _NAMED) > 0:
        log.warning("warning: %d more runs are left out, for such reasons", more)


def _warn_of_what_counts(records: Records, files: Sequence[Path]) -> None:
    """Though it has no digest, or is not finished."""
    if unsealed := int((~records.runs["has_digest"]).sum()):
        log.warning(
            "warning: %d of %d runs have no digest, as those of DomainBed and of earlier versions: "
            "damage to their records may not be noticed",
            unsealed, len(records.runs),
        )  # fmt: skip
    unfinished = sum(
        not (os.path.exists(f"{file.parent}/done") or pack_of(file.parent)) for file in files
    )
    # Records of other programs may come without any mark of the end.
    marked = unfinished < len(files) or any(file.with_name("run.json").exists() for file in files)
    if unfinished and marked:
        log.warning(
            "warning: %d of %d runs are not finished: their records so far count as they are",
            unfinished, len(files),
        )  # fmt: skip


def _warn_of_duplicates(records: Records) -> None:
    runs = records.runs[records.runs.duplicated(RUN_KEYS, keep=False)]
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


# ---- files of records ----


def read_files(
    root: Path,
    files: Sequence[Path],
    on_file: Callable[[], None],
    damages: list[UserError] | None = None,
) -> Batch:
    """The records of a folder's files, from its cache where that has them.

    Args:
        root: the folder.
        files: named results.jsonl, in it.
        on_file: called for each file.
        damages: see `read_batch`.

    Raises:
        UserError: see `read_batch`.
    """
    cache = _cache_file(root) if len(files) >= LEAST_FILES else None
    folders = {str(file.parent): rank for rank, file in enumerate(files)}
    # Taken before the files are read: a change during the reading is noticed the next time.
    stamps = {folder: _stamps(folder) for folder in folders} if cache else {}
    parts = [kept] if cache and (kept := _load(cache, root, stamps)) else []
    known = {run["folder"] for batch in parts for run in batch.runs}
    for _ in known:
        on_file()
    new = [file for file, folder in zip(files, folders, strict=True) if folder not in known]
    new.sort(key=lambda file: str(pack_of(file.parent)))  # each pack is read once
    for start in range(0, len(new), _BATCH):
        parts.append(read_batch(new[start : start + _BATCH], on_file, damages))
    whole = joined(parts).only(folders)
    read = {run["folder"] for run in whole.runs} - known
    finished = {f for f in read if cache and _is_finished(f, stamps[f])}
    if cache and finished:
        _save(cache, root, whole.only({f: folders[f] for f in known | finished}), stamps)
    return whole


# ---- the cache ----


def _cache_file(root: Path) -> Path | None:
    """None in a folder of somebody else, or of no sweep of this project."""
    digest = hashlib.sha256(os.fsencode(root.resolve())).hexdigest()[:32]
    file = cache_folder(root) / "records" / f"{digest}.arrow"
    if os.environ.get("DOMAINBED_CACHE_DIR"):
        return file
    is_own = (root / PLAN_FILE).is_file() and root.stat().st_uid == os.geteuid()
    return file if is_own and os.access(root, os.W_OK) else None


def _stamps(folder: str) -> Any:
    with suppress(FileNotFoundError):  # of a pack whose runs were taken out
        if pack := pack_of(Path(folder)):
            return title_of(pack)["texts"]
    found = []
    for name in ("results.jsonl", "run.json", "environment.json"):
        with suppress(FileNotFoundError):
            status = os.stat(f"{folder}/{name}")
            found.append([status.st_mtime_ns, status.st_ctime_ns, status.st_size, status.st_ino])
    return found


def _is_finished(folder: str, stamps: Any) -> bool:
    """Whether a run is finished, and a change of its files would show in their stamps."""
    if isinstance(stamps, str):
        return True
    changed = max((max(stamp[:2]) for stamp in stamps), default=0)
    return time.time_ns() - changed > _SETTLED and os.path.exists(f"{folder}/done")


def _digest(content: bytes | memoryview) -> bytes:
    """Of a cache's content, and of all code that it comes from."""
    digest = hashlib.sha256(content)
    for file in _CODE:
        digest.update(Path(file).read_bytes())
    return digest.digest()


def _save(file: Path, root: Path, batch: Batch, stamps: Stamps) -> None:
    """Writes a batch; where that fails, there is no cache."""
    folders = [run["folder"] for run in batch.runs]
    about = {
        "folders": [os.path.relpath(folder, root) for folder in folders],
        "stamps": [stamps[folder] for folder in folders],
        "runs": batch.runs,
    }
    values = batch.values.replace_schema_metadata({"about": json.dumps(about)})
    with pa.BufferOutputStream() as stream, pa.ipc.new_stream(stream, values.schema) as writer:
        writer.write_table(values)
    content = stream.getvalue().to_pybytes()
    with suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        with written_aside(file) as aside:
            aside.write_bytes(_digest(content) + content)


def _load(file: Path, root: Path, stamps: Stamps) -> Batch | None:
    """The cached runs that are unchanged; None if the file is of another version, or damaged."""
    stored = file.read_bytes() if file.is_file() else b""
    content = memoryview(stored)[_DIGEST:]
    if stored[:_DIGEST] != _digest(content):
        return None
    values = pa.ipc.open_stream(pa.py_buffer(content)).read_all()
    about = parse_json(values.schema.metadata[b"about"])
    runs = [
        {**run, "folder": str(root / folder), "test_envs": tuple(run["test_envs"])}
        for folder, run in zip(about["folders"], about["runs"], strict=True)
    ]
    same = {
        run["folder"]: 0
        for run, stamp in zip(runs, about["stamps"], strict=True)
        if stamps.get(run["folder"]) == stamp
    }
    return Batch(runs, values).only(same)
