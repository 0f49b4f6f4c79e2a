"""How columns, numbers and tokens become inputs, by what is learned from the samples that train.

What is learned are plain values, which a run keeps with its model: of a table a list with one dict
per column, of an array a dict.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from domainbed.errors import UserError

Values = Mapping[str, np.ndarray] | np.ndarray
"""The columns of a table by name, each (n,): float64, NaN where a number is missing, or texts, ""
where one is missing. Or an array (n, …); whole numbers (n, L) are tokens, of which 0 is padding."""


def learned(values: Values) -> Any:
    """The encoding of these samples: means and deviations, categories, or a vocabulary.

    Numbers have a mean and a deviation for each column of a table, feature (n, d), channel of a
    series (n, T, C) or channel of images (n, C, H, W). Those of a table do not depend on the
    machine or the order of the rows: sums are exact.
    """
    if isinstance(values, Mapping):
        return [_learned_column(name, column) for name, column in values.items()]
    if values.dtype.kind == "i":
        return {"tokens": np.unique(values[values > 0]).tolist()}
    channel = 1 if values.ndim == 4 else values.ndim - 1
    others = tuple(axis for axis in range(values.ndim) if axis != channel)
    mean, deviation = values.mean(others, np.float64), values.std(others, np.float64)
    return {"mean": mean.tolist(), "deviation": deviation.tolist()}


def _learned_column(name: str, values: np.ndarray) -> dict[str, Any]:
    if values.dtype == object:
        return {"column": name, "categories": sorted(set(values))}
    known = values[~np.isnan(values)].tolist()
    mean = math.fsum(known) / max(len(known), 1)
    deviation = math.sqrt(math.fsum((x - mean) ** 2 for x in known) / max(len(known), 1))
    has_missing = len(known) < len(values)
    return {"column": name, "mean": mean, "deviation": deviation, "indicator": has_missing}


def encoded(values: Values, encoding: Any) -> np.ndarray:
    """The inputs: float32 (n, d) of a table, float32 (n, …) of numbers, int64 (n, L) of tokens.

    A column of numbers becomes the number in deviations from the mean, 0 where it is missing; and
    where any was missing in training, 1 where it is missing and 0 elsewhere. A column of
    categories becomes one input for each that trains, of which "missing" is one; all are 0 of a
    category that was not among them. Tokens are numbered from 1 in their order; one that was not
    among those that train becomes 0, as padding is.

    Raises:
        UserError: a table lacks a column, or has texts where there were numbers.
    """
    if isinstance(values, Mapping):
        parts = [part for column in encoding for part in _inputs(values, column)]
        return np.stack(parts, axis=1).astype(np.float32)
    if "tokens" in encoding:
        known = np.array([*encoding["tokens"], np.iinfo(np.int64).max])
        number = np.searchsorted(known, values)
        return np.where(known[number] == values, number + 1, 0)
    shape = (-1, 1, 1) if values.ndim == 4 else (-1,)
    mean, deviation = (np.reshape(encoding[name], shape) for name in ("mean", "deviation"))
    return _standardised(values, mean, deviation).astype(np.float32)


def _inputs(values: Mapping[str, np.ndarray], column: Mapping[str, Any]) -> list[np.ndarray]:
    """Each (n,), of one column."""
    name = column["column"]
    if name not in values:
        raise UserError(f"there is no column {name!r}, which is one of the inputs")
    found = values[name]
    if "categories" in column:
        texts = np.array(as_texts(found))
        return [texts == category for category in column["categories"]]
    if found.dtype == object:
        raise UserError(f"the column {name!r} has texts, and had numbers when a model was trained")
    missing = np.isnan(found)
    standardised = _standardised(found, column["mean"], column["deviation"])
    return [np.where(missing, 0, standardised), *([missing] if column["indicator"] else [])]


def _standardised(values: np.ndarray, mean: Any, deviation: Any) -> np.ndarray:
    """In deviations from the mean; 0 where all that train are equal."""
    varies = np.asarray(deviation) > 0
    return (values - mean) * varies / np.where(varies, deviation, 1)


def as_texts(values: np.ndarray) -> list[str]:
    """The values of a column as texts: "2" for 2.0, and "" for a missing number."""
    if values.dtype.kind not in "iuf":
        return [str(value) for value in values]
    texts = [np.format_float_positional(value, trim="-") for value in values]
    return ["" if text == "nan" else text for text in texts]
