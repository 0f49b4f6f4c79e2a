"""The file of a run's predictions: one row for each image, as Parquet."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from domainbed.core.files import CHANGED, differs_from_digest, write_digest, written_aside
from domainbed.errors import UserError

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

_KEY = b"domainbed"


@dataclass(frozen=True)
class Predicted:
    """What a model predicts for some images of one domain and split.

    Attributes:
        domain: its number.
        split: "in", "out" or "uda".
        images: (n,) the path of each below the data folder, or its position in the domain.
        labels: (n,) or (n, C): whole numbers, or the numbers that are regressed.
        logits: (n, C) float32, the outputs, whatever the labels are.
        groups: (n,) the name of each one's group; None where they have none.
    """

    domain: int
    split: str
    images: Sequence[str]
    labels: np.ndarray
    logits: np.ndarray
    groups: Sequence[str] | None = None


def write_predictions(file: Path, facts: Mapping[str, Any], parts: Iterable[Predicted]) -> None:
    """Writes a file aside, part by part, its digest, and moves the file into place.

    Args:
        file: ends in .parquet.
        facts: of the run, as JSON values; kept in the file's metadata.
        parts: at least one, all alike; written one by one, so that memory holds only one.
    """
    import pyarrow as pa  # not at the top: training needs it for predictions alone
    import pyarrow.parquet as pq

    parts = iter(parts)
    first = next(parts)
    label = pa.float64() if first.labels.dtype.kind == "f" else pa.int32()
    columns = {
        "image": pa.string(),
        "domain": pa.int32(),
        "split": pa.dictionary(pa.int32(), pa.string()),
        "label": label if first.labels.ndim == 1 else pa.list_(label, first.labels.shape[1]),
        "logits": pa.list_(pa.float32(), first.logits.shape[1]),
    }
    if first.groups is not None:
        columns["group"] = pa.string()
    schema = pa.schema(columns, metadata={_KEY: json.dumps(dict(facts)).encode()})
    with written_aside(file) as aside:
        with pq.ParquetWriter(aside, schema) as writer:
            for part in chain([first], parts):
                rows = {
                    "image": list(part.images),
                    "domain": np.full(len(part.images), part.domain),
                    "split": [part.split] * len(part.images),
                    "label": list(part.labels),
                    "logits": list(np.asarray(part.logits, dtype=np.float32)),
                    "group": part.groups,
                }
                writer.write_table(pa.table({n: rows[n] for n in columns}, schema=schema))
        write_digest(file, aside)


def read_predictions(
    file: Path, domain: int | None = None, split: str | None = None
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """The rows of a file, and the facts of the run.

    Args:
        file: written by `write_predictions`.
        domain: only this one.
        split: only this one.

    Returns:
        a table with `image`, `domain`, `split` and `label`; of labels that are one of several
        classes `predicted`, the class with the highest logit (a NaN counts as the lowest); and the
        facts.

    Raises:
        UserError: the file is damaged or holds something else.
    """
    wanted = (("domain", "==", domain), ("split", "==", split))
    table, facts = _read(file, [each for each in wanted if each[2] is not None] or None)
    frame = table.select(["image", "domain", "split", "label"]).to_pandas()
    logits, kind = _matrix(table, "logits"), facts.get("label_kind", "classes")
    lowest = np.where(np.isnan(logits), -np.inf, logits)
    if kind == "classes":
        frame = frame.assign(predicted=lowest.argmax(axis=1))
    elif kind == "binary":
        frame = frame.assign(predicted=(lowest[:, 0] > 0).astype(int))
    return frame, facts


def read_outputs(file: Path) -> tuple[Iterator[Predicted], dict[str, Any]]:
    """What `write_predictions` wrote, by domain and split, and the facts of the run.

    Raises:
        UserError: the file is damaged or holds something else.
    """
    table, facts = _read(file)
    frame = table.select(["domain", "split"]).to_pandas()
    rows = frame.groupby(["domain", "split"], observed=True, sort=False).indices
    return (_part(table, int(d), str(s), chosen) for (d, s), chosen in rows.items()), facts


def _part(table: pa.Table, domain: int, split: str, rows: np.ndarray) -> Predicted:
    chosen = table.take(rows)
    return Predicted(
        domain,
        split,
        chosen["image"].to_pylist(),
        _matrix(chosen, "label"),
        _matrix(chosen, "logits"),
        chosen["group"].to_pylist() if "group" in chosen.column_names else None,
    )


def _read(file: Path, filters: Any = None) -> tuple[pa.Table, dict[str, Any]]:
    """The rows of a file, all its columns checked, and the facts of the run."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    remedy = (
        "remove it, and predict again with `domainbed model predict RUN_FOLDER --save_predictions`"
    )
    try:
        if differs_from_digest(file):
            raise UserError(f"{file} is damaged ({CHANGED}): {remedy}")
        table = pq.read_table(file, filters=filters, partitioning=None)
        facts = json.loads(table.schema.metadata[_KEY])
        table.select(["image", "domain", "split"])
        for name in ("label", "logits"):
            _matrix(table, name)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, pa.ArrowException) as error:
        raise UserError(
            f"{file} is missing, or holds no predictions ({type(error).__name__}): {remedy}"
        ) from error
    return table, facts


def _matrix(table: pa.Table, name: str) -> np.ndarray:
    """A column: (n,) of numbers, (n, C) of lists of C."""
    import pyarrow as pa

    column, type_ = table[name].combine_chunks(), table.schema.field(name).type
    if not pa.types.is_fixed_size_list(type_):
        return column.to_numpy(zero_copy_only=False)
    return column.flatten().to_numpy(zero_copy_only=False).reshape(-1, type_.list_size)
