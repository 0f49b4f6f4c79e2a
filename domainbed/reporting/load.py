"""Loading: from folders of runs to records."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from itertools import compress, product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import yaml

from domainbed.errors import UserError
from domainbed.names import dataset_label
from domainbed.record_keys import parse_record_key, record_key
from domainbed.records import NO_DOMAIN, NOT_RECORDED, PROTOCOL_KEYS, RUN_KEYS, Records
from domainbed.run_folder import RunFolder
from domainbed.selection import SELECTION_METHODS

log = logging.getLogger(__name__)

RECORDS_FILE = "results.jsonl"

Folders = str | Path | Sequence[str | Path]
Progress = Callable[[int, int], None]


def load_records(folders: Folders, progress: Progress | None = None) -> Records:
    """Reads the records of all runs in one or several folders, DomainBed's own included.

    Args:
        folders: a sweep folder (of run folders), a run folder, or a list of such.
        progress: called with (run folders read, run folders in all).

    Returns:
        The runs in the order of their folders' names, and their numbers. Links that lead out of
        a folder are not followed, with a warning.

    Raises:
        UserError: a folder does not exist or holds no records; a line is damaged, lacks a key or
            holds an accuracy that is none; a run.json names another run; the last line of a
            finished run is cut off. That of an unfinished run is skipped, with a warning.
    """
    roots = as_paths(folders)
    files = list(dict.fromkeys(file for root in roots for file in _record_files(root)))
    read = _Reading()
    for done, file in enumerate(files, start=1):
        read.file(file)
        if progress:
            progress(done, len(files))
    if not read.records:
        raise UserError(f"no complete record in {_join(roots)}: wait for the first checkpoint")
    records = Records(read.table(), _values(read))
    _warn_of_duplicates(records)
    _warn_of_unfinished(files)
    return records


def as_paths(folders: Folders) -> list[Path]:
    """One or several folders as a list."""
    return [Path(folders)] if isinstance(folders, (str, Path)) else [Path(f) for f in folders]


def planned_selection(folders: Folders) -> list[str] | None:
    """The selection methods that a sweep of this project was planned for, in the tables' order.

    None, that is all of them, if one of the folders does not say.
    """
    planned: set[str] = set()
    for root in as_paths(folders):
        file = root / "sweep.yaml"
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
    inside = sorted(path for path in root.iterdir() if path.is_dir() and _is_inside(root, path))
    return [root, *inside] if (root / RECORDS_FILE).is_file() else inside


def _record_files(root: Path) -> list[Path]:
    files = [folder / RECORDS_FILE for folder in run_folders(root)]
    found = [file for file in files if file.is_file() and _is_inside(root, file)]
    if not found:
        raise UserError(
            f"no records in {str(root)!r}: neither it nor a folder in it holds {RECORDS_FILE}"
        )
    return found


def _is_inside(root: Path, path: Path) -> bool:
    """Whether the folder of `root` holds `path`; a link may lead elsewhere."""
    if not path.is_symlink() or path.resolve().is_relative_to(root.resolve()):
        return True
    log.warning("warning: %s is a link that leaves %s: not followed", path, root)
    return False


def _join(paths: Iterable[str | Path]) -> str:
    return ", ".join(repr(str(path)) for path in paths)


_REMEDY = "repair or remove the line"
_NOT_JSON = (json.JSONDecodeError, UnicodeDecodeError)


class _Reading:
    """What was read so far: the runs, and for each record its run, line and contents."""

    def __init__(self) -> None:
        self.runs: list[dict[str, Any]] = []
        self.records: list[dict[str, Any]] = []
        self.run: list[int] = []
        self.line: list[int] = []

    def file(self, path: Path) -> None:
        """Reads one results.jsonl."""
        first = len(self.runs)
        run: dict[str, Any] = {}
        steps: set[int] = set()
        for line, record in _parse(path):
            try:
                facts, step = _run_of(record, run)
            except (KeyError, TypeError) as error:
                raise UserError(f"{path}, line {line}: {_explain(error)}") from error
            if facts is not run or step in steps:
                run, steps = {"folder": str(path.parent), **facts}, set()
                self.runs.append(run)
            steps.add(step)
            self.records.append(record)
            self.run.append(len(self.runs) - 1)
            self.line.append(line)
        _check_name(RunFolder(path.parent), self.runs[first:])

    def table(self) -> pd.DataFrame:
        """The runs as in `Records.runs`."""
        told = ((record["step"], record.get("diverged") is True) for record in self.records)
        by_run = pd.DataFrame(told, columns=["last_step", "diverged"]).groupby(self.run)
        ends = by_run.max().assign(num_records=by_run.size())
        return pd.DataFrame(self.runs).join(ends)

    def place(self, record: int) -> str:
        """File and line of a record."""
        folder = Path(self.runs[self.run[record]]["folder"])
        return f"{folder / RECORDS_FILE}, line {self.line[record]}"


def _parse(path: Path) -> list[tuple[int, Any]]:
    """The line numbers and records of a file, but for a last line that was cut off."""
    *lines, rest = path.read_bytes().split(b"\n")  # a whole line ends with a newline
    numbered = [(number, line) for number, line in enumerate(lines, start=1) if line.strip()]
    records = _parse_at_once([line for _, line in numbered])
    if records is None:
        records = _parse_each(path, numbered, may_be_torn=not rest.strip())
    if rest.strip() or len(records) < len(numbered):
        if RunFolder(path.parent).done.exists():
            raise UserError(
                f"{path}: the last line is cut off, but the run is marked done: remove its folder "
                "and do the run again"
            )
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
    if isinstance(error, _NOT_JSON):
        return f"not valid JSON ({error}): {_REMEDY}"
    if isinstance(error, KeyError):
        return f"the record lacks the key {error.args[0]!r}: {_REMEDY}"
    return f"{error}: {_REMEDY}"


def _run_of(record: Any, previous: dict[str, Any]) -> tuple[dict[str, Any], int]:
    """The run that a record is of, `previous` if it is that one, and its step; all checked."""
    if not isinstance(record, dict):
        raise TypeError(f"{record!r} is not a record (a JSON object)")
    args, hparams = record.pop("args"), record.pop("hparams", {})  # equal ones are freed, not kept
    step = record["step"]
    if not _is_int(step):
        raise TypeError(f"step is {step!r}, not an integer")
    is_same = previous and args == previous["args"] and hparams == previous["hparams"]
    run = previous if is_same else {**_run(args), "hparams": hparams, "args": args}
    domains = _count_domains(record, run["test_envs"])
    return run if run.get("num_domains") == domains else {**run, "num_domains": domains}, step


def _run(args: Any) -> dict[str, Any]:
    """The columns of a run that its args tell."""
    if not isinstance(args, dict):
        raise TypeError(f"args is {args!r}, not an object")
    run = {key: args[key] for key in RUN_KEYS}
    for key in ("dataset", "algorithm"):
        if not isinstance(run[key], str):
            raise TypeError(f"args.{key} is {run[key]!r}, not a name")
    for key in ("hparams_seed", "trial_seed"):
        if not _is_int(run[key]):
            raise TypeError(f"args.{key} is {run[key]!r}, not an integer")
    envs = run["test_envs"]
    if not isinstance(envs, list) or not all(_is_int(env) and env >= 0 for env in envs):
        raise TypeError(f"args.test_envs is {envs!r}, not a list of domain numbers")
    others = {"test_envs": tuple(envs), "output_dir": args.get("output_dir")}
    return {**run, **others, **{key: str(args.get(key, NOT_RECORDED)) for key in PROTOCOL_KEYS}}


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


_accuracy_key = cache(lambda domain, split: record_key(domain, split, "accuracy"))


def _count_domains(record: dict[str, Any], test_envs: tuple[int, ...]) -> int:
    """How many domains a record knows, after checking that it knows the test domains."""
    domains = 0
    while _accuracy_key(domains, "out") in record:
        domains += 1
    for env in test_envs:
        for split in ("in", "out"):
            key = _accuracy_key(env, split)
            if record[key] is None:
                raise TypeError(f"{key} is None, not a number")
        if env >= domains:
            raise KeyError(_accuracy_key(domains, "out"))
    return domains


def _check_name(folder: RunFolder, runs: Sequence[dict[str, Any]]) -> None:
    """Raises where a folder's run.json names another run than its records do."""
    named = (folder.read_json(folder.spec) or {}) if runs else {}
    for run, key in product(runs, RUN_KEYS):
        if key in named:
            ours, theirs = _comparable(key, run[key]), _comparable(key, named[key])
            if ours != theirs:
                raise UserError(
                    f"{folder.results} has records with {key} {ours!r}, but {folder.spec} names "
                    f"{theirs!r}: remove the file that is not of this run"
                )


