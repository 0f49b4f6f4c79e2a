"""A sweep as one Parquet file: what its runs recorded and what defines them, to be shared.

One row per run. What is in the run's files stands there as it is: nothing is lost but weights,
checkpoints and predictions. Where records are read, the file stands for the sweep's folder. The
metadata and each row have a digest; a row's is also of its number and of the metadata.
"""

from __future__ import annotations

import json
import logging
import os
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from domainbed.core.digests import CHANGED, digest_of
from domainbed.core.files import cache_folder, file_digest, written_aside
from domainbed.errors import UserError
from domainbed.runs.folder import read_records
from domainbed.runs.packed import pack_of, text_of

log = logging.getLogger(__name__)

SUFFIX = ".parquet"

_VERSION, _WITHOUT_DIGESTS = "2", "1"
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
_NO_EXPORT = (ValueError, LookupError, TypeError, AttributeError)
_NAME = re.compile(r"[\w.+-]*\w[\w.+-]*", re.ASCII)


def write_export(root: Path, folders: Sequence[Path], file: Path) -> int:
    """Writes the runs in `folders`, which are a sweep's, into one file.

    Runs whose records are damaged are left out, with a warning.

    Returns:
        how many runs were written.

    Raises:
        UserError: the file cannot be written, or every run is damaged.
    """
    # Each pack is read once.
    folders = _undamaged(sorted(folders, key=lambda folder: str(pack_of(folder))))
    texts = {name: _text(root / name) for name in _OF_SWEEP if (root / name).is_file()}
    about = json.dumps({**texts, "runs": len(folders)})
    digest = digest_of(about.encode())
    metadata = {
        "domainbed_export": _VERSION,
        "domainbed_files": about,
        "domainbed_digest": digest,
    }
    schema = pa.schema(
        [
            ("run", pa.string()),
            *((name, pa.string()) for name in ("dataset", "algorithm")),
            ("test_envs", pa.list_(pa.int64())),
            *((name, pa.int64()) for name in ("hparams_seed", "trial_seed")),
            *((name, pa.string()) for name in _TEXTS),
            ("digest", pa.string()),
        ],
        metadata,
    )
    try:
        with (
            written_aside(file) as aside,
            pq.ParquetWriter(aside, schema, compression="zstd") as writer,
        ):
            for begin in range(0, len(folders), _ROWS_AT_ONCE):
                some = enumerate(folders[begin : begin + _ROWS_AT_ONCE], begin)
                rows = [_sealed(_row(folder), number, digest) for number, folder in some]
                writer.write_table(pa.Table.from_pylist(rows, schema=schema))
    except OSError as error:
        raise UserError(f"{file} cannot be written ({error.strerror}): choose another") from error
    return len(folders)


def _undamaged(folders: Sequence[Path]) -> list[Path]:
    found, damages = [], []
    for folder in folders:
        try:
            if _text(folder / "results.jsonl") is not None:
                read_records(folder)
            found.append(folder)
        except UserError as error:
            log.warning("warning: %s; the run is left out", error)
            damages.append(error)
    if damages and not found:
        raise damages[0]
    return found


def _sealed(row: dict[str, Any], number: int, digest: str) -> dict[str, Any]:
    """A row with its digest, where `digest` is that of the metadata."""
    content = json.dumps([digest, number, row], sort_keys=True)
    return {**row, "digest": digest_of(content.encode())}


def _row(folder: Path) -> dict[str, Any]:
    texts = {column: _text(folder / name) for column, name in _TEXTS.items()}
    try:
        spec = json.loads(texts["spec"] or "{}")
        keys = {name: spec.get(name) for name in _KEYS} if isinstance(spec, dict) else {}
    except ValueError:
        keys = {}
    return {"run": folder.name, **keys, **texts}


def _text(file: Path) -> str | None:
    content = None if file.is_symlink() else text_of(file.parent, file.name)
    return None if content is None else content.decode("utf-8", errors="replace")


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
            version = metadata.get(b"domainbed_export", b"").decode()
            if version not in (_VERSION, _WITHOUT_DIGESTS):
                raise UserError(
                    f"{file} holds no sweep that this version exported: export it again, with "
                    "`domainbed sweep export`"
                )
            about = json.loads(metadata[b"domainbed_files"])
            _write(root, {name: about.get(name) for name in _OF_SWEEP})
            if version == _WITHOUT_DIGESTS:
                log.warning("warning: %s has no digests: damage to it may not be noticed", file)
                rows: Iterable[dict[str, Any]] = _rows(content)
            else:
                rows = _compared(content, metadata, about["runs"])
            for row in rows:
                _write(root / _safe(file, row["run"]), {n: row[c] for c, n in _TEXTS.items()})
    except (pa.ArrowException, OSError, *_NO_EXPORT) as error:
        if isinstance(error, OSError) and error.errno is not None:  # the disk's, and not Arrow's
            raise
        raise UserError(f"{file} is damaged ({type(error).__name__}): get it again") from error


def _rows(content: pq.ParquetFile) -> Iterator[dict[str, Any]]:
    for batch in content.iter_batches(_ROWS_AT_ONCE):
        yield from batch.to_pylist()


def _compared(
    content: pq.ParquetFile, metadata: Mapping[bytes, bytes], runs: int
) -> Iterator[dict[str, Any]]:
    """The rows, compared with their digests.

    Raises:
        ValueError: the metadata or a row has another, or there are not as many rows as `runs`.
    """
    digest, count = metadata[b"domainbed_digest"].decode(), 0
    if digest != digest_of(metadata[b"domainbed_files"]):
        raise ValueError(CHANGED)
    for row in _rows(content):
        plain = {name: value for name, value in row.items() if name != "digest"}
        if _sealed(plain, count, digest) != row:
            raise ValueError(CHANGED)
        yield row
        count += 1
    if count != runs:
        raise ValueError(CHANGED)


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
