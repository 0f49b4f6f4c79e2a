"""Loading: from folders of runs to one table of records."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

from domainbed.errors import UserError
from domainbed.selection import SELECTION_METHODS

log = logging.getLogger(__name__)

RUN_KEYS = ["dataset", "algorithm", "test_envs", "hparams_seed", "trial_seed"]
RECORDS_FILE = "results.jsonl"

Folders = str | Path | Sequence[str | Path]
Progress = Callable[[int, int], None]


def load_records(folders: Folders, progress: Progress | None = None) -> pd.DataFrame:
    """Reads the records of all runs in one or several folders, DomainBed's own included.

    Args:
        folders: a sweep folder (of run folders), a run folder, or a list of such.
        progress: called with (run folders read, run folders in all).

    Returns:
        One row per record, run folders in the order of their names: `folder` (of the run),
        `line` (in its results.jsonl), `dataset`, `algorithm`, `test_envs` (tuple of int),
        `hparams_seed`, `trial_seed`, `step`, `num_domains`, `env{i}_in_acc` and `env{i}_out_acc`
        in [0, 1] (NaN where absent), `hparams` and `args` (dict), `output_dir`, and whatever
        else the records hold. Records of one run share their `hparams` and `args`.

    Raises:
        UserError: a folder does not exist or holds no records; a line is damaged or lacks a key.
            A last line that was cut off is skipped, with a warning.
    """
    roots = [folders] if isinstance(folders, (str, Path)) else list(folders)
    files = list(dict.fromkeys(file for root in roots for file in _record_files(Path(root))))
    rows: list[dict[str, Any]] = []
    for done, file in enumerate(files, start=1):
        rows.extend(_read_file(file))
        if progress:
            progress(done, len(files))
    if not rows:
        raise UserError(f"no complete record in {_join(roots)}: wait for the first checkpoint")
    table = _table(rows)
    _warn_of_duplicates(table)
    _warn_of_unfinished(files)
    return table


def planned_selection(folders: Folders) -> list[str] | None:
    """The selection methods that a sweep of this project was planned for, in the tables' order.

    None, that is all of them, if one of the folders does not say.
    """
    roots = [folders] if isinstance(folders, (str, Path)) else list(folders)
    planned: set[str] = set()
    for root in roots:
        file = Path(root) / "sweep.yaml"
        config = yaml.safe_load(file.read_text(encoding="utf-8")) if file.is_file() else None
        if not config or not config.get("selection"):
            return None
        planned |= set(config["selection"])
    return [name for name in SELECTION_METHODS if name in planned]


def run_folders(root: Path) -> list[Path]:
    """The folders of `root` that may be runs, by name; `root` itself first if it is a run.

    Raises:
        UserError: `root` is not a folder.
    """
    if not root.is_dir():
        what = "is not a folder" if root.exists() else "does not exist"
        raise UserError(f"{str(root)!r} {what}: name a sweep folder or a run folder")
    inside = sorted(path for path in root.iterdir() if path.is_dir())
    return [root, *inside] if (root / RECORDS_FILE).is_file() else inside


def _record_files(root: Path) -> list[Path]:
    files = [folder / RECORDS_FILE for folder in run_folders(root)]
    found = [file for file in files if file.is_file()]
    if not found:
        raise UserError(
            f"no records in {str(root)!r}: neither it nor a folder in it holds {RECORDS_FILE}"
        )
    return found


def _join(paths: Iterable[str | Path]) -> str:
    return ", ".join(repr(str(path)) for path in paths)


_NOT_JSON = (json.JSONDecodeError, UnicodeDecodeError)


def _read_file(path: Path) -> list[dict[str, Any]]:
    """The records of one results.jsonl, each checked, as rows of the table."""
    rows: list[dict[str, Any]] = []
    run: dict[str, Any] = {}
    folder = str(path.parent)
    for number, record in _parse(path):
        try:
            run = _run_of(record, run)
            rows.append(_row(record, run))
        except (KeyError, TypeError) as error:
            raise UserError(f"{path}, line {number}: {_explain(error)}") from error
        record.update(folder=folder, line=number)
    return rows


def _parse(path: Path) -> list[tuple[int, Any]]:
    """The line numbers and records of a file, but for a last line that was cut off."""
    *lines, rest = path.read_bytes().split(b"\n")  # a whole line ends with a newline
    numbered = [(number, line) for number, line in enumerate(lines, start=1) if line.strip()]
    records = _parse_at_once([line for _, line in numbered])
    if records is None:
        records = _parse_each(path, numbered, may_be_torn=not rest.strip())
    if rest.strip() or len(records) < len(numbered):
        log.warning("warning: %s: the last line is cut off and was skipped (a killed run?)", path)
    return [(number, record) for (number, _), record in zip(numbered, records, strict=False)]


def _parse_at_once(lines: list[bytes]) -> list[Any] | None:
    """All lines as one JSON array, 1.5 times as fast as line by line; None if any is damaged."""
    if not all(line.startswith(b"{") and line.rstrip().endswith(b"}") for line in lines):
        return None
    try:
        records = json.loads((b"[" + b",".join(lines) + b"]").decode())
    except _NOT_JSON:
        return None
    return records if len(records) == len(lines) else None


def _parse_each(path: Path, lines: list[tuple[int, bytes]], may_be_torn: bool) -> list[Any]:
    records = []
    for position, (number, line) in enumerate(lines, start=1):
        try:
            records.append(json.loads(line.decode()))
        except _NOT_JSON as error:
            if may_be_torn and position == len(lines):
                break
            raise UserError(f"{path}, line {number}: {_explain(error)}") from error
    return records


def _explain(error: Exception) -> str:
    remedy = "repair or remove the line"
    if isinstance(error, _NOT_JSON):
        return f"not valid JSON ({error}): {remedy}"
    if isinstance(error, KeyError):
        return f"the record lacks the key {error.args[0]!r}: {remedy}"
    return f"{error}: {remedy}"


def _run_of(record: Any, previous: dict[str, Any]) -> dict[str, Any]:
    """The columns that all records of a run share: the previous ones, if it is the same run."""
    if not isinstance(record, dict):
        raise TypeError(f"{record!r} is not a record (a JSON object)")
    args, hparams = record["args"], record.get("hparams", {})
    if previous and args == previous["args"] and hparams == previous["hparams"]:
        return previous
    if not isinstance(args, dict):
        raise TypeError(f"args is {args!r}, not an object")
    run = {key: args[key] for key in RUN_KEYS}
    _check_run(run)
    run["test_envs"] = tuple(run["test_envs"])
    return {**run, "hparams": hparams, "args": args, "output_dir": args.get("output_dir")}


def _check_run(run: dict[str, Any]) -> None:
    for key in ("dataset", "algorithm"):
        if not isinstance(run[key], str):
            raise TypeError(f"args.{key} is {run[key]!r}, not a name")
    for key in ("hparams_seed", "trial_seed"):
        if not _is_int(run[key]):
            raise TypeError(f"args.{key} is {run[key]!r}, not an integer")
    envs = run["test_envs"]
    if not isinstance(envs, list) or not all(_is_int(env) and env >= 0 for env in envs):
        raise TypeError(f"args.test_envs is {envs!r}, not a list of domain numbers")


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _row(record: dict[str, Any], run: dict[str, Any]) -> dict[str, Any]:
    """The record as a row, after checking that the numbers are there which selection needs."""
    if not _is_int(record["step"]):
        raise TypeError(f"step is {record['step']!r}, not an integer")
    domains = 0
    while f"env{domains}_out_acc" in record:
        domains += 1
    for env in run["test_envs"]:
        for name in (f"env{env}_in_acc", f"env{env}_out_acc"):
            if not isinstance(record[name], (int, float)):
                raise TypeError(f"{name} is {record[name]!r}, not a number")
        if env >= domains:
            raise KeyError(f"env{domains}_out_acc")
    record.update(run, num_domains=domains)  # the equal args are freed, not kept
    return record


def _table(rows: list[dict[str, Any]]) -> pd.DataFrame:
    """Rows to a table, column by column: far cheaper than pandas' own way from rows."""
    names: dict[str, Any] = {"folder": None, "line": None}
    for row in rows:
        names.update(row)
    columns = {}
    for name in names:
        values = [row.get(name) for row in rows]
        is_accuracy = name.startswith("env") and name.endswith("_acc")
        columns[name] = _floats(name, values, rows) if is_accuracy else values
    return pd.DataFrame(columns)


def _floats(name: str, values: list[Any], rows: list[dict[str, Any]]) -> np.ndarray:
    try:
        return np.array(values, dtype=float)  # None becomes NaN
    except (TypeError, ValueError):
        bad = next(i for i, v in enumerate(values) if not isinstance(v, (int, float, type(None))))
        place = f"{Path(rows[bad]['folder']) / RECORDS_FILE}, line {rows[bad]['line']}"
        raise UserError(f"{place}: {name} is {values[bad]!r}, not a number") from None


def _warn_of_unfinished(files: Sequence[Path]) -> None:
    unfinished = sum(not file.with_name("done").exists() for file in files)
    # Records that others made may come without any mark of the end.
    marked = unfinished < len(files) or any(file.with_name("run.json").exists() for file in files)
    if unfinished and marked:
        log.warning(
            "warning: %d of %d runs are not finished: their records so far count as they are",
            unfinished, len(files),
        )  # fmt: skip


def _warn_of_duplicates(table: pd.DataFrame) -> None:
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
