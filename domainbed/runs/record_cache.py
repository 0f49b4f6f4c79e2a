"""Many files of records at once: read in batches, and finished runs of large sweeps parsed once.

A sweep's cache holds its finished runs alone, with the times, size and inode of their files: what
has changed or was replaced is read again. A damaged or foreign cache counts as none.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa

from domainbed.core import names, record_keys
from domainbed.core.files import cache_folder, written_aside
from domainbed.runs import results_file
from domainbed.runs.records import NO_DOMAIN, Records
from domainbed.runs.results_file import Run, parse_json, read_results

LEAST_FILES = 500
"""Of a folder whose runs are cached: fewer are read quickly."""

_BATCH = 250  # files whose records are in memory as objects
_SETTLED = 2e9  # ns: a younger file could change again and keep its times
_CODE = [__file__, *(str(module.__file__) for module in (results_file, record_keys, names))]

_DIGEST = 32  # bytes

Stamps = Mapping[str, list[list[int]]]
"""By folder, what shows a change of its results.jsonl or its run.json."""


class Batch(NamedTuple):
    """The records of some files.

    Attributes:
        runs: the columns of `Records.runs`, file by file.
        values: one row per number: `run` (position in `runs`, ascending), `step`, `key`
            (DomainBed's) and `value`.
    """

    runs: list[Run]
    values: pa.Table

    def only(self, folders: Mapping[str, int]) -> Batch:
        """The runs in these folders, in their order."""
        ranks = np.array([folders.get(run["folder"], -1) for run in self.runs], dtype=int)
        if (ranks >= 0).all() and (np.diff(ranks) >= 0).all():
            return self
        order = np.argsort(ranks, kind="stable")[np.count_nonzero(ranks < 0) :]
        places = np.full(len(ranks), -1)
        places[order] = np.arange(len(order))
        run = places[self.values["run"].to_numpy()]
        rows = np.argsort(run, kind="stable")[np.count_nonzero(run < 0) :]
        values = self.values.take(rows).set_column(0, "run", pa.array(run[rows]))
        return Batch([self.runs[place] for place in order], values)

    def as_records(self) -> Records:
        """The tables that selection and reporting read."""
        keys = self.values["key"].combine_chunks()
        measured = [
            record_keys.parse_record_key(key) or (NO_DOMAIN, "", key)
            for key in keys.dictionary.to_pylist()
        ]
        parsed = pd.DataFrame(measured, columns=["domain", "split", "metric"])
        parsed = parsed.astype({"split": "category", "metric": "category"})
        parsed = parsed.take(keys.indices.to_numpy()).reset_index(drop=True)
        for column in ("split", "metric"):
            parsed[column] = parsed[column].cat.remove_unused_categories()
        others = {name: self.values[name].to_numpy() for name in ("run", "step", "value")}
        values = parsed.assign(**others)[["run", "step", "domain", "split", "metric", "value"]]
        return Records(pd.DataFrame(self.runs), values)


def joined(batches: Sequence[Batch]) -> Batch:
    """The runs of all batches, one batch after the other."""
    offsets = np.cumsum([0, *(len(batch.runs) for batch in batches)])
    parts = [
        values.set_column(0, "run", pa.array(values["run"].to_numpy() + offset))
        for (_, values), offset in zip(batches, offsets)
    ]
    runs = [run for batch in batches for run in batch.runs]
    return Batch(runs, pa.concat_tables(parts).unify_dictionaries())


def read_batch(files: Iterable[tuple[Path, bytes]], on_file: Callable[[], None]) -> Batch:
    """Parses files, given with their contents, and calls `on_file` after each.

    Raises:
        UserError: see `read_results`.
    """
    runs: list[Run] = []
    records: list[tuple[int, int]] = []
    counts: list[int] = []
    keys: list[str] = []
    values: list[float] = []
    for path, content in files:
        for run, step, numbers in read_results(path, content):
            if not runs or run is not runs[-1]:
                runs.append(run)
            records.append((len(runs) - 1, step))
            counts.append(len(numbers))
            keys.extend(numbers)
            values.extend(numbers.values())
        on_file()
    run_and_step = np.repeat(np.array(records, dtype=int).reshape(-1, 2), counts, axis=0)
    columns = {
        "run": run_and_step[:, 0],
        "step": run_and_step[:, 1],
        "key": pa.array(keys, pa.string()).dictionary_encode(),
        "value": _as_floats(values),
    }
    return Batch(runs, pa.table(columns))


def _as_floats(numbers: Sequence[float]) -> np.ndarray:
    try:
        return np.array(numbers, dtype=float)
    except OverflowError:  # an integer beyond all floats, which is infinite when read as text
        return np.array([float(str(number)) for number in numbers])


def read_files(root: Path, files: Sequence[Path], on_file: Callable[[], None]) -> Batch:
    """The records of a folder's files, from its cache where that has them.

    Args:
        root: the folder.
        files: named results.jsonl, in it.
        on_file: called for each file.

    Raises:
        UserError: see `read_batch`.
    """
    cache = _cache_file(root) if len(files) >= LEAST_FILES else None
    folders = {str(file.parent): rank for rank, file in enumerate(files)}
    # Taken before the files are read: a change during the reading is noticed the next time.
    stamps = {folder: _stamps(folder) for folder in folders} if cache else {}
    batches = [kept] if cache and (kept := _load(cache, root, stamps)) else []
    known = {run["folder"] for batch in batches for run in batch.runs}
    for _ in known:
        on_file()
    new = [file for file, folder in zip(files, folders, strict=True) if folder not in known]
    for start in range(0, len(new), _BATCH):
        some = ((file, file.read_bytes()) for file in new[start : start + _BATCH])
        batches.append(read_batch(some, on_file))
    whole = joined(batches).only(folders)
    finished = {f for f, stamp in stamps.items() if f not in known and _is_finished(f, stamp)}
    if cache and finished:
        _save(cache, root, whole.only({f: folders[f] for f in known | finished}), stamps)
    return whole


def _cache_file(root: Path) -> Path | None:
    """None in a folder of somebody else, or of no sweep of this project."""
    digest = hashlib.sha256(os.fsencode(root.resolve())).hexdigest()[:32]
    file = cache_folder(root) / "records" / f"{digest}.arrow"
    if os.environ.get("DOMAINBED_CACHE_DIR"):
        return file
    is_own = (root / "plan.json").is_file() and root.stat().st_uid == os.geteuid()
    return file if is_own and os.access(root, os.W_OK) else None


def _stamps(folder: str) -> list[list[int]]:
    found = []
    for name in ("results.jsonl", "run.json"):
        with suppress(FileNotFoundError):
            status = os.stat(f"{folder}/{name}")
            found.append([status.st_mtime_ns, status.st_ctime_ns, status.st_size, status.st_ino])
    return found


def _is_finished(folder: str, stamps: list[list[int]]) -> bool:
    """Whether a run is finished, and a change of its files would show in their stamps."""
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
    pairs = zip(runs, about["stamps"], strict=True)
    same = {run["folder"]: 0 for run, stamp in pairs if stamps.get(run["folder"]) == stamp}
    return Batch(runs, values).only(same)
