"""Baselines that are fitted once, against scikit-learn and loops."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import random_minibatches, resumed
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from domainbed.algorithms import ALGORITHMS, FittedOnce
from domainbed.algorithms.fitted import sparse_regression
from domainbed.config.run_facts import HParams, RunFacts
from domainbed.core.minibatch import Minibatch
from domainbed.errors import UserError
from domainbed.spec import RunSpec
from domainbed.training import load_model, run
from domainbed.training.experiment import build

FITTED = [
    name
    for name in ALGORITHMS
    if issubclass(ALGORITHMS[name], FittedOnce) and not ALGORITHMS[name].needs_text
]


def fitted(name: str, minibatches: Any, classes: int = 3, **hparams: Any) -> FittedOnce:
    shape = minibatches[0][0].shape[1:]
    algorithm = ALGORITHMS[name](shape, classes, len(minibatches), hparams)
    metrics = algorithm.update(minibatches)
    assert all(math.isfinite(value) for value in metrics.values())
    return algorithm.eval()


def pooled(minibatches: Any) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.cat([x.flatten(1) for x, _ in minibatches]), torch.cat([y for _, y in minibatches])


@pytest.mark.parametrize("l2", [1e-3, 0.3])
def test_the_probe_is_logistic_regression(l2):
    minibatches = random_minibatches((40, 50), shape=(6,))
    probe = fitted("LinearProbe", minibatches, probe_l2=l2)
    x, y = pooled(minibatches)
    usual = LogisticRegression(C=1 / (len(y) * l2), tol=1e-10, max_iter=10_000)
    expected = usual.fit(x.double().numpy(), y.numpy()).predict_proba(x.double().numpy())
    found = probe.predict(x).softmax(dim=1).double()
    assert torch.allclose(found, torch.from_numpy(expected), atol=1e-5)
    assert probe.update(minibatches)["gradient"] < 1e-6


def test_the_sparse_classifier_is_at_its_minimum():
    """The loss's derivative for a weight is its sign, or for a weight of 0 at most 1."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(60, 5, generator=generator, dtype=torch.float64)
    y = x[:, 0] + torch.randn(60, generator=generator) > 0
    found = torch.from_numpy(sparse_regression(x.numpy(), y.numpy(), 0.3, 0))
    weights = found.clone().requires_grad_()
    loss = 0
    for point, label in zip(x, y.tolist()):
        score = point @ weights[:-1] + weights[-1]
        loss = loss + 0.3 * torch.log1p(torch.exp(-score if label else score))
    (slope,) = torch.autograd.grad(loss, weights)
    for weight, derivative in zip(found.tolist(), slope.tolist()):
        expected = -math.copysign(1, weight) if weight else max(-1, min(1, derivative))
        assert derivative == pytest.approx(expected, abs=1e-3)
    assert 0 < (found == 0).sum() < 5, found
    assert not sparse_regression(x.numpy(), y.numpy() & False, 0.1, 0).any()


def test_dfr_is_the_mean_over_balanced_subsamples():
    """Of groups of 30, 4, 6 and 20 samples, where the attribute tells the label."""
    generator = torch.Generator().manual_seed(1)
    y = torch.tensor([0] * 34 + [1] * 26)
    a = torch.tensor([0] * 30 + [1] * 4 + [0] * 6 + [1] * 20)
    x = torch.randn(60, 4, generator=generator)
    x[:, 0] += y
    x[:, 1] += 3 * a + 7
    facts = RunFacts(group_names=tuple("abcd"), attribute_names=("x", "y"))
    batches = [Minibatch(x[n::2], y[n::2], {"group": (2 * y + a)[n::2]}) for n in (0, 1)]
    hparams = {"dfr_c": 2.0, "dfr_subsamples": 3}
    dfr = ALGORITHMS["DFR"]((4,), 2, 2, HParams(hparams, facts))
    drawn = copy.deepcopy(dfr.draws)
    dfr.update(batches)
    x, y = pooled(batches)
    groups = torch.cat([b.extras["group"] for b in batches]).tolist()
    scaler = StandardScaler().fit(x.double())
    expected = torch.zeros(60, 2, dtype=torch.float64)
    for seed in range(3):
        rows = []
        for g in range(4):
            of_group = [n for n in range(60) if groups[n] == g]
            rows += [of_group[place] for place in drawn.permutation(len(of_group))[:4]]
        for k in (0, 1):
            usual = LogisticRegression(l1_ratio=1, C=2.0, solver="liblinear", random_state=seed)
            usual.fit(scaler.transform(x.double())[rows], y[rows] == k)
            scores = usual.decision_function(scaler.transform(x.double()))
            expected[:, k] += torch.from_numpy(scores) / 3
    assert torch.allclose(dfr.predict(x).double(), expected, atol=1e-4)
    # Groups are classes where there is no attribute: the attribute then counts for more.
    plain = fitted("DFR", batches, classes=2, **hparams)

    def share(algorithm):
        weights = algorithm.classifier.weight.abs().sum(dim=0)
        return (weights[1] / weights.sum()).item()

    assert share(dfr) < share(plain)


