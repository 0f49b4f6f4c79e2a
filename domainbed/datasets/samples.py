"""Datasets whose samples lie in one file, a table or NumPy's arrays; and penguins, as a table."""

import io
import math
import zipfile
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import torch

from domainbed.config.dimensions import Choice, Dimension, LogUniform
from domainbed.config.run_fields import DataFields
from domainbed.core.files import file_digest, regular
from domainbed.core.names import dataset_label
from domainbed.datasets.base import MultipleDomainDataset, published
from domainbed.datasets.domain import TensorDomain
from domainbed.datasets.rows import Rows, by_roles, name_ignored_groups, read_rows
from domainbed.errors import UserError, one_line
from domainbed.metrics.labels import label_type

_SMALL: dict[str, Dimension] = {
    "lr": LogUniform(1e-3, -4, -2, "step size of the optimizer", above=0),
    "weight_decay": LogUniform(0.0, -6, -2, "L2 coefficient of the optimizer", least=0),
    "batch_size": LogUniform(
        32, 3, 6, "samples per training domain and step", base=2, integer=True, least=1
    ),
}
_VECTORS: dict[str, Dimension] = {
    **_SMALL,
    "mlp_width": Choice(64, (32, 64, 128), "width of the network", least=1),
    "mlp_depth": Choice(3, (2, 3), "its linear layers", least=2),
    "mlp_dropout": Choice(0.0, (0.0, 0.1, 0.5), "its dropout", least=0, below=1),
}
_SEQUENCES: dict[str, Dimension] = {
    **_SMALL,
    "sequence_width": Choice(64, (32, 64, 128), "width of the network, a multiple of 4", least=4),
    "sequence_depth": Choice(2, (1, 2, 3), "its layers", least=1),
    "sequence_dropout": Choice(0.0, (0.0, 0.1, 0.5), "its dropout", least=0, below=1),
}


class SampleDataset(MultipleDomainDataset):
    """The samples in one file; inputs are encoded by what is learned from those that train.

    Attributes:
        file: it; arrays where it ends in .npz, else a table.
        fields: the names of columns, which labels mean one class, and whether domains may lack
            classes.

    Raises:
        UserError: labels that are none of their type, or a domain that lacks a class.
    """

    N_STEPS, CHECKPOINT_FREQ = 1001, 100
    network, space, search_space = "MLP", "small", _VECTORS
    input_shape: Any = (0,)  # a table's, until its width is known
    file: ClassVar[Path]
    fields: ClassVar[DataFields]

    def __init__(
        self, root: str, test_envs: Sequence[int], hparams: Mapping[str, Any], labels: str = ""
    ) -> None:
        self.samples = self.read()
        y, roles, self.notes = self.samples.y, self.samples.roles, [self.samples.note]
        kind = label_type(labels or self.labels).kind
        if kind in ("classes", "binary") and y.ndim == 1:
            names, numbers = np.unique(y, return_inverse=True)
            self.y, self.classes = torch.from_numpy(numbers), [str(name) for name in names]
        elif y.dtype == object:
            raise UserError(
                f"labels are {kind!r}, which are numbers, and there are texts such as "
                f"{y.flat[0]!r}: leave 'labels' out, or name another column of labels",
                "labels",
            )
        else:
            self.y, self.classes = torch.from_numpy(y.astype(np.float32)), self.samples.label_names
        self.num_classes = len(self.classes) or self.y[:1].numel()
        self.rows = [np.flatnonzero(roles.domain == name) for name in sorted(set(roles.domain))]
        texts = {role: [roles[role][own].tolist() for own in self.rows] for role in roles}
        vars(self).update(by_roles(texts))
        for own in self.rows if self.fields.missing_classes == "refuse" else ():
            if self.y.dtype == torch.int64 and len(self.y[own].unique()) < self.num_classes:
                raise UserError(
                    f"{self.file}: the domain {roles.domain[own[0]]!r} lacks some of the classes "
                    f"{', '.join(self.classes)[:200]}: set missing_classes to allow, or labels to "
                    "regression where they are numbers",
                    "missing_classes",
                )
        self.fingerprint = file_digest(self.file)
        self._take(np.empty((len(self.y), 0), np.float32))  # until they are encoded

    @classmethod
    def read(cls) -> SimpleNamespace:
        """What the file holds.

        Returns:
            `x`, inputs before they are encoded: the columns of a table, a data frame; or an array,
            int64 (n, L) of tokens, else float32 (n, …). `y` (n,) or (n, C), labels: numbers, or the
            texts of classes. `roles`, a data frame of texts: `domain`, and where there are these
            `split`, `group` and `attribute`. `label_names`, of columns of labels. `note`, what is
            said at the start of a run.

        Raises:
            UserError: it cannot be read, or not by these fields.
        """
        try:
            return _read(cls.file, regular(cls.file).stat().st_mtime_ns, cls.fields.of_data())
        except (OSError, ValueError, zipfile.BadZipFile) as error:
            raise UserError(
                f"dataset {str(cls.file)!r} cannot be read ({one_line(error)}): expected a table "
                "ending in .csv, .tsv, .jsonl or .parquet, or arrays in .npz",
                "dataset",
            ) from error

    def _take(self, x: np.ndarray) -> None:
        inputs, self.input_shape = torch.from_numpy(x), x.shape[1:]
        self.datasets: Sequence[Any] = [TensorDomain(inputs[own], self.y[own]) for own in self.rows]

    def encode(self, trained: Sequence[Sequence[int]], encoding: Any = None) -> None:
        """Makes the inputs, see `learned` and `encoded`.

        Args:
            trained: for each domain the positions of the samples that train.
            encoding: what was learned before; None to learn it of these.
        """
        x = self.samples.x
        rows = np.concatenate([own[list(at)] for own, at in zip(self.rows, trained)])
        self.encoding = encoding or learned(x[rows] if isinstance(x, np.ndarray) else x.iloc[rows])
        self._take(encoded(x, self.encoding))
        if "tokens" in self.encoding:
            self.input_shape = {
                "vocabulary": len(self.encoding["tokens"]) + 1,
                "length": x.shape[1],
            }


