"""Tables (CSV, JSON Lines, Parquet) and arrays (NumPy's .npz) as datasets."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from domainbed.config.run_fields import DataFields
from domainbed.core.files import regular
from domainbed.core.names import dataset_label
from domainbed.datasets.encoding import as_texts
from domainbed.datasets.rows import Rows, read_rows
from domainbed.datasets.samples import (
    SPACES,
    SampleDataset,
    Samples,
    TableDataset,
    usual_labels,
)
from domainbed.errors import UserError, did_you_mean, one_line

_MISSING = ("", "na", "n/a", "nan", "null", "none", "?")
_SPLITS = {"in": "in", "train": "in", "out": "out", "val": "out"}


def sample_dataset(name: str, options: DataFields) -> type[SampleDataset]:
    """The dataset class of a table or of arrays, without code.

    Args:
        name: `table:FILE` or `arrays:FILE`, see `read_table` and `read_arrays`.
        options: the columns of a table, which names mean one class, and whether domains may lack
            classes.

    Raises:
        UserError: no such file, or it holds no samples of two domains or more.
    """
    kind, _, path = name.partition(":")
    file = Path(path).expanduser().resolve()
    try:
        facts = regular(file).stat()
        samples = _read(kind, file, facts.st_mtime_ns, facts.st_size, options.of_data())
    except OSError as error:
        raise UserError(
            f"dataset {str(file)!r} cannot be read ({error.strerror}): check the path", "dataset"
        ) from error
    attributes: dict[str, Any] = {
        "read": staticmethod(lambda: samples),
        "ENVIRONMENTS": tuple(samples.domains),
        "labels": usual_labels(samples.y),
        "may_lack_classes": options.missing_classes == "allow",
        "__doc__": f"The samples in {file}.",
    }
    if kind == "table":
        return type(dataset_label(name), (TableDataset,), attributes)
    x: Any = samples.x
    network = "" if x.ndim > 3 else "SequenceCNN"  # of images the size decides
    if x.ndim == 2:
        network = "MLP" if x.dtype.kind == "f" else "Transformer"
    is_large = not network and max(x.shape[2:]) > 28
    attributes |= {
        "network": network,
        "space": "large" if is_large else "small",
        "search_space": SPACES[network],
    }
    return type(dataset_label(name), (SampleDataset,), attributes)


@lru_cache(maxsize=8)  # a sweep asks for its dataset's class once per run
def _read(kind: str, file: Path, modified: int, size: int, of_data: str) -> Samples:
    """Reads the file, again if it has changed since."""
    options = DataFields.model_validate_json(of_data)
    return read_table(file, options) if kind == "table" else read_arrays(file, options)


# ---- tables ----


def read_table(file: Path, options: DataFields) -> Samples:
    """The samples of a table, one in each row that has a label.

    Args:
        file: ends in .csv, .tsv, .jsonl or .parquet.
        options: `columns` has the names of columns by what they are: `label`, of which there may
            be several; `domain`; `features`, the inputs, by default all others; `split`; `group`
            and `attribute`, which there are only where they are named.

    Raises:
        UserError: no such column, or a value that is wrong; the message names the line.
        OSError: the file cannot be read.
    """
    rows = _parquet_rows(file) if file.suffix.lower() == ".parquet" else read_rows(file)
    chosen = {role: _listed(names) for role, names in options.columns.items()}
    labels, wanted = chosen.pop("label", ["label"]), chosen.pop("features", [])
    optional = ("split", *(role for role in ("group", "attribute") if role in chosen))
    first = {role: names[0] for role, names in chosen.items()}
    roles = rows.columns(first, ("domain",), optional)
    inputs = [name for name in rows.names if name not in (*labels, *roles.values())]
    for what, names, known in (("label", labels, rows.names), ("features", wanted, inputs)):
        for name in [name for name in names if name not in known]:
            raise UserError(
                f"{file} has no column {name!r} for {what}.{did_you_mean(name, known)} Known: "
                f"{', '.join(known)}; name others in the field 'columns'",
                *("columns", what),
            )
    kept = [row for row in rows.rows if all(_text(row[1].get(name)) for name in labels)]
    without = len(rows.rows) - len(kept)
    rows = replace(rows, rows=kept)
    x = {name: _column(rows, name) for name in wanted or inputs}
    y = np.stack([_column(rows, name) for name in labels], axis=1)
    said = [f"{file.name}: {len(kept)} samples"]
    said += [f"{without} rows without a label are left out"] if without else []
    said += _said_of_missing(x)
    y = y[:, 0] if len(labels) == 1 else y
    found = {role: np.array(_texts(rows, name), object) for role, name in roles.items()}
    for role, texts in found.items():
        if (places := np.flatnonzero(texts == "")).size:
            line = kept[places[0]][0]
            raise UserError(f"{file}, line {line}: {roles[role]!r} is missing: complete the row")
    return _checked(Samples(file, x, y, found, labels, ["; ".join(said)]), options)


def _listed(names: str | list[str]) -> list[str]:
    return [names] if isinstance(names, str) else names


def _parquet_rows(file: Path) -> Rows:
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(regular(file))
    except ValueError as error:
        raise UserError(f"{file} is no Parquet file ({one_line(error)})", "dataset") from error
    return Rows(file, table.column_names, list(enumerate(table.to_pylist(), start=1)))


def _text(value: Any) -> str:
    """Of a value in a table; "" where it is missing."""
    text = str(int(value) if isinstance(value, bool) else value).strip()
    return "" if text.lower() in _MISSING else text


def _texts(rows: Rows, name: str) -> list[str]:
    for line, row in rows.rows:
        if not isinstance(row.get(name), (str, int, float, type(None))):
            raise UserError(
                f"{rows.file}, line {line}: {name!r} is {row[name]!r}: expected a number or a text"
            )
    return [_text(row.get(name)) for _, row in rows.rows]


def _column(rows: Rows, name: str) -> np.ndarray:
    """(n,) float64 if all values are numbers or missing, else texts."""
    texts = _texts(rows, name)
    numbers = [_number(text) for text in texts]
    if None not in numbers:
        return np.array(numbers, np.float64)
    known = [text for text in texts if text]
    with_commas = [text for text in known if _number(text.replace(",", ".")) is not None]
    if 2 * len(with_commas) > len(known):
        place = numbers.index(None)
        raise UserError(
            f"{rows.file}, line {rows.rows[place][0]}: {name!r} is {texts[place]!r}, and most "
            "others are numbers: write numbers with points, and nothing where one is missing"
        )
    return np.array(texts, object)


def _number(text: str) -> float | None:
    """NaN of no text; None of what is no finite number."""
    try:
        number = float(text or "nan")
    except ValueError:
        return None
    return None if math.isinf(number) else number


def _said_of_missing(x: Mapping[str, np.ndarray]) -> list[str]:
    counts = {name: as_texts(column).count("") for name, column in x.items()}
    lacking = [f"{name} ({count})" for name, count in counts.items() if count]
    treated = (
        "a missing number counts as the mean of those that train, and one more input says so; "
        "a missing category is one of its own"
    )
    return [f"missing values: {', '.join(lacking)}; {treated}"] if lacking else []


# ---- arrays ----


def read_arrays(file: Path, options: DataFields) -> Samples:
    """The samples of a file that `numpy.savez` writes, with a row of each array for each.

    `x` (n, …) has the inputs: whole numbers (n, L) are tokens, of which 0 is padding; others are
    numbers: vectors (n, d), series (n, T, C) or images (n, C, H, W). `y` (n,) or (n, C) has the
    labels, `domain` (n,) names or numbers; `split`, `group` and `attribute` as in tables.

    Args:
        file: it.
        options: `columns` has other names of the arrays, by `features`, `label`, `domain`, …

    Raises:
        UserError: it is no such file, or an array is missing or has another length or kind.
        OSError: the file cannot be read.
    """
    try:
        with np.load(regular(file), allow_pickle=False) as content:
            arrays = {name: content[name] for name in content.files}
    except OSError:
        raise
    except Exception as error:  # damaged or other files raise anything
        raise UserError(
            f"{file} is no file of plain arrays ({one_line(error)}): write it with numpy.savez",
            "dataset",
        ) from error
    chosen = {role: _listed(names)[0] for role, names in options.columns.items()}
    names = Rows(file, list(arrays), []).columns(
        {"features": "x", "label": "y", **chosen},
        ("features", "label", "domain"),
        ("split", "group", "attribute"),
    )
    roles = {role: arrays[name] for role, name in names.items()}
    x, y = _inputs(file, roles.pop("features")), roles.pop("label")
    for role, values in {"label": y, **roles}.items():
        if len(values) != len(x) or values.dtype.kind not in "biufU":
            raise UserError(
                f"{file}: {names[role]!r} has the shape {values.shape} and the type "
                f"{values.dtype}: expected numbers or texts of {len(x)} samples",
                "dataset",
            )
    y = y.astype(object if y.dtype.kind == "U" else np.float64)
    found = {role: np.array(as_texts(values), object) for role, values in roles.items()}
    kind = "tokens" if x.dtype.kind == "i" else "numbers"
    note = f"{file.name}: {len(x)} samples, {kind} of shape {x.shape[1:]}"
    return _checked(Samples(file, x, y, found, (), [note]), options)


def _inputs(file: Path, x: np.ndarray) -> np.ndarray:
    """int64 (n, L), or float32 (n, …)."""
    if x.dtype.kind in "iu" and x.ndim == 2 and (x >= 0).all():
        return x.astype(np.int64)
    problem = ""
    if x.dtype.kind not in "biuf" or x.ndim < 2:
        problem = f"has the type {x.dtype} and the shape {x.shape}: expected numbers (n, …)"
    elif x.dtype.kind in "iu" and x.ndim == 2:
        problem = "has tokens below 0: number them from 1, and save other numbers as floats"
    elif not np.isfinite(x).all():
        problem = f"has no finite numbers in sample {np.argwhere(~np.isfinite(x))[0][0]}"
    elif x.ndim == 4 and x.shape[3] <= 4 < x.shape[1]:
        problem = f"has the shape {x.shape}: expected images (n, channels, height, width)"
    if problem:
        raise UserError(f"{file}: the array of inputs {problem}", "dataset")
    return x.astype(np.float32)


# ---- both ----


def _checked(samples: Samples, options: DataFields) -> Samples:
    """The samples with the classes that their labels mean, if there are domains and splits."""
    file, roles, meant = samples.file, dict(samples.roles), options.meant
    domains = samples.domains
    if len(domains) < 2 or "" in domains:
        raise UserError(
            f"{file}: the domains are {domains}: expected two or more, and one for each sample",
            "columns",
        )
    if unknown := set(roles.get("split", ())) - set(_SPLITS):
        raise UserError(
            f"{file}: 'split' is {min(unknown)!r}: expected one of {', '.join(_SPLITS)}", "columns"
        )
    if "split" in roles:
        roles["split"] = np.array([_SPLITS[text] for text in roles["split"]])
    y = samples.y
    if y.dtype == object and y.ndim == 1:
        y = np.array([meant.get(text, text) for text in y], object)
    return replace(samples, y=y, roles=roles)
