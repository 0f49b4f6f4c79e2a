"""Datasets that break their contract are refused where a run begins."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch.utils.data import Dataset, TensorDataset

from domainbed import networks
from domainbed.algorithms import ERM
from domainbed.core.minibatch import tensors_of
from domainbed.datasets import DATASETS, MultipleDomainDataset, TensorDomain
from domainbed.errors import UserError
from domainbed.networks import NETWORKS
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
        (
            TensorDataset(X, torch.stack([Y, Y], 1)),
            r"each label has the shape \(2,\), expected \(\)",
        ),
        (TensorDataset(X.byte(), Y), "dtype of its inputs is torch.uint8, expected torch.float32"),
        (TensorDataset(X[:, 0], Y), r"shape of its inputs is \(8, 8\), expected \(1, 8, 8\)"),
        (Pairs(X.double(), Y), "dtype of its inputs is torch.float64, expected torch.float32"),
        (
            TensorDataset(X[:, 0, 0].long(), Y),
            "torch.int64, expected torch.float32; .* names it as 'network'",
        ),
        (Pairs([{"x": x} for x in X], Y.tolist()), "its inputs are a dict, expected a tensor; for"),
        ([(x,) for x in X], r"its first sample makes no batch \(not enough values .*: return"),
        (Pairs(X, Y.tolist(), targets=[*Y[:-1].tolist(), 7]), "image 8 has the label 7"),
        (
            Pairs([object()] * 9, Y.tolist()),
            r"samples \[0\] make no batch \(.*give the dataset a 'collate'",
        ),
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


class Flat(networks.Featurizer):
    """Sums of whatever tensors a sample has."""

    n_outputs = 1

    def __init__(self, described: Any, hparams: Any) -> None:
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(1))

    def forward(self, x: Any) -> torch.Tensor:
        sums = [each.float().flatten(1).sum(1, keepdim=True) for each in tensors_of(x)]
        return self.scale * torch.stack(sums).sum(0)


@pytest.mark.parametrize(
    ("bad", "changes", "message"),
    [
        (Pairs([{"x": x} for x in X], Y.tolist()), {"input_shape": None}, ""),
        (Pairs(X.long()[:, 0], Y.tolist()), {"input_shape": (8, 8)}, ""),
        (Pairs(X.byte(), Y.tolist()), {}, ""),
        (Pairs(X[:, 0], Y.tolist()), {}, r"shape of its inputs is \(8, 8\), expected \(1, 8, 8\)$"),
        (
            Pairs(X.double(), Y.tolist()),
            {"input_shape": None},
            "torch.float64, expected .*float32$",
        ),
        (Pairs([{"x": x.double()} for x in X], Y.tolist()), {}, "torch.float64, expected"),
        (Pairs(["text"] * 9, Y.tolist()), {"input_shape": None}, "its inputs are a list, expected"),
        (TensorDomain({"x": X, "m": X[:, 0]}, Y, {"group": ["a"] * 9}), {"input_shape": None}, ""),
        (Pairs([torch.zeros(2 + y) for y in Y], Y.tolist()), {"input_shape": None}, ""),
    ],
)
def test_a_dataset_with_a_network_of_its_own(
    bad: Any, changes: Any, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def __init__(self: Any, root: str, test_envs: Any, hparams: Any) -> None:
        Faulty.__init__(self, root, test_envs, hparams)
        self.input_shape = changes.get("input_shape", (1, 8, 8))
        self.datasets = [bad, bad]

    monkeypatch.setattr(NETWORKS, "_entries", dict(NETWORKS._entries))
    arguments = {"bad": bad, "network": Flat, "__init__": __init__}
    if message:
        with pytest.raises(UserError, match=f"domain 0 of dataset Faulty: .*{message}"):
            built(monkeypatch, **arguments)
        return
    experiment = built(monkeypatch, **arguments)
    assert experiment.spec.hparams["featurizer"] == "Flat"
    assert "resnet18" not in experiment.spec.hparams
    if not isinstance(bad, Pairs) or len({x.shape for x in tensors_of(bad.x)}) == 1:
        (minibatches,) = experiment.minibatches(range(1))
        assert experiment.algorithm.update(minibatches)["loss"] > 0
        return
    with pytest.raises(
        UserError, match=r"samples \[.*make no batch .*give the dataset a 'collate'"
    ):
        list(experiment.domains[0].evaluation_batches([0, 1]))


def test_a_network_that_a_dataset_brings_is_registered_with_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for registry in (NETWORKS, DATASETS):
        monkeypatch.setattr(registry, "_entries", dict(registry._entries))
    DATASETS.register(type("Theirs", (Faulty,), {"network": Flat}))
    assert NETWORKS["Flat"] is Flat
    taken = type("MLP", (Flat,), {})
    with pytest.raises(ValueError, match="network 'MLP' is registered already"):
        DATASETS.register(type("Others", (Faulty,), {"network": taken}))
    monkeypatch.setitem(DATASETS._entries, "Odd", type("Odd", (Faulty,), {"space": "medium"}))
    with pytest.raises(UserError, match="dataset Odd has the space 'medium': expected small or l"):
        RunSpec.create("Odd", "ERM", [0])
    monkeypatch.setitem(DATASETS._entries, "Lost", type("Lost", (Faulty,), {"network": "lost"}))
    with pytest.raises(UserError, match="unknown network 'lost'"):
        RunSpec.create("Lost", "ERM", [0])


def test_what_a_network_is_told_of_the_data_is_plain(monkeypatch: pytest.MonkeyPatch) -> None:
    def __init__(self: Any, root: str, test_envs: Any, hparams: Any) -> None:
        Faulty.__init__(self, root, test_envs, hparams)
        self.input_shape = {"vocabulary": torch.zeros(3)}

    monkeypatch.setattr(NETWORKS, "_entries", dict(NETWORKS._entries))
    with pytest.raises(UserError, match=r"input_shape is .* set a shape, or plain values"):
        built(monkeypatch, bad=TensorDataset(X, Y), network=Flat, __init__=__init__)


def test_more_tensors_than_inputs_and_labels(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"a TensorDataset has 3 tensors, .*TensorDomain\(x, y, ex"):
        built(monkeypatch, bad=TensorDataset(X, Y, Y))
    with pytest.raises(
        UserError, match="there are 9 labels, and 8 samples of an input or an extra"
    ):
        TensorDomain(X, Y, {"group": ["a"] * 8})
