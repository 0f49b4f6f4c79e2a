"""Attributes and groups of samples: what minibatches, algorithms and metrics see of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small_copies
import torch
from torch.utils.data import TensorDataset

from domainbed.datasets import DATASETS, MultipleDomainDataset, domains_of
from domainbed.datasets.domain import evaluation_draws
from domainbed.spec import RunSpec
from domainbed.training import RunOptions, build, run


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


SMALL = {"backbone": "shufflenet_v2_x0_5", "weights": "none", "batch_size": 2}


@pytest.mark.parametrize("name", ["Waterbirds", "CelebA"])
def test_published_groups_and_splits(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the tables of the copies say; the whole test domain tests."""
    small_copies.shrink(monkeypatch)
    small_copies.write_copy(name, tmp_path)
    spec = RunSpec.create(name, "ERM", [1], steps=1, hparams=SMALL)
    assert spec.metrics == ("accuracy", "accuracy_by_group", "accuracy_by_class")
    options = RunOptions(data_dir=str(tmp_path), num_workers=0)
    experiment = build(spec, options)
    rows = small_copies.subpopulation_rows()
    train, test = experiment.splits
    assert (len(train.inside), len(train.out), len(test.inside), test.out) == (7, 2, 8, [])
    sizes = [sum(row == (y, a, 0) for row in rows) for y in (0, 1) for a in (0, 1)]
    assert experiment.facts.group_sizes == tuple(sizes)
    for domain, part in zip(experiment.domains, ((0, 1), (2,))):
        found = list(zip(domain.labels.tolist(), domain.noted["attribute"].tolist()))
        assert found == [row[:2] for row in rows if row[2] in part]
    run(spec, tmp_path / "run", options)
    (record,) = map(json.loads, (tmp_path / "run" / "results.jsonl").read_text().splitlines())
    for part in ("worst_group", "mean_group", "worst_class", "class_gap"):
        assert 0 <= record[f"env0_out_accuracy_{part}"] <= 1
        assert 0 <= record[f"env1_in_accuracy_{part}"] <= 1
    assert "env1_out_acc" not in record


def test_the_draw_of_metashift(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small_copies.shrink(monkeypatch)
    small_copies.write_copy("MetaShift", tmp_path)
    dataset: Any = DATASETS["MetaShift"](str(tmp_path), [1], {})
    assert [len(domain) for domain in dataset] == [12, 4]
    assert [len(out) for out in dataset.out_splits] == [1, 0]
    tested = np.random.RandomState(42).choice(np.arange(16), 4, replace=False)
    places = ["cat(indoor)", "dog(outdoor)", "cat(outdoor)", "dog(indoor)"]
    found = [f"{file.parent.name}/{file.name}" for file in dataset[1].files]
    assert found == [f"{places[n // 4]}/{n % 4}.jpg" for n in sorted(tested)]
    for domain, values in zip(dataset, dataset.attributes):
        for file, label, value in zip(domain.files, domain.targets, values):
            name = f"{dataset.classes[label]}({dataset.attribute_names[value]})"
            assert file.parent.name == name


def test_groups_without_an_attribute_are_noted_by_name() -> None:
    dataset = Birds("", [], {})
    dataset.attributes, dataset.groups = None, [[f"patient {n // 4}" for n in range(24)]] * 3
    (batch,) = domains_of(dataset)[0].minibatches(evaluation_draws([3, 20]))
    assert batch.extras["group"] == ["patient 0", "patient 5"]
    assert domains_of(dataset)[0].groups == dataset.groups[0]


def test_a_table_with_a_group_and_an_attribute(tmp_path: Path) -> None:
    rows = [f"{d},{n % 2},{n},{d}{n // 4},{'abc'[n % 3]}" for d in "xy" for n in range(24)]
    (tmp_path / "t.csv").write_text("\n".join(["domain,label,dose,patient,ward", *rows]))
    columns = {"group": "patient", "attribute": "ward"}
    experiment = build(RunSpec.create(f"table:{tmp_path}/t.csv", "ERM", [1], columns=columns))
    assert experiment.facts.attribute_names == ("a", "b", "c")
    assert experiment.domains[0].groups == [f"x{n // 4}" for n in range(24)]
    assert experiment.domains[1].noted["group"].tolist() == [3 * (n % 2) + n % 3 for n in range(24)]
    assert len(experiment.splits[0].out) == 4
    with pytest.warns(UserWarning, match="column 'patient' is no group"):
        RunSpec.create(f"table:{tmp_path}/t.csv", "ERM", [1])