def learned(x: Any) -> dict[str, Any]:
    """How the tokens, numbers and categories of samples become inputs, as plain values.

    Returns:
        Of tokens `tokens`, those that there are. Of others `mean` and `scale`, which is one over
        the deviation, or 0 where all are equal: for each column of numbers of a table, feature
        (n, d), channel of a series (n, T, C) or channel of images (n, C, H, W). Of a table also
        the names of these columns as `numbers`; `missing`, whether any was; and `categories`,
        those of each other column.
    """
    is_table = not isinstance(x, np.ndarray)
    if not is_table and x.dtype == np.int64:
        return {"tokens": np.unique(x[x > 0]).tolist()}
    numbers = x.select_dtypes("number").to_numpy(float) if is_table else x.astype(float)
    of_channels = np.moveaxis(numbers, 1, -1) if numbers.ndim == 4 else numbers
    count = math.prod(of_channels.shape[:-1])
    rows = np.ma.masked_invalid(of_channels.reshape(count, of_channels.shape[-1]))
    mean, deviation = rows.mean(axis=0).filled(0), rows.std(axis=0).filled(0)
    differs = np.ma.ptp(rows, axis=0).filled(0) > 0  # of equal numbers the mean may be rounded
    scale = np.divide(1, deviation, out=np.zeros_like(deviation), where=differs & (deviation > 0))
    encoding = {"mean": mean.tolist(), "scale": scale.tolist()}
    if is_table:
        encoding["numbers"] = list(x.select_dtypes("number"))
        encoding["missing"] = np.isnan(numbers).any(axis=0).tolist()
        encoding["categories"] = {
            name: sorted({*x[name]}) for name in x.select_dtypes(exclude="number")
        }
    return encoding


def encoded(x: Any, encoding: Mapping[str, Any]) -> np.ndarray:
    """The inputs: float32 (n, d) of a table, float32 (n, …) of numbers, int64 (n, L) of tokens.

    Tokens are numbered from 1; one that was in no sample that trains becomes 0, as padding is.

    Of a table come first the numbers in deviations from their means, 0 where one is missing; then
    of each column where any was missing in training, whether it is; then of each category that
    there was in training, of which "" is a missing one, whether it is that.

    Raises:
        UserError: a table lacks a column, or has texts where there were numbers.
    """
    if "tokens" in encoding:
        known = np.array([*encoding["tokens"], np.iinfo(np.int64).max])
        places = np.searchsorted(known, x)
        return np.where(known[places] == x, places + 1, 0)
    if "numbers" in encoding:
        lacking = {*encoding["numbers"]}.difference(x.select_dtypes("number"))
        for name in sorted(lacking.union({*encoding["categories"]}.difference(x))):
            raise UserError(
                f"the table has no column {name!r}, which is one of the inputs, or texts in it "
                "where there were numbers"
            )
    numbers = x[encoding["numbers"]].to_numpy(float) if "numbers" in encoding else x
    shape = (-1, 1, 1) if x.ndim == 4 else (-1,)
    mean, scale = (np.reshape(encoding[name], shape) for name in ("mean", "scale"))
    inputs = np.nan_to_num((numbers - mean) * scale).astype(np.float32)
    if "numbers" not in encoding:
        return inputs
    missing = np.isnan(numbers)[:, encoding["missing"]]
    found = [
        x[name].astype(str).where(x[name].notna(), "") == each  # true or false, say, as text
        for name, own in encoding["categories"].items()
        for each in own
    ]
    return np.column_stack([inputs, missing, *found]).astype(np.float32)


