"""Datasets whose samples lie in one file: the rows of a table, or arrays."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from domainbed.config.dimensions import Choice, Dimension, LogUniform
from domainbed.core.files import file_digest
from domainbed.datasets.base import MultipleDomainDataset
from domainbed.datasets.domain import TensorDomain
from domainbed.datasets.encoding import Values, as_texts, encoded, learned
from domainbed.errors import UserError
from domainbed.metrics.labels import label_type

_SMALL: dict[str, Dimension] = {
    "lr": LogUniform(1e-3, -4, -2, "step size of the optimizer", above=0),
    "weight_decay": LogUniform(0.0, -6, -2, "L2 coefficient of the optimizer", least=0),
    "batch_size": LogUniform(
        32, 3, 6, "samples per training domain and step", base=2, integer=True, least=1
    ),
}
_SEQUENCES: dict[str, Dimension] = {
    **_SMALL,
    "sequence_width": Choice(64, (32, 64, 128), "width of the network"),
    "sequence_depth": Choice(2, (1, 2, 3), "its layers", least=1),
    "sequence_dropout": Choice(0.0, (0.0, 0.1, 0.5), "its dropout", least=0, below=1),
}
SPACES: dict[str, dict[str, Dimension]] = {
    "MLP": {
        **_SMALL,
        "mlp_width": Choice(64, (32, 64, 128), "width of the network", least=1),
        "mlp_depth": Choice(3, (2, 3), "its linear layers", least=2),
        "mlp_dropout": Choice(0.0, (0.0, 0.1, 0.5), "its dropout", least=0, below=1),
    },
    "SequenceCNN": _SEQUENCES,
    "Transformer": _SEQUENCES,
    "": {},
}
"""By network; of images, whose size decides, the published ones."""


@dataclass(frozen=True)
class Samples:
    """What a file holds.

    Attributes:
        file: it.
        x: inputs before they are encoded, see `domainbed.datasets.encoding`.
        y: (n,) or (n, C) labels: numbers, or the texts of classes.
        roles: (n,) texts: of each sample the `domain`, and where the file says so the `group`, the
            `attribute` and the `split`.
        label_names: of the columns of labels, where these have names.
        notes: what is said at the start of a run.
    """

    file: Path
    x: Values
    y: np.ndarray
    roles: Mapping[str, np.ndarray]
    label_names: Sequence[str] = ()
    notes: Sequence[str] = ()

    @property
    def domains(self) -> list[str]:
        """Their names, in order."""
        return sorted(set(self.roles["domain"]))

    def labelled(self, kind: str) -> tuple[torch.Tensor, list[str]]:
        """Labels as those of this kind are, and the names of classes or columns.

        Raises:
            UserError: they are no numbers, but have to be.
        """
        if kind in ("classes", "binary") and self.y.ndim == 1:
            values = self.y.astype(str) if self.y.dtype == object else self.y
            names, numbers = np.unique(values, return_inverse=True)
            return torch.from_numpy(numbers.astype(np.int64)), as_texts(names)
        if self.y.dtype == object:
            raise UserError(
                f"{self.file}: labels of the type {kind!r} are numbers, and there are texts such "
                f"as {self.y.flat[0]!r}: leave 'labels' out, or name another column of labels",
                "labels",
            )
        return torch.from_numpy(self.y.astype(np.float32)), list(self.label_names)


def usual_labels(y: np.ndarray) -> str:
    """The type of labels that a dataset has where nothing else is said.

    Several columns are properties if all are 0 or 1; one is of classes if there are texts or whole
    numbers. Others are numbers to regress.
    """
    if y.ndim > 1:
        return "multilabel" if np.isin(y, (0, 1)).all() else "regression"
    return "classes" if y.dtype == object or (y % 1 == 0).all() else "regression"


class SampleDataset(MultipleDomainDataset):
    """The samples in one file; inputs are encoded by what is learned from those that train.

    Attributes:
        read: what the file holds.
        may_lack_classes: whether a domain may have no sample of some class.

    Raises:
        UserError: labels that are none of their type, or a domain that lacks a class.
    """

    N_STEPS, CHECKPOINT_FREQ = 1001, 100
    space = "small"
    learns_encoding = True
    may_lack_classes: ClassVar[bool] = False
    read: ClassVar[Callable[[], Samples]]

    def __init__(
        self, root: str, test_envs: Sequence[int], hparams: Mapping[str, Any], labels: str = ""
    ) -> None:
        self.samples = type(self).read()
        kind, self.notes = label_type(labels or self.labels).kind, self.samples.notes
        self.y, self.classes = self.samples.labelled(kind)
        if kind == "regression" and self.y.abs().max() > 100:
            largest = f"{self.y.abs().max():g}"
            said = f"labels reach {largest}: give them in a unit in which they are about 1"
            self.notes = [*self.notes, said]
        self.num_classes = len(self.classes) or self.y.reshape(len(self.y), -1).shape[1]
        domain = self.samples.roles["domain"]
        self.rows = [np.flatnonzero(domain == name) for name in self.samples.domains]
        if kind == "classes" and not self.may_lack_classes:
            self._require_classes()
        self.fingerprint = file_digest(self.samples.file)
        self._take_roles(self.samples.roles)
        self._take(np.empty((len(self.y), 0), np.float32))  # until they are encoded

    def _take_roles(self, roles: Mapping[str, np.ndarray]) -> None:
        """Which samples validate, and their groups and attributes, where the file says so."""
        of_domains = {name: [texts[own] for own in self.rows] for name, texts in roles.items()}
        if "split" in roles:
            self.out_splits = [np.flatnonzero(own == "out").tolist() for own in of_domains["split"]]
        if "group" in roles:
            self.groups = [own.tolist() for own in of_domains["group"]]
        if "attribute" in roles:
            self.attribute_names = sorted(set(roles["attribute"]))
            self.attributes = [
                np.searchsorted(self.attribute_names, own).tolist()
                for own in of_domains["attribute"]
            ]

    def _require_classes(self) -> None:
        for name, own in zip(self.samples.domains, self.rows):
            here = {self.classes[label] for label in self.y[own].tolist()}
            if lacking := [each for each in self.classes if each not in here]:
                raise UserError(
                    f"{self.samples.file}: the domain {name!r} lacks the classes "
                    f"{', '.join(lacking)}: all domains must have all, unless 'missing_classes' "
                    "is 'allow'; numbers to regress need 'labels' regression",
                    "missing_classes",
                )

    def _take(self, x: np.ndarray) -> None:
        self.input_shape: Any = x.shape[1:]
        inputs = torch.from_numpy(x)
        self.datasets: Sequence[Any] = [TensorDomain(inputs[own], self.y[own]) for own in self.rows]

    def learned_encoding(self, rows: Sequence[Sequence[int]]) -> Any:
        trained = np.concatenate([own[list(chosen)] for own, chosen in zip(self.rows, rows)])
        return learned(_chosen(self.samples.x, trained))

    def encoded(self, encoding: Any) -> SampleDataset:
        made, x = copy.copy(self), encoded(self.samples.x, encoding)
        made.encoding = encoding
        made._take(x)
        made.notes = [*self.notes, *_unseen(self.samples.x, encoding)]
        if "tokens" in encoding:
            made.input_shape = {"vocabulary": len(encoding["tokens"]) + 1, "length": x.shape[1]}
        return made


def _unseen(x: Values, encoding: Any) -> list[str]:
    """What is said of categories that none of the samples that train has."""
    found = []
    for column in encoding if isinstance(x, Mapping) else ():
        values = set(as_texts(x[column["column"]])) if "categories" in column else set()
        if others := sorted(values.difference(column.get("categories", ()))):
            found.append(
                f"no sample that trains has {column['column']} {', '.join(others)}: all inputs of "
                "that column are 0 then"
            )
    return found


def _chosen(x: Values, rows: np.ndarray) -> Values:
    if isinstance(x, np.ndarray):
        return x[rows]
    return {name: column[rows] for name, column in x.items()}


class TableDataset(SampleDataset):
    """The rows of a table."""

    network = "MLP"
    search_space = SPACES["MLP"]
