"""What was read of a large sweep is kept, so that finished runs are parsed once.

Kept are finished runs alone, by the times, size and inode of their files: what is changed or
replaced is read anew. A damaged or foreign cache counts as none.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from domainbed.core import names
from domainbed.core.files import cache_folder, written_aside
from domainbed.reporting import averages, chunk, results_file, stages
from domainbed.reporting.chunk import Chunk, Numbers, assembled, read_chunk
from domainbed.runs import record_keys

LEAST_FILES = 500
"""Of a folder whose runs are kept: fewer are read in no time."""

_AT_ONCE = 250  # files whose records are in memory as objects
_SETTLED = 2e9  # ns: a file changed since could change again without another time on it
_MODULES = (chunk, results_file, stages, averages, record_keys, names)  # what is read goes through
_CODE = (__file__, *(str(module.__file__) for module in _MODULES))

Stamps = dict[Path, list[list[int]]]


def read_files(root: Path, files: Sequence[Path], on_file: Callable[[], None]) -> list[Chunk]:
    """The records of a folder's files, out of its cache where that has them.

    Args:
        root: the folder.
        files: named results.jsonl, in it.
        on_file: called for each file.

    Raises:
        UserError: see `read_chunk`.
    """
    file = _cache_file(root) if len(files) >= LEAST_FILES else None
    if file is None:
        return list(_read(files, on_file))
    stamps = _stamps(files)
    kept = _load(file, root, stamps)
    known = set(kept.files) if kept else set()
    for _ in known:
        on_file()
    anew = [path for path in files if path not in known]
    chunks = [*([kept] if kept else []), *_read(anew, on_file)]
    worth = set(filter(_is_settled(stamps), anew))
    if worth:
        kept_now = known | worth
        _save(file, root, assembled(chunks, [p for p in files if p in kept_now]), stamps)
    return chunks


def _read(files: Sequence[Path], on_file: Callable[[], None]) -> Iterator[Chunk]:
    for begin in range(0, len(files), _AT_ONCE):
        yield read_chunk(files[begin : begin + _AT_ONCE], on_file)


def _cache_file(root: Path) -> Path | None:
    """Nowhere in a folder that is somebody else's, or not of a sweep of this project."""
    digest = hashlib.sha256(os.fsencode(root.resolve())).hexdigest()[:32]
    file = cache_folder(root) / "records" / f"{digest}.npz"
    if os.environ.get("DOMAINBED_CACHE_DIR"):
        return file
    is_own = (root / "plan.json").is_file() and root.stat().st_uid == os.geteuid()
    return file if is_own and os.access(root, os.W_OK) else None


def _stamps(files: Sequence[Path]) -> Stamps:
    """What tells a change of a file, or of the run.json beside it.

    Taken before the files are read: a change while that happens is noticed the next time.
    """
    folders = [os.path.dirname(file) for file in files]
    return {
        file: [_stamp(f"{folder}/results.jsonl"), _stamp(f"{folder}/run.json")]
        for file, folder in zip(files, folders, strict=True)
    }


def _is_settled(stamps: Stamps) -> Callable[[Path], bool]:
    """Whether a file's run is finished, and a change would show in its stamp."""
    now = time.time_ns()

    def is_settled(file: Path) -> bool:
        changed = max(max(stamp[:2]) for stamp in stamps[file] if stamp)
        return now - changed > _SETTLED and file.with_name("done").exists()

    return is_settled


def _stamp(path: Path | str) -> list[int]:
    try:
        told = os.stat(path)
    except FileNotFoundError:
        return []
    return [told.st_mtime_ns, told.st_ctime_ns, told.st_size, told.st_ino]


def _version() -> str:
    """Of all code that the cached records come from."""
    digest = hashlib.sha256()
    for file in _CODE:
        digest.update(Path(file).read_bytes())
    return digest.hexdigest()


def _save(file: Path, root: Path, whole: Chunk, stamps: Stamps) -> None:
    """Writes a chunk; where that cannot be, there is no cache."""
    names = list(whole.numbers)
    runs = [{name: run[name] for name in ("args", "hparams", "num_domains")} for run in whole.runs]
    told = {
        "version": _version(),
        "files": {str(path.relative_to(root)): stamps[path] for path in whole.files},
        "runs": runs,
        "names": names,
    }
    arrays = {
        "told": np.frombuffer(json.dumps(told).encode(), dtype=np.uint8),
        "run_file": whole.run_file,
        "record_run": whole.record_run,
        "step": whole.step,
        "diverged": whole.diverged,
    }
    for number, name in enumerate(names):
        arrays[f"records{number}"], arrays[f"values{number}"] = whole.numbers[name]
    with suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        with written_aside(file) as aside, aside.open("wb") as stream:
            np.savez(stream, **arrays)  # type: ignore[arg-type]


def _load(file: Path, root: Path, stamps: Stamps) -> Chunk | None:
    """The kept runs that are unchanged; None if the file is none of this version, or damaged."""
    try:
        with np.load(file, allow_pickle=False) as stored:
            arrays = dict(stored)  # the archive's checksums are compared here
        told = results_file.decoded(arrays["told"].tobytes())
        if told["version"] != _version():
            return None
        whole = _chunk(root, told, arrays, stamps)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
    paths = zip(whole.files, told["files"].values(), strict=True)
    same = {path for path, stamp in paths if stamps.get(path) == stamp}
    return assembled([whole], [path for path in whole.files if path in same])


def _chunk(
    root: Path, told: dict[str, Any], arrays: dict[str, np.ndarray], known: Iterable[Path]
) -> Chunk:
    """`known` are paths that are made, which takes a while for many thousands."""
    made = {str(path): path for path in known}
    texts = [f"{root}/{name}" for name in told["files"]]
    files = [made.get(text) or Path(text) for text in texts]
    folders = list(map(os.path.dirname, files))  # quicker than by `Path.parent`
    runs = [
        {"folder": folders[position], **results_file.run_facts(**run)}
        for run, position in zip(told["runs"], arrays["run_file"].tolist(), strict=True)
    ]
    numbers = {
        name: Numbers(arrays[f"records{number}"], arrays[f"values{number}"])
        for number, name in enumerate(told["names"])
    }
    names = ("run_file", "record_run", "step", "diverged")
    return Chunk(files, runs, **{name: arrays[name] for name in names}, numbers=numbers)