def sample_dataset(name: str, fields: DataFields) -> type[SampleDataset]:
    """The dataset class of a table or of arrays, without code.

    Labels of one column, or an array (n,), are classes if they are texts or whole numbers. Several
    columns, or (n, C), are properties if all are 0 or 1. Others are numbers to regress.

    Args:
        name: `table:FILE` or `arrays:FILE`, see `_table` and `_arrays`.
        fields: see `SampleDataset`.

    Raises:
        UserError: see `SampleDataset.read`.
    """
    file = Path(name.partition(":")[2]).expanduser().resolve()
    made: Any = type(dataset_label(name), (SampleDataset,), {"file": file, "fields": fields})
    samples = made.read()
    x, y = samples.x, samples.y
    made.ENVIRONMENTS = tuple(sorted(set(samples.roles.domain)))
    if y.ndim > 1 or y.dtype.kind == "f":
        made.labels = "multilabel" if np.isin(y, (0, 1)).all() else "regression"
    if isinstance(x, np.ndarray):
        # Of images the size decides.
        made.network = {"i2": "Transformer", "f2": "MLP", "f3": "SequenceCNN"}.get(
            f"{x.dtype.kind}{x.ndim}", ""
        )
        made.input_shape = None if made.network == "Transformer" else x.shape[1:]
        made.search_space = {"MLP": _VECTORS, "": {}}.get(made.network, _SEQUENCES)
        made.space = "large" if x.ndim == 4 and max(x.shape[2:]) > 28 else "small"
    return made


@lru_cache(maxsize=8)  # a sweep asks for its dataset's class once per run
def _read(file: Path, modified: int, of_data: str) -> SimpleNamespace:
    """Reads the file, again if it has been `modified` since."""
    fields = DataFields.model_validate_json(of_data)
    samples = (_arrays if file.suffix.lower() == ".npz" else _table)(file, fields)
    splits = {*samples.roles.get("split", ())}
    if samples.roles.domain.nunique() < 2 or splits.difference(("in", "train", "out", "val")):
        raise UserError(
            f"{file}: expected samples of two domains or more, and where there is a split, in, "
            "train, out or val",
            "columns",
        )
    if samples.y.ndim == 1 and samples.y.dtype.kind == "f" and (samples.y % 1 == 0).all():
        samples.y = samples.y.astype(np.int64)
    return samples


def _table(file: Path, fields: DataFields) -> SimpleNamespace:
    """A sample in each row that has all labels and its domain.

    The inputs are the columns `features`, or all that have no other role. There may be several
    columns `label`. Columns `group` and `attribute` count only where they are named so.
    """
    import pandas as pd

    frame = (
        pd.read_parquet(file)
        if file.suffix.lower() == ".parquet"
        else pd.DataFrame([row for _, row in read_rows(file).rows])
    )
    # Which columns are numbers, and what is missing, is as pandas reads CSV.
    frame = pd.read_csv(io.StringIO(frame.to_csv(index=False)), na_values=["?"], low_memory=False)
    chosen = {r: [name] if isinstance(name, str) else name for r, name in fields.columns.items()}
    labels, features = chosen.pop("label", ["label"]), chosen.pop("features", list(frame))
    columns = Rows(file, list(frame), []).columns
    roles = columns(
        {role: names[0] for role, names in chosen.items()},
        ("domain",),
        ("split", *(role for role in ("group", "attribute") if role in chosen)),
    )
    name_ignored_groups(Rows(file, list(frame), []), roles)
    for name in (*labels, *features):
        columns({"features": name}, ("features",))
    taken = [*labels, *roles.values()]
    kept = frame.dropna(subset=taken).reset_index(drop=True)
    x = kept[[name for name in features if name not in taken]]
    lacking = [f"{name} ({count})" for name, count in x.isna().sum().items() if count]
    others = "".join(f" and a value of {role!r}" for role in roles if role != "domain")
    note = (
        f"{file.name}: {len(kept)} of {len(frame)} rows have a label and a domain{others}; "
        f"missing values: {', '.join(lacking) or 'none'}"
    )
    if lacking:
        note += (
            " (a number counts as the mean of those that train, and one more input says so; a "
            "category is one of its own)"
        )
    words = x.select_dtypes(exclude="number").fillna("").astype(str)
    for name, column in words.items():
        if pd.to_numeric(column.str.replace(",", "."), errors="coerce").notna().mean() > 0.5:
            raise UserError(
                f"{file}: {name!r} has numbers and also texts, such as "
                f"{column[pd.to_numeric(column, errors='coerce').isna()].max()!r}"
                ": write numbers with points, and nothing where one is missing",
                *("columns", "features"),
            )
    y = kept[labels].replace(fields.meant).to_numpy()
    texts = kept[list(roles.values())].convert_dtypes().astype(str).set_axis(list(roles), axis=1)
    return SimpleNamespace(
        x=x.assign(**words),
        y=y[:, 0] if len(labels) == 1 else y,
        roles=texts,
        label_names=labels,
        note=note,
    )


