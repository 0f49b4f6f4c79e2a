"""The file of a run's predictions: one row for each image, as Parquet."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from domainbed.core.digests import CHANGED, differs_from_digest, write_digest
from domainbed.core.files import written_aside
from domainbed.errors import UserError

if TYPE_CHECKING:
    import pandas as pd

_KEY = b"domainbed"


@dataclass(frozen=True)
class Predicted:
    """What a model predicts for some images of one domain and split.

    Attributes:
        domain: its number.
        split: "in", "out" or "uda".
        images: (n,) the path of each below the data folder, or its position in the domain.
        labels: (n,) int.
        logits: (n, C) float32.
    """

    domain: int
    split: str
    images: Sequence[str]
    labels: np.ndarray
    logits: np.ndarray


def write_predictions(
    file: Path, facts: Mapping[str, Any], parts: Iterable[Predicted], num_classes: int
) -> None:
    """Writes a file aside, part by part, its digest, and moves the file into place.

    Args:
        file: ends in .parquet.
        facts: of the run, as JSON values; kept in the file's metadata.
        parts: written one by one, so that memory holds only one.
        num_classes: C.
    """
    import pyarrow as pa  # not at the top: training needs it for predictions alone
    import pyarrow.parquet as pq

    schema = pa.schema(
        {
            "image": pa.string(),
            "domain": pa.int32(),
            "split": pa.dictionary(pa.int32(), pa.string()),
            "label": pa.int32(),
            "logits": pa.list_(pa.float32(), num_classes),
        },
        metadata={_KEY: json.dumps(dict(facts)).encode()},
    )
    with written_aside(file) as aside:
        with pq.ParquetWriter(aside, schema) as writer:
            for part in parts:
                columns = {
                    "image": list(part.images),
                    "domain": np.full(len(part.images), part.domain),
                    "split": [part.split] * len(part.images),
                    "label": part.labels,
                    "logits": list(np.asarray(part.logits, dtype=np.float32)),
                }
                writer.write_table(pa.table(columns, schema=schema))
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
        a table with `image`, `domain`, `split`, `label` and `predicted`, the class with the
        highest logit (a NaN counts as the lowest); and the facts.

    Raises:
        UserError: the file is damaged or holds something else.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    wanted = {"domain": domain, "split": split}
    filters = [(name, "==", value) for name, value in wanted.items() if value is not None]
    remedy = (
        "remove it, and predict again with `domainbed model predict RUN_FOLDER --save_predictions`"
    )
    if differs_from_digest(file):
        raise UserError(f"{file} is damaged ({CHANGED}): {remedy}")
    try:
        table = pq.read_table(file, filters=filters or None, partitioning=None)
        facts = json.loads(table.schema.metadata[_KEY])
        width = table.schema.field("logits").type.list_size
        flat = table["logits"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
        logits = flat.reshape(-1, width)
        frame = table.select(["image", "domain", "split", "label"]).to_pandas()
    except (OSError, ValueError, KeyError, TypeError, AttributeError, pa.ArrowException) as error:
        raise UserError(
            f"{file} is damaged, or holds no predictions ({type(error).__name__}): {remedy}"
        ) from error
    lowest = np.where(np.isnan(logits), -np.inf, logits)
    return frame.assign(predicted=lowest.argmax(axis=1)), facts
