"""A sweep as one Parquet file: what its runs recorded and what defines them, to be shared.

One row per run. What is in the run's files stands there as it is: nothing is lost but weights,
checkpoints and predictions. Where records are read, the file stands for the sweep's folder.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from domainbed.core.files import cache_folder, file_digest, written_aside
from domainbed.errors import UserError

SUFFIX = ".parquet"

_VERSION = "1"
_TEXTS = {
    "results": "results.jsonl",
    "spec": "run.json",
    "environment": "environment.json",
    "error": "err.txt",
    "done": "done",
}
"""The columns that hold files of a run, whole."""
_KEYS = ("dataset", "algorithm", "test_envs", "hparams_seed", "trial_seed")
"""The columns that repeat fields of a run.json, to look for runs."""
_OF_SWEEP = ("plan.json", "sweep.yaml")
_ROWS_AT_ONCE = 500
_NAME = re.compile(r"[\w.+-]*\w[\w.+-]*", re.ASCII)


def write_export(root: Path, folders: Sequence[Path], file: Path) -> None:
    """Writes the runs in `folders`, which are a sweep's, into one file.

    Raises:
        UserError: the file cannot be written.
    """
    about = {name: _text(root / name) for name in _OF_SWEEP if (root / name).is_file()}
    metadata = {"domainbed_export": _VERSION, "domainbed_files": json.dumps(about)}
    schema = pa.schema(
        [
            ("run", pa.string()),
            *((name, pa.string()) for name in ("dataset", "algorithm")),
            ("test_envs", pa.list_(pa.int64())),
            *((name, pa.int64()) for name in ("hparams_seed", "trial_seed")),
            *((name, pa.string()) for name in _TEXTS),
        ],
        metadata,
    )
    try:
        with (
            written_aside(file) as aside,
            pq.ParquetWriter(aside, schema, compression="zstd") as writer,
        ):
            for begin in range(0, len(folders), _ROWS_AT_ONCE):
                rows = [_row(folder) for folder in folders[begin : begin + _ROWS_AT_ONCE]]
                writer.write_table(pa.Table.from_pylist(rows, schema=schema))
    except OSError as error:
        raise UserError(f"{file} cannot be written ({error.strerror}): choose another") from error


def _row(folder: Path) -> dict[str, Any]:
    texts = {column: _text(folder / name) for column, name in _TEXTS.items()}
    try:
        spec = json.loads(texts["spec"] or "{}")
        keys = {name: spec.get(name) for name in _KEYS} if isinstance(spec, dict) else {}
    except ValueError:
        keys = {}
    return {"run": folder.name, **keys, **texts}


def _text(file: Path) -> str | None:
    if file.is_symlink() or not file.is_file():
        return None
    return file.read_text(encoding="utf-8", errors="replace")


def unpacked(file: Path) -> Path:
    """The folder of the sweep in a file, unpacked once into the cache beside the file.

    Raises:
        UserError: the file holds no sweep, or nothing can be written there.
    """
    if not file.is_file():
        raise UserError(f"{str(file)!r} does not exist: name a sweep folder, or an exported sweep")
    folder = cache_folder(file.parent) / "exports" / file_digest(file)[:32] / file.stem
    if folder.is_dir():
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as aside:
            _unpack(file, Path(aside) / file.stem)
            os.replace(Path(aside) / file.stem, folder)
    except OSError as error:
        if not folder.is_dir():  # no other process was faster
            raise UserError(
                f"{file} cannot be unpacked in {folder.parent} ({error.strerror}): name a folder "
                "that can be written with DOMAINBED_CACHE_DIR"
            ) from error
    return folder


def _unpack(file: Path, root: Path) -> None:
    try:
        with pq.ParquetFile(file) as content:
            metadata = content.schema_arrow.metadata or {}
            if metadata.get(b"domainbed_export") != _VERSION.encode():
                raise UserError(
                    f"{file} holds no sweep that this version exported: export it again, with "
                    "`domainbed sweep export`"
                )
            about = json.loads(metadata[b"domainbed_files"])
            _write(root, {name: about.get(name) for name in _OF_SWEEP})
            for batch in content.iter_batches(_ROWS_AT_ONCE):
                for row in batch.to_pylist():
                    _write(root / _safe(file, row["run"]), {n: row[c] for c, n in _TEXTS.items()})
    except (pa.ArrowException, ValueError, LookupError, TypeError, AttributeError) as error:
        raise UserError(f"{file} is damaged ({type(error).__name__}): get it again") from error


def _safe(file: Path, name: Any) -> str:
    """A run's name, which must be a plain one: the file may be a stranger's."""
    if not isinstance(name, str) or not _NAME.fullmatch(name) or name in _OF_SWEEP:
        raise UserError(f"{file} is damaged (a run is called {name!r}): get it again")
    return name


def _write(folder: Path, texts: Mapping[str, str | None]) -> None:
    folder.mkdir(exist_ok=True)
    for name, text in texts.items():
        if text is not None:
            (folder / name).write_text(text, encoding="utf-8")
