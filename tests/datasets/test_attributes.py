"""Attributes and groups of samples: what minibatches, algorithms and metrics see of them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils.data import TensorDataset

from domainbed.datasets import DATASETS, MultipleDomainDataset
from domainbed.datasets.domain import evaluation_draws
from domainbed.spec import RunSpec
from domainbed.training import build


class Birds(MultipleDomainDataset):
    """Two classes on two backgrounds: in each domain 12 samples of both, 3 of a class on land."""

    ENVIRONMENTS = ("a", "b", "c")
    small_images = True

    def __init__(self, root: str, test_envs: Any, hparams: Any) -> None:
        self.input_shape, self.num_classes, self.classes = (2,), 2, ["landbird", "waterbird"]
        self.attribute_names = ["land", "water"]
        y = torch.arange(24) % 2
        self.datasets = [TensorDataset(torch.randn(24, 2), y) for _ in self.ENVIRONMENTS]
        self.attributes = [[int(n >= 6) for n in range(24)] for _ in self.ENVIRONMENTS]


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(DATASETS._entries, "Birds", Birds)


def test_attributes_reach_minibatches_facts_and_metrics() -> None:
    spec = RunSpec.create("Birds", "ERM", [2], metrics=["accuracy", "accuracy_by_group"])
    experiment = build(spec)
    facts = experiment.facts
    assert facts.attribute_names == ("land", "water")
    assert facts.group_names[1:3] == ("landbird, water", "waterbird, land")
    inside = [n for e in (0, 1) for n in experiment.splits[e].inside]
    counted = [sum(2 * (n % 2) + (n >= 6) == group for n in inside) for group in range(4)]
    assert facts.group_sizes == tuple(counted)
    assert facts.class_sizes == (counted[0] + counted[1], counted[2] + counted[3])
    (minibatches,) = experiment.minibatches(range(1))
    for minibatch in minibatches:
        assert minibatch.index is not None
        assert torch.equal(minibatch.extras["attribute"], (minibatch.index >= 6).long())
        group = 2 * minibatch[1]
        assert torch.equal(minibatch.extras["group"], group + minibatch.extras["attribute"])
    found = {value.metric for value in experiment.evaluate(0, experiment.all_splits())}
    assert "accuracy_worst_group" in found


def test_groups_without_an_attribute_are_noted_by_name() -> None:
    experiment = build(RunSpec.create("Birds", "ERM", [2]))
    domain = experiment.domains[0].with_groups([f"patient {n // 4}" for n in range(24)])
    (batch,) = domain.minibatches(evaluation_draws([3, 20]))
    assert batch.extras["group"] == ["patient 0", "patient 5"]
    assert experiment.domains[0].groups is None