@pytest.mark.parametrize("distance", ["cosine", "euclidean"])
def test_the_nearest_mean_is_that_of_loops(distance):
    minibatches = random_minibatches((20, 9), shape=(5,))
    means = fitted("NearestMean", minibatches, mean_distance=distance)
    x, y = pooled(minibatches)
    expected = []
    for point in x[:7]:
        of_classes = [x[y == c].mean(dim=0) for c in range(3)]
        cosines = [point @ m / point.norm() / m.norm() for m in of_classes]
        squares = [-(point - m).square().sum() for m in of_classes]
        expected.append(torch.stack(cosines if distance == "cosine" else squares))
    assert torch.allclose(means.predict(x[:7]), torch.stack(expected), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("k", [1, 4, 1000])
def test_the_neighbours_votes_are_those_of_loops(k):
    minibatches = random_minibatches((20, 9), shape=(5,))
    neighbours = fitted("KNN", minibatches, knn_k=k)
    x, y = pooled(minibatches)
    for point, logits in zip(x[:5] + 0.1, neighbours.predict(x[:5] + 0.1)):
        cosines = torch.cosine_similarity(point[None], x)
        votes = torch.zeros(3)
        for n in sorted(range(len(x)), key=lambda n: -cosines[n])[:k]:
            votes[y[n]] += math.exp(cosines[n] / 0.07)
        assert torch.allclose(logits.softmax(dim=0), votes / votes.sum(), atol=1e-5)


@pytest.mark.parametrize("name", ["NearestMean", "KNN"])
def test_a_class_without_images_is_never_predicted(name):
    minibatches = [(torch.rand(8, 4), torch.tensor([0, 2] * 4)) for _ in range(2)]
    algorithm = fitted(name, minibatches, mean_distance="cosine", knn_k=20)
    assert not (algorithm.predict(torch.randn(50, 4)).argmax(dim=1) == 1).any()


@pytest.mark.parametrize("name", FITTED)
def test_a_run_fits_the_whole_in_splits_and_ends(name, tmp_path: Path):
    spec = RunSpec.create("Debug28", name, [0], steps=50, checkpoint_freq=10)
    experiment = build(spec)
    minibatches = next(experiment.minibatches(range(1)))
    assert [len(y) for _, y in minibatches] == [len(s.inside) for s in experiment.splits[1:]]
    run(spec, tmp_path)
    (line,) = (tmp_path / "results.jsonl").read_text().splitlines()
    record = json.loads(line)
    assert (record["step"], (tmp_path / "done").exists()) == (0, True)
    # What is kept is what was measured.
    model = load_model(tmp_path, "cpu")
    x, y = next(iter(experiment.domains[0].evaluation_batches(experiment.splits[0].inside, 10**6)))
    accuracy = (model.module.predict(x).argmax(dim=1) == y).float().mean()
    assert float(accuracy) == pytest.approx(record["env0_in_acc"], abs=1e-6)


@pytest.mark.parametrize("name", FITTED)
def test_a_checkpoint_holds_what_was_fitted(name):
    minibatches = random_minibatches((12, 9), shape=(5,))
    hparams = {"probe_l2": 1e-3, "mean_distance": "cosine", "knn_k": 3, "dfr_c": 1.0}
    algorithm = fitted(name, minibatches, **hparams)
    copy = resumed(algorithm, ALGORITHMS[name]((5,), 3, 2, hparams)).eval()
    x = torch.rand(4, 5)
    assert torch.equal(copy.predict(x), algorithm.predict(x))


@pytest.mark.parametrize("name", FITTED)
def test_natural_images_are_refused(name):
    with pytest.raises(UserError, match=f"{name} needs features of images: set the field"):
        RunSpec.create("PACS", name, [0])
    assert RunSpec.create("PACS", name, [0], features="efficientnet_lite0")
