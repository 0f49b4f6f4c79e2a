"""T3A against loops over images, classes and supports, written from the paper."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from helpers import build, random_minibatches
from torch import nn

from domainbed.algorithms.t3a import SUPPORTS, Templates
from domainbed.datasets import TensorDomain
from domainbed.errors import UserError
from domainbed.spec import RunSpec
from domainbed.training.evaluation import EvaluationSplit, Evaluator
from domainbed.training.experiment import linear_head

C, D = 3, 5


def entropy(logits: list[float]) -> float:
    total = sum(math.exp(v) for v in logits)
    return -sum(math.exp(v) / total * math.log(math.exp(v) / total) for v in logits)


def scores(weight: list[list[float]], bias: list[float], z: list[float]) -> list[float]:
    return [sum(w * v for w, v in zip(row, z)) + b for row, b in zip(weight, bias)]


def unit(z: list[float]) -> list[float]:
    length = math.sqrt(sum(v * v for v in z))
    return [v / length for v in z]


def naive(weight: list[list[float]], bias: list[float], batches, most: int) -> list[list[float]]:
    """Logits of every image of the stream."""
    sets = [[(entropy(scores(weight, bias, w)), unit(w))] for w in weight]
    found = []
    for batch in batches:
        for z in batch:
            logits = scores(weight, bias, z)
            sets[logits.index(max(logits))].append((entropy(logits), unit(z)))
        if most:
            sets = [sorted(kept, key=lambda pair: pair[0])[:most] for kept in sets]
        centroids = [unit([sum(z[i] for _, z in kept) for i in range(D)]) for kept in sets]
        found += [[sum(a * b for a, b in zip(z, c)) for c in centroids] for z in batch]
    return found


@pytest.mark.parametrize("most", SUPPORTS)
def test_the_stream_is_that_of_loops(most):
    torch.manual_seed(most)
    head = nn.Linear(D, C)
    batches = [2 * torch.randn(n, D) + 0.5 for n in (40, 7, 64, 1, 90, 90)]
    expected = naive(head.weight.tolist(), head.bias.tolist(), [b.tolist() for b in batches], most)
    templates = Templates(head, most)
    found = torch.cat([templates(batch) for batch in batches])
    assert torch.allclose(found, torch.tensor(expected), atol=1e-4)
    assert (found.argmax(1) != head(torch.cat(batches)).argmax(1)).any()  # it adjusts something
    counts = templates.labels.bincount().tolist()
    assert sum(counts) == C + 292 if most == 0 else max(counts) <= most


def test_no_image_before_the_first_leaves_the_classes_apart():
    """With M of 1 and unsure images, templates are the classifier's own weights."""
    head = nn.Linear(D, C, bias=False)
    nn.init.orthogonal_(head.weight)
    head.weight.data *= 5  # surer of its own weights than of small features
    z = 0.01 * torch.randn(20, D)
    assert torch.allclose(Templates(head, 1)(z), head(z) / 5, atol=1e-6)


def test_each_split_is_a_stream_of_its_own():
    """And what one learned is forgotten after it: evaluation changes nothing."""
    algorithm = build("T3A", t3a_supports=5)
    x, y = random_minibatches((150,))[0]

    splits = [EvaluationSplit(0, name, list(range(150))) for name in ("in", "out")]
    values = Evaluator([TensorDomain(x, y)]).evaluate(algorithm, splits, step=0)
    predict, right = algorithm.eval().predictor(), 0
    for x_b, y_b in zip(x.split(64), y.split(64)):
        right += int((predict(x_b).argmax(1) == y_b).sum())
    assert [v.value for v in values] == [pytest.approx(right / 150)] * 2
    alone = algorithm.predict(x[64:128])
    assert not torch.allclose(alone, algorithm.predict(x)[64:128])


def test_it_trains_as_erm():
    ours, erm = build("T3A"), build("ERM")
    for step in range(2):
        minibatches = random_minibatches((4, 3), step)
        assert ours.update(minibatches) == erm.update(minibatches)


def test_it_needs_a_linear_classifier():
    """So do methods that it is added to; and it is said before anything runs."""
    nonlinear = {"nonlinear_classifier": True}
    for name in ("T3A", "RIDG", "SAM+RIDG"):
        with pytest.raises(UserError, match=f"{name.replace('+', '.')} needs a linear classifier"):
            RunSpec.create("ColoredDigits", name, [2], hparams=nonlinear)


def predicting(algorithm, x):
    """An experiment whose training images are x."""
    domain = SimpleNamespace(evaluation_batches=lambda indices: [(x, None)])
    split = SimpleNamespace(inside=range(len(x)))
    return SimpleNamespace(
        algorithm=algorithm, train_envs=[0], stage_splits=[split], domains=[domain]
    )


@pytest.mark.parametrize(
    ("name", "changes", "said"),
    [
        ("ERM", {"nonlinear_classifier": True}, "classifier of ERM is not one linear layer"),
        ("MTL", {}, "MTL predicts by more than"),
        ("T3A", {}, "T3A predicts by more than"),
        ("KNN", {"knn_k": 1}, "KNN has no classifier"),
    ],
)
def test_what_has_no_linear_head(name, changes, said):
    x, _ = random_minibatches((2,))[0]
    with pytest.raises(UserError, match=said):
        linear_head(predicting(build(name, **changes), x))


@pytest.mark.parametrize("name", ["ERM", "ERMPlusPlus", "DANN", "Fishr+CORAL"])
def test_what_has_one(name):
    algorithm = build(name).eval()
    x, _ = random_minibatches((4,))[0]
    featurizer, head = linear_head(predicting(algorithm, x))
    assert torch.allclose(head(featurizer(x)), algorithm.predict(x))
