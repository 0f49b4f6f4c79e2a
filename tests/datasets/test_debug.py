"""The random datasets: the same ones for all runs of a trial, and trained on without a hang."""

from __future__ import annotations

import json

import pytest
import torch

from domainbed.datasets import DATASETS, dataset_facts, domains_of, load_dataset
from domainbed.hparams import default_hparams
from domainbed.spec import RunSpec
from domainbed.training.experiment import build
from domainbed.training.trainer import run

SMALL = {"batch_size": 20}


@pytest.mark.parametrize(("name", "size"), [("Debug28", 28), ("Debug224", 224)])
def test_shapes_labels_and_law(name, size):
    dataset = load_dataset(name, "", [0], {}, trial_seed=0)
    x, y = (torch.cat(parts) for parts in zip(*(domain.tensors for domain in dataset)))
    assert [len(domain) for domain in domains_of(dataset)] == [16, 16, 16]
    assert x.shape[1:] == dataset.input_shape == (3, size, size)
    assert abs(x.mean()) < 4 / x.numel() ** 0.5
    assert abs(x.std() - 1) < 0.02
    assert set(y.tolist()) == {0, 1} == set(range(dataset.num_classes))


def test_the_trial_decides():
    def drawn(trial_seed, data_seed=None):
        dataset = DATASETS["Debug28"]("", [0], {}, trial_seed, data_seed)
        return torch.stack([domain.tensors[0] for domain in dataset])

    assert torch.equal(drawn(1), drawn(1))
    assert not torch.equal(drawn(1), drawn(2))
    assert torch.equal(drawn(1, data_seed=5), drawn(2, data_seed=5))
    assert not torch.equal(drawn(1)[0], drawn(1)[1])


def test_which_of_them_is_small():
    assert dataset_facts("Debug28").small_images
    assert not dataset_facts("Debug224").small_images
    assert default_hparams("ERM", "Debug28")["batch_size"] == 64


def test_an_in_split_smaller_than_a_minibatch(tmp_path, monkeypatch):
    """DomainBed waits for ever for a whole minibatch of 20 out of 13 images.

    The records say what the dataset is tested on, for tables that do not know it.
    """
    monkeypatch.setattr(DATASETS["Debug28"], "test_domains", (0, 2))
    spec = RunSpec.create("Debug28", "ERM", [0], steps=2, checkpoint_freq=1, hparams=SMALL)
    experiment = build(spec)
    assert [len(split.inside) for split in experiment.splits] == [13, 13, 13]
    (minibatches,) = experiment.minibatches(range(1))
    assert [x.shape for x, _ in minibatches] == [(20, 3, 28, 28)] * 2
    assert len(minibatches[0][0].flatten(1).unique(dim=0)) <= 13
    run(spec, tmp_path)
    records = [json.loads(line) for line in (tmp_path / "results.jsonl").open()]
    assert [record["step"] for record in records] == [0, 1]
    assert records[1]["epoch"] == pytest.approx(20 / 13)
    assert records[1]["args"]["test_domains"] == [0, 2]