def _comparable(key: str, value: Any) -> Any:
    if key == "dataset":
        return dataset_label(value)
    return sorted(value) if key == "test_envs" else value


class _Block(NamedTuple):
    """All numbers under one key, and the positions of the records that they are from."""

    domain: int
    split: str
    metric: str
    records: np.ndarray
    numbers: np.ndarray


def _values(read: _Reading) -> pd.DataFrame:
    """The tidy table, made key by key: far cheaper than record by record."""
    names: dict[str, Any] = {}
    for record in read.records:
        names.update(record)
    blocks = [_block(name, read) for name in names if name not in ("step", "diverged")]
    records = np.concatenate([np.empty(0, int), *(block.records for block in blocks)])
    sizes = [len(block.records) for block in blocks]
    columns: dict[str, Any] = {
        "run": np.array(read.run)[records],
        "step": np.array([record["step"] for record in read.records])[records],
        "domain": np.repeat(np.array([block.domain for block in blocks], dtype=int), sizes),
    }
    for column in ("split", "metric"):
        codes, known = pd.factorize(np.array([getattr(b, column) for b in blocks], dtype=object))
        columns[column] = pd.Categorical.from_codes(np.repeat(codes, sizes), known)
    columns["value"] = np.concatenate([np.empty(0), *(block.numbers for block in blocks)])
    return pd.DataFrame(columns)


def _block(name: str, read: _Reading) -> _Block:
    domain, split, metric = parse_record_key(name) or (NO_DOMAIN, "", name)
    found = [record.get(name) for record in read.records]
    is_number = np.full(len(found), True)
    if not set(map(type, found)) <= {float, int}:  # what is neither, a text say, is left out
        is_number = np.array([type(value) in (float, int) for value in found])
    numbers = np.array(found if is_number.all() else list(compress(found, is_number)), dtype=float)
    if split and metric == "accuracy":
        is_wrong = np.array([value is not None for value in found])
        is_wrong[is_number] = ~((numbers >= 0) & (numbers <= 1))
        for bad in is_wrong.nonzero()[0].tolist():
            raise UserError(
                f"{read.place(bad)}: {name} is {found[bad]!r}, not a number in [0, 1]: {_REMEDY}"
            )
    return _Block(domain, split, metric, is_number.nonzero()[0], numbers)


def _warn_of_unfinished(files: Sequence[Path]) -> None:
    unfinished = sum(not file.with_name("done").exists() for file in files)
    # Records that others made may come without any mark of the end.
    marked = unfinished < len(files) or any(file.with_name("run.json").exists() for file in files)
    if unfinished and marked:
        log.warning(
            "warning: %d of %d runs are not finished: their records so far count as they are",
            unfinished, len(files),
        )  # fmt: skip


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