def _arrays(file: Path, fields: DataFields) -> SimpleNamespace:
    """A sample in each row of `x`, `y` and `domain`, as `numpy.savez` writes them.

    x: whole numbers (n, L) are tokens, 0 is padding; others are numbers: vectors (n, d), series
    (n, T, C) or images (n, C, H, W). There may be `split`, `group` and `attribute`. Other names of
    the arrays are chosen as those of a table's columns: of x by `features`, of y by `label`.
    """
    import pandas as pd

    with np.load(file, allow_pickle=False) as content:
        arrays = dict(content)
    names = Rows(file, list(arrays), []).columns(
        {
            role: name if isinstance(name, str) else name[0]
            for role, name in {"features": "x", "label": "y", **fields.columns}.items()
        },
        ("features", "label", "domain"),
        ("split", "group", "attribute"),
    )
    x, y, *others = (arrays[name] for name in names.values())
    is_tokens = x.dtype.kind in "iu" and x.ndim == 2
    if not (
        x.dtype.kind in "biuf"
        and x.ndim > 1
        and np.isfinite(x).all()
        and (not is_tokens or x.min() >= 0)
        and len(x) == len(y) == len(others[0])
    ):
        raise UserError(
            f"{file}: the inputs {names['features']!r} are {x.dtype} of the shape {x.shape}, with "
            f"{len(y)} labels and {len(others[0])} domains: expected finite numbers (n, …), or "
            "tokens (n, L) from 0 on, and n labels and domains",
            "dataset",
        )
    roles = pd.DataFrame(dict(zip(list(names)[2:], others))).astype(str)
    y = y.astype(object if y.dtype.kind in "US" else float)
    note = f"{file.name}: {len(x)} samples, {'tokens' if is_tokens else 'numbers'} {x.shape[1:]}"
    return SimpleNamespace(
        x=x.astype(np.int64 if is_tokens else np.float32),
        y=y,
        roles=roles,
        label_names=(),
        note=note,
    )


# ---- Palmer penguins, the embedded table: 344 birds of three species on three islands ----


_MEASURES = ["bill_length_mm", "bill_depth_mm", "flipper_length_mm"]


@published
class Penguins(SampleDataset):
    """The sex of penguins on three islands; one species may live on the test island alone."""

    file = Path(__file__).with_name("penguins.csv")
    fields = DataFields(
        columns={
            "label": "sex",
            "domain": "island",
            "features": [*_MEASURES, "body_mass_g", "species"],
        }
    )


@published
class PenguinsMass(Penguins):
    """The body mass of penguins in kg, a regression."""

    labels = "regression"
    fields = DataFields(
        columns={
            "label": "body_mass_g",
            "domain": "island",
            "features": [*_MEASURES, "sex", "species"],
        }
    )

    @classmethod
    def read(cls) -> SimpleNamespace:
        grams = super().read()
        return SimpleNamespace(
            **vars(grams) | {"y": grams.y / 1000, "label_names": ["body_mass_kg"]}
        )


@published
class PenguinsSpecies(Penguins):
    """The species of penguins: no island has all three, and one has a single species."""

    fields = DataFields(
        columns={
            "label": "species",
            "domain": "island",
            "features": [*_MEASURES, "body_mass_g", "sex"],
        },
        missing_classes="allow",
    )
