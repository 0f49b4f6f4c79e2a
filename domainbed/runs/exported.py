"""A sweep as one Parquet file: what its runs recorded and what defines them, to be shared.

One row per run, done or not, in the order of the plan. `content` says what is in the run's files as
one text of JSON, with what all its records share once; it is null of a run that has not begun.
`provisional` says whether nobody from outside had checked the method when it was written.
Nothing is lost but weights, checkpoints, predictions, what was printed, and what only means
something on the machine that made it: its name, and where its folders are.

Where records are read, the file stands for the sweep's folder: it is unpacked into packs, see
`runs.packed`, and what is not done into folders. One digest is of everything.
"""

import json
import os
import re
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from domainbed.core.files import (
    CHANGED,
    cache_folder,
    digest_of,
    file_digest,
    read_sealed_json,
    sealed_json,
    sealed_yaml,
    write_text,
    written_aside,
)
from domainbed.core.names import is_provisional
from domainbed.core.settings import read_fields
from domainbed.core.text_table import printable
from domainbed.errors import UserError, log
from domainbed.runs.batches import read_batch
from domainbed.runs.folder import RunFolder, seal_of
from domainbed.runs.packed import FOLDER as PACKS
from domainbed.runs.packed import MOST, pack_of, text_of, write_pack
from domainbed.runs.results_file import parse_lines

SUFFIX = ".parquet"

Row = dict[str, Any]

_VERSION = "3"
_PLAN, _CONFIG = "plan.json", "sweep.yaml"
# The columns that say which run it is, as the plan does.
_KEYS = ("dataset", "algorithm", "test_envs", "hparams_seed", "trial_seed", "steps")
_SCHEMA = pa.schema(
    [
        *((name, pa.string()) for name in ("run", "dataset", "algorithm")),
        ("test_envs", pa.list_(pa.int64())),
        *((name, pa.int64()) for name in ("hparams_seed", "trial_seed", "steps")),
        ("planned", pa.bool_()),
        ("provisional", pa.bool_()),
        ("content", pa.string()),
    ]
)
_SHARED = ("args", "hparams")  # what the records of a run have in common
# Fields that are left out; a run's id is its name.
_OF_MACHINE = {"output_dir", "data_dir", "launcher", "host", "place", "run_id"}
# What is before the name in an absolute path, in JSON.
_FOLDERS = re.compile(r'(?<=[":])/(?!/)(?:[^"\\/]+/)*(?=\w)')
_LEVEL = 12  # of the compression: half a second for 1,000 runs
_PAGE = 2**27  # bytes: texts are compressed together with those that they are like
_NAME = re.compile(r"[\w.+-]*\w[\w.+-]*", re.ASCII)


def write_export(root: Path, folders: Iterable[Path], file: Path) -> int:
    """Writes the runs in `folders`, which are a sweep's, and its plan into one file.

    Runs whose records are damaged are left out, with a warning.

    Returns:
        how many runs were written.

    Raises:
        UserError: the file cannot be written, or every run is damaged.
    """
    plan = read_sealed_json(root / _PLAN) if (root / _PLAN).is_file() else {}
    planned = plan.pop("runs", {})
    config, _ = read_fields(root / _CONFIG if (root / _CONFIG).is_file() else None)
    about = _as_text({"plan": plan, "config": _without(config)})
    contents = _contents(folders)
    rows = [
        _row(run, contents.get(run), planned.get(run))
        for run in dict.fromkeys([*planned, *contents])
    ]
    metadata = {
        "domainbed_export": _VERSION,
        "domainbed_sweep": about,
        "domainbed_digest": _digest(about, rows),
    }
    table = pa.Table.from_pylist(rows, schema=_SCHEMA.with_metadata(metadata))
    try:
        with written_aside(file) as aside:
            pq.write_table(
                *(table, aside),
                compression="zstd",
                compression_level=_LEVEL,
                data_page_size=_PAGE,
                use_dictionary=["dataset", "algorithm"],
                write_statistics=False,  # which would repeat whole texts
            )
    except OSError as error:
        raise UserError(f"{file} cannot be written ({error.strerror}): choose another") from error
    return len(contents)


def _contents(folders: Iterable[Path]) -> dict[str, dict[str, Any]]:
    """What is in the files of each run that is not damaged, by its name."""
    found, damages = {}, []
    # Each pack is read once.
    for folder in map(RunFolder, sorted(folders, key=lambda folder: str(pack_of(folder)))):
        try:
            found[folder.path.name] = _content(folder)
        except UserError as error:
            log.warning("warning: %s; the run is left out", printable(error))
            damages.append(error)
    if damages and not found:
        raise damages[0]
    return found


def _content(folder: RunFolder) -> dict[str, Any]:
    """What is in the files of a run.

    Raises:
        UserError: one of them is damaged.
    """
    text, records = text_of(folder.path, folder.results.name), []
    if text:
        read_batch([folder.results])  # which raises
        records = [dict(record) for _, record in parse_lines(folder.results, text)]
    for record in records:
        record["args"] = _without(record["args"])
    shared = {name: records[0][name] for name in _SHARED if records and name in records[0]}
    environment = _without(folder.read_json(folder.environment) or {})
    if "resumed" in environment:
        environment["resumed"] = list(map(_without, environment["resumed"]))
    return {
        "spec": _without(folder.read_json(folder.spec) or {}),
        "environment": environment,
        "shared": shared,
        "records": [
            {name: v for name, v in record.items() if name not in shared or v != shared[name]}
            for record in records
        ],
        "is_done": folder.is_done(),
        "error": folder.last_error(),
    }


