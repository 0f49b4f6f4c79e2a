"""Datasets that break their contract are refused where a run begins."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch.utils.data import Dataset, TensorDataset

from domainbed.algorithms import ERM
from domainbed.datasets import DATASETS, MultipleDomainDataset
from domainbed.errors import UserError
from domainbed.spec import RunSpec
from domainbed.training import build

X, Y = torch.zeros(9, 1, 8, 8), torch.arange(9) % 2


class Pairs(Dataset[Any]):
    """Of (x, y); with `targets` only where these are given."""

    def __init__(self, x: Any, y: Any, **attributes: Any) -> None:
        self.x, self.y = x, y
        vars(self).update(attributes)

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> Any:
        return self.x[index], self.y[index]


class Faulty(MultipleDomainDataset):
    ENVIRONMENTS = ("good", "bad")
    small_images = True
    bad: Any = None

    def __init__(self, root: str, test_envs: Any, hparams: Any) -> None:
        self.input_shape, self.num_classes = (1, 8, 8), 2
        self.datasets = [TensorDataset(X, Y), self.bad]


def built(monkeypatch: pytest.MonkeyPatch, **attributes: Any) -> Any:
    cls = type("Faulty", (Faulty,), attributes)
    monkeypatch.setitem(DATASETS._entries, "Faulty", cls)
    return build(RunSpec.create("Faulty", "ERM", [0]))


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (TensorDataset(X, Y + 1), "image 1 has the label 2, expected 0 to 1"),
        (TensorDataset(X, -Y), "image 1 has the label -1, expected 0 to 1"),
        (TensorDataset(X, Y.float()), "dtype of its labels is torch.float32, expected torch.int64"),
        (TensorDataset(X, torch.stack([Y, Y], 1)), r"labels of the shape \(9, 2\)"),
        (TensorDataset(X.byte(), Y), "dtype of its inputs is torch.uint8, expected torch.float32"),
        (TensorDataset(X[:, 0], Y), r"shape of its inputs is \(8, 8\), expected \(1, 8, 8\)"),
        (Pairs(X.double(), Y), "dtype of its inputs is torch.float64, expected torch.float32"),
        (Pairs(X, Y.tolist(), targets=[*Y[:-1].tolist(), 7]), "image 8 has the label 7"),
        (Pairs([object()] * 9, Y.tolist()), "its first element makes no batch"),
    ],
)
def test_domains(bad: Any, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=f"domain 1 of dataset Faulty: .*{message}"):
        built(monkeypatch, bad=bad)


def test_labels_are_not_searched_for_by_reading_all_images(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []

    class Noted(Pairs):
        def __getitem__(self, index: int) -> Any:
            read.append(index)
            return super().__getitem__(index)

    assert built(monkeypatch, bad=Noted(X, Y)).domains[1].labels_at_hand is False
    assert read == [0]


def test_labels_that_only_reading_tells(monkeypatch: pytest.MonkeyPatch) -> None:
    domain = built(monkeypatch, bad=Pairs(X, [*Y[:-1].tolist(), 7])).domains[1]
    assert len(next(domain.evaluation_batches(range(8)))[1]) == 8
    with pytest.raises(UserError, match="image 8 has the label 7, expected 0 to 1"):
        list(domain.evaluation_batches([8]))


def test_domains_have_one_name_each(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="Faulty has 2 domains, but ENVIRONMENTS has 3 names"):
        built(monkeypatch, bad=TensorDataset(X, Y), ENVIRONMENTS=("a", "b", "c"))
    assert built(monkeypatch, bad=TensorDataset(X, Y), ENVIRONMENTS=()).domain_names == ["0", "1"]


@pytest.mark.parametrize("kind", ["dataset", "algorithm"])
def test_the_class_whose_constructor_fails_is_named_before_the_traceback(
    kind: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def __init__(self: Any, *arguments: Any) -> None:
        raise ZeroDivisionError("mine")

    if kind == "dataset":
        changes: dict[str, Any] = {"__init__": __init__}
    else:
        changes = {}
        monkeypatch.setattr(ERM, "__init__", __init__)
    with pytest.raises(ZeroDivisionError):
        built(monkeypatch, bad=TensorDataset(X, Y), **changes)
    name, place = {"dataset": ("Faulty", __file__), "algorithm": ("ERM", "erm.py")}[kind]
    assert re.fullmatch(rf"error: making {name} of .*{place} failed:", *caplog.messages)


def test_one_class_is_nothing_to_tell_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    def __init__(self: Any, root: str, test_envs: Any, hparams: Any) -> None:
        Faulty.__init__(self, root, test_envs, hparams)
        self.num_classes = 1

    with pytest.raises(UserError, match="dataset Faulty has 1 class: there is nothing to tell"):
        built(monkeypatch, bad=TensorDataset(X, 0 * Y), __init__=__init__)


@pytest.mark.parametrize("name", ["datasets", "input_shape", "num_classes"])
def test_what_a_dataset_must_set(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def __init__(self: Any, root: str, test_envs: Any, hparams: Any) -> None:
        Faulty.__init__(self, root, test_envs, hparams)
        delattr(self, name)

    with pytest.raises(UserError, match=f"dataset Faulty has no '{name}': set it"):
        built(monkeypatch, bad=TensorDataset(X, Y), __init__=__init__)
