"""Records of several files as arrays: far smaller than the records, and quick to put together."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from domainbed.errors import UserError
from domainbed.reporting.results_file import REMEDY, read_file
from domainbed.runs.record_keys import parse_record_key
from domainbed.runs.records import NO_DOMAIN, Records

Place = Callable[[int], str]
"""From the position of a record to its file and line."""

_NO_VALUES = ("step", "diverged")


class Numbers(NamedTuple):
    """All numbers under one key: the positions of the records that have one, and the numbers."""

    records: np.ndarray
    values: np.ndarray


@dataclass(frozen=True)
class Chunk:
    """The checked records of some files named results.jsonl.

    Attributes:
        files: in the order of the runs; none twice.
        runs: with the columns of `Records.runs` that one record can tell, see `read_file`.
        run_file: (runs,) the position of each run's file.
        record_run: (records,) the position of each record's run, ascending.
        step: (records,)
        diverged: (records,) whether a record says so.
        numbers: by DomainBed's keys; records ascending.
    """

    files: list[Path]
    runs: list[dict[str, Any]]
    run_file: np.ndarray
    record_run: np.ndarray
    step: np.ndarray
    diverged: np.ndarray
    numbers: dict[str, Numbers]

    def as_records(self) -> Records:
        """The table of runs, and the tidy table of values, key by key."""
        starts = np.flatnonzero(np.diff(self.record_run, prepend=-1))
        runs = pd.DataFrame(self.runs)
        runs["last_step"] = np.maximum.reduceat(self.step, starts)
        runs["diverged"] = np.logical_or.reduceat(self.diverged, starts)
        runs["num_records"] = np.diff(starts, append=len(self.record_run))
        return Records(runs, self._values())

    def _values(self) -> pd.DataFrame:
        first = {name: (found.records[0], name) for name, found in self.numbers.items()}
        names = sorted(first, key=lambda name: first[name])
        told = [parse_record_key(name) or (NO_DOMAIN, "", name) for name in names]
        sizes = [len(self.numbers[name].records) for name in names]
        records = _joined([self.numbers[name].records for name in names])
        columns: dict[str, Any] = {
            "run": self.record_run[records],
            "step": self.step[records],
            "domain": np.repeat(np.array([domain for domain, _, _ in told], dtype=int), sizes),
        }
        for position, column in ((1, "split"), (2, "metric")):
            codes, known = pd.factorize(np.array([each[position] for each in told], dtype=object))
            columns[column] = pd.Categorical.from_codes(np.repeat(codes, sizes), known)
        columns["value"] = _joined([self.numbers[name].values for name in names], float)
        return pd.DataFrame(columns, copy=False)


def read_chunk(files: Iterable[Path], on_file: Callable[[], None]) -> Chunk:
    """Reads files, and calls `on_file` after each.

    Raises:
        UserError: see `read_file`; or an accuracy is none.
    """
    paths = list(files)
    runs: list[dict[str, Any]] = []
    run_file, record_run, lines, records = [], [], [], []
    for position, path in enumerate(paths):
        for line, run, record in read_file(path):
            if not runs or run is not runs[-1]:
                runs.append(run)
                run_file.append(position)
            record_run.append(len(runs) - 1)
            lines.append(line)
            records.append(record)
        on_file()

    def place(record: int) -> str:
        return f"{paths[run_file[record_run[record]]]}, line {lines[record]}"

    return Chunk(
        paths,
        runs,
        np.array(run_file, dtype=int),
        np.array(record_run, dtype=int),
        np.array([record["step"] for record in records], dtype=int),
        np.array([record.get("diverged") is True for record in records], dtype=bool),
        _numbers(records, place),
    )


def _numbers(records: list[dict[str, Any]], place: Place) -> dict[str, Numbers]:
    """The numbers by key, from neighbours with the same keys at once."""
    found: dict[str, list[Numbers]] = {}
    for names, group in groupby(enumerate(records), key=lambda each: tuple(each[1])):
        positions, alike = zip(*group, strict=True)
        columns = zip(*(record.values() for record in alike), strict=True)
        for name, column in zip(names, columns, strict=True):
            if name not in _NO_VALUES:
                found.setdefault(name, []).append(_column(name, column, positions, place))
    joined = {name: Numbers(*map(_joined, zip(*each))) for name, each in found.items()}
    return {name: numbers for name, numbers in joined.items() if len(numbers.records)}


def _column(name: str, column: Sequence[Any], positions: Sequence[int], place: Place) -> Numbers:
    """The numbers of some records under a key; what is none, a text say, is left out."""
    records = np.array(positions, dtype=int)
    is_number = np.array([type(value) in (float, int) for value in column])
    everywhere = is_number.all()
    kept = column if everywhere else [v for v, is_one in zip(column, is_number) if is_one]
    values = _as_floats(kept)
    _, split, metric = parse_record_key(name) or (NO_DOMAIN, "", name)
    if split and metric == "accuracy":
        is_wrong = np.array([value is not None for value in column])
        is_wrong[is_number] = ~((values >= 0) & (values <= 1))
        for bad in is_wrong.nonzero()[0].tolist():
            raise UserError(
                f"{place(positions[bad])}: {name} is {column[bad]!r}, not a number in [0, 1]: "
                f"{REMEDY}"
            )
    return Numbers(records if everywhere else records[is_number], values)


def _as_floats(numbers: Sequence[float]) -> np.ndarray:
    try:
        return np.array(numbers, dtype=float)
    except OverflowError:  # of an integer beyond all floats
        lowest, highest = -sys.float_info.max, sys.float_info.max
        bounded = (-math.inf if v < lowest else math.inf if v > highest else v for v in numbers)
        return np.array(list(bounded), dtype=float)


def assembled(chunks: Sequence[Chunk], files: Sequence[Path]) -> Chunk:
    """The records of `files`, in that order, out of chunks that have each of them once."""
    if len(chunks) == 1 and chunks[0].files == list(files):
        return chunks[0]
    rank = {file: position for position, file in enumerate(files)}
    file_rank = np.array([rank.get(file, -1) for chunk in chunks for file in chunk.files], int)
    run_file = file_rank[_shifted([c.run_file for c in chunks], [len(c.files) for c in chunks])]
    run_order, run_place = _order(run_file)
    record_run = _shifted([c.record_run for c in chunks], [len(c.runs) for c in chunks])
    record_order, record_place = _order(run_file[record_run])
    runs = [run for chunk in chunks for run in chunk.runs]
    return Chunk(
        list(files),
        [runs[position] for position in run_order.tolist()],
        run_file[run_order],
        run_place[record_run[record_order]],
        _joined([chunk.step for chunk in chunks])[record_order],
        _joined([chunk.diverged for chunk in chunks], bool)[record_order],
        _numbers_in_order(chunks, record_place),
    )


def _numbers_in_order(chunks: Sequence[Chunk], place: np.ndarray) -> dict[str, Numbers]:
    """`place` is where each record of all chunks is put; -1 for nowhere."""
    offset = 0
    parts: dict[str, list[Numbers]] = {}
    for chunk in chunks:
        for name, (records, values) in chunk.numbers.items():
            parts.setdefault(name, []).append(Numbers(place[records + offset], values))
        offset += len(chunk.step)
    found = {}
    for name, each in parts.items():
        records, values = map(_joined, zip(*each))
        order, _ = _order(records)
        if len(order):
            found[name] = Numbers(records[order], values[order])
    return found


def _order(ranks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The positions by ascending rank without those of rank -1, and where each position comes."""
    order = np.argsort(ranks, kind="stable")
    order = order[np.count_nonzero(ranks < 0) :]
    place = np.full(len(ranks), -1)
    place[order] = np.arange(len(order))
    return order, place


def _shifted(parts: Sequence[np.ndarray], sizes: Sequence[int]) -> np.ndarray:
    """Positions within chunks as positions within all of them."""
    offsets = np.cumsum([0, *sizes])
    return _joined([part + offset for part, offset in zip(parts, offsets)])


def _joined(parts: Sequence[np.ndarray], dtype: type = int) -> np.ndarray:
    return np.concatenate(parts) if parts else np.empty(0, dtype)