def _without(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if name not in _OF_MACHINE}


def _as_text(content: Any) -> str:
    return _FOLDERS.sub("", json.dumps(content, sort_keys=True))


def _row(run: str, content: Mapping[str, Any] | None, planned: Mapping[str, Any] | None) -> Row:
    known = planned or (content["spec"] if content else {})
    return {
        "run": run,
        **{name: known.get(name) for name in _KEYS},
        "planned": planned is not None,
        "provisional": is_provisional(str(known.get("algorithm"))),
        "content": content and _as_text(content),
    }


def _digest(about: str, rows: Iterable[Row]) -> str:
    texts = (json.dumps(row, sort_keys=True) for row in rows)
    return digest_of("".join([about, *texts]).encode())


def unpacked(file: Path) -> Path:
    """The folder of the sweep in a file, unpacked once into the cache beside the file.

    Raises:
        UserError: the file holds no sweep, or nothing can be written there.
    """
    if not file.is_file():
        raise UserError(
            f"{str(file)!r} {'is not a file' if file.exists() else 'does not exist'}: name an "
            "exported sweep"
        )
    folder = cache_folder(file.parent) / "exports" / file_digest(file)[:32] / file.stem
    try:
        if not folder.is_dir():
            unpack(file, folder)
    except OSError as error:
        if not folder.is_dir():  # no other process was faster
            raise UserError(
                f"{file} cannot be unpacked in {folder.parent} ({error.strerror}): name a folder "
                "that can be written with DOMAINBED_CACHE_DIR"
            ) from error
    return folder


def unpack(file: Path, root: Path) -> None:
    """Writes the sweep in a file into a folder, which must be new or empty.

    Raises:
        UserError: the file holds no sweep, or is damaged.
        OSError: the folder cannot be written, or is not empty.
    """
    about, rows = _read(file)
    root.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=root.parent) as aside:
        made = Path(aside) / root.name
        (made / PACKS).mkdir(parents=True)
        if about["plan"]:
            planned = {row["run"]: {n: row[n] for n in _KEYS} for row in rows if row["planned"]}
            write_text(made / _PLAN, sealed_json({**about["plan"], "runs": planned}))
        if about["config"]:
            write_text(
                made / _CONFIG, sealed_yaml(yaml.safe_dump(about["config"], sort_keys=False))
            )
        for first in range(0, len(rows), MOST):
            texts = {
                row["run"]: _texts(row["run"], json.loads(row["content"]))
                for row in rows[first : first + MOST]
                if row["content"]
            }
            if done := {run: each for run, each in texts.items() if "done" in each}:
                write_pack(made, done)
            for run in texts.keys() - done.keys():
                (made / run).mkdir()
                for name, text in texts[run].items():
                    (made / run / name).write_bytes(text)
        os.replace(made, root)


def _read(file: Path) -> tuple[dict[str, Any], list[Row]]:
    """What a file says of the sweep, and its rows.

    Raises:
        UserError: it holds no sweep, or is damaged.
    """
    try:
        with pq.ParquetFile(file) as content:
            metadata = content.schema_arrow.metadata or {}
            if metadata.get(b"domainbed_export", b"").decode() != _VERSION:
                raise UserError(
                    f"{file} holds no sweep that this version exported: export it again, with "
                    "`domainbed sweep export`"
                )
            about, rows = metadata[b"domainbed_sweep"].decode(), content.read().to_pylist()
        if _digest(about, rows) != metadata[b"domainbed_digest"].decode():
            raise ValueError(CHANGED)
        for name in (row["run"] for row in rows):  # a stranger's may lead out of the folder
            if not _NAME.fullmatch(name) or name in (_PLAN, _CONFIG, PACKS):
                raise ValueError(f"a run is called {name!r}")
        return json.loads(about), rows
    except (
        pa.ArrowException,
        OSError,
        ValueError,
        LookupError,
        TypeError,
        AttributeError,
    ) as error:
        if isinstance(error, OSError) and error.errno is not None:  # the disk's, and not Arrow's
            raise
        raise UserError(f"{file} is damaged ({type(error).__name__}): get it again") from error


def _texts(run: str, content: Mapping[str, Any]) -> dict[str, bytes]:
    """The files of a run, by their names."""
    spec, environment = content["spec"], content["environment"]
    lines = [{**content["shared"], **record} for record in content["records"]]
    for line in lines if spec else ():
        line["args"]["run_id"] = run
    records = "".join(json.dumps(line, sort_keys=True) + "\n" for line in lines)
    texts = {
        "results.jsonl": records,
        "run.json": spec and sealed_json({**spec, "run_id": run}, indent=2, sort_keys=True),
        "environment.json": environment and sealed_json(environment, indent=2),
        "err.txt": content["error"] and f"{content['error']}\n",
        "done": content["is_done"] and f"done\n{seal_of(records.encode())}\n",
    }
    return {name: text.encode() for name, text in texts.items() if text}
