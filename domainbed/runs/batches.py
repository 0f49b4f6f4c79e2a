"""Batches: the records of some files, as runs and one Arrow table of numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa

from domainbed.core.names import parse_record_key
from domainbed.errors import UserError
from domainbed.runs.folder import read_records
from domainbed.runs.records import NO_DOMAIN, Records
from domainbed.runs.results_file import Run, read_results


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
        return Batch(
            runs=[self.runs[place] for place in order],
            values=self.values.take(rows).set_column(0, "run", pa.array(run[rows])),
        )

    def as_records(self) -> Records:
        """The tables that selection and reporting read."""
        keys = self.values["key"].combine_chunks()
        measured = [
            parse_record_key(key) or (NO_DOMAIN, "", key) for key in keys.dictionary.to_pylist()
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
    return Batch(
        runs=[run for batch in batches for run in batch.runs],
        values=pa.concat_tables(parts).unify_dictionaries(),
    )


def read_batch(
    files: Iterable[Path],
    on_file: Callable[[], None] = lambda: None,
    damages: list[UserError] | None = None,
) -> Batch:
    """Reads files that are named results.jsonl, and calls `on_file` after each.

    Args:
        files: to read.
        on_file: called without arguments.
        damages: takes the error of each file that cannot be read, which is left out; None raises
            it.

    Raises:
        UserError: see `read_records` and `read_results`.
    """
    runs: list[Run] = []
    records: list[tuple[int, int, dict[str, float]]] = []
    for path in files:
        on_file()
        try:
            content, has_digest = read_records(path.parent)
            found = list(read_results(path, content))
        except UserError as error:
            if damages is None:
                raise
            damages.append(error)
            continue
        for run, step, numbers in found:
            if not runs or run is not runs[-1]:
                run["has_digest"] = has_digest
                runs.append(run)
            records.append((len(runs) - 1, step, numbers))
    counts = np.array([len(numbers) for _, _, numbers in records], dtype=int)
    keys = [key for _, _, numbers in records for key in numbers]
    return Batch(
        runs,
        pa.table(
            {
                "run": np.repeat(np.array([run for run, _, _ in records], dtype=int), counts),
                "step": np.repeat(np.array([step for _, step, _ in records], dtype=int), counts),
                "key": pa.array(keys, pa.string()).dictionary_encode(),
                "value": _as_floats(
                    [value for _, _, numbers in records for value in numbers.values()]
                ),
            }
        ),
    )


def _as_floats(numbers: Sequence[float]) -> np.ndarray:
    try:
        return np.array(numbers, dtype=float)
    except OverflowError:  # an integer beyond all floats, which is infinite when read as text
        return np.array([float(str(number)) for number in numbers])
