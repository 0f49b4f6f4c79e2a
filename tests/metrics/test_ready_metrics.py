"""Every ready-made metric for every kind of labels, against scikit-learn or a formula."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.special import expit, log_softmax, softmax
from sklearn import metrics as sk

from domainbed.core.plugins import warn_once
from domainbed.errors import UserError
from domainbed.metrics import METRICS, check_metrics, describe_metric, get_metric, label_type

KINDS = ("classes", "binary", "multilabel", "regression")
N, C = 150, 4


def data(kind: str, n: int = N, width: int = C) -> tuple[torch.Tensor, torch.Tensor]:
    """Outputs (n, width) that know something about the labels, and the labels."""
    rng = torch.Generator().manual_seed(1)
    noise = torch.randn(n, 1 if kind == "binary" else width, generator=rng)
    if kind == "classes":
        labels = torch.randint(width, (n,), generator=rng)
        return noise + torch.nn.functional.one_hot(labels, width), labels
    if kind == "binary":
        labels = torch.randint(2, (n,), generator=rng)
        return noise + labels[:, None], labels
    if kind == "multilabel":
        labels = torch.randint(2, (n, width), generator=rng)
        return noise + labels, labels
    labels = 3 * torch.randn(n, width, generator=rng)
    return labels + noise, labels


def measured(name: str, kind: str, outputs: torch.Tensor, targets: torch.Tensor) -> float:
    return get_metric(name).measured(label_type(kind), outputs, targets, None)[name]


def by_class(function: Callable[..., float], scores: np.ndarray, truth: np.ndarray) -> float:
    return float(np.mean([function(t, s) for t, s in zip(truth.T, scores.T, strict=True)]))


def calibration_error(confidence: np.ndarray, right: np.ndarray) -> float:
    """By the definition, in 15 bins."""
    bins, total = np.minimum((confidence * 15).astype(int), 14), 0.0
    for number in range(15):
        chosen = bins == number
        if chosen.any():
            total += chosen.mean() * abs(confidence[chosen].mean() - right[chosen].mean())
    return total


def expected(kind: str) -> dict[str, float]:
    """Of `data(kind)`."""
    outputs, labels = (each.double().numpy() for each in data(kind))
    if kind == "classes":
        y, p = labels.astype(int), softmax(outputs, axis=1)
        predicted, one_hot = p.argmax(axis=1), np.eye(C)[y]
        nll = -log_softmax(outputs, axis=1)[np.arange(N), y].mean()
        return {
            "accuracy": sk.accuracy_score(y, predicted),
            "loss": nll,
            "balanced_accuracy": sk.balanced_accuracy_score(y, predicted),
            "f1": sk.f1_score(y, predicted, average="macro"),
            "auroc": sk.roc_auc_score(y, p, multi_class="ovr", average="macro"),
            "average_precision": by_class(sk.average_precision_score, p, one_hot),
            "mcc": sk.matthews_corrcoef(y, predicted),
            "ece": calibration_error(p.max(axis=1), predicted == y),
            "nll": sk.log_loss(y, p),
            "brier": ((p - one_hot) ** 2).sum(axis=1).mean(),
        }
    if kind == "binary":
        y, p = labels.astype(int), expit(outputs[:, 0])
        predicted = (outputs[:, 0] > 0).astype(int)
        return {
            "accuracy": sk.accuracy_score(y, predicted),
            "loss": sk.log_loss(y, p),
            "balanced_accuracy": sk.balanced_accuracy_score(y, predicted),
            "f1": sk.f1_score(y, predicted),
            "auroc": sk.roc_auc_score(y, outputs),
            "average_precision": sk.average_precision_score(y, outputs),
            "mcc": sk.matthews_corrcoef(y, predicted),
            "ece": calibration_error(p, y),
            "nll": sk.log_loss(y, p),
            "brier": sk.brier_score_loss(y, p),
        }
    if kind == "multilabel":
        y, p, predicted = labels.astype(int), expit(outputs), (outputs > 0).astype(int)
        return {
            "accuracy": (y == predicted).mean(),
            "loss": by_class(sk.log_loss, p, y),
            "balanced_accuracy": by_class(sk.balanced_accuracy_score, predicted, y),
            "f1": sk.f1_score(y, predicted, average="macro"),
            "auroc": sk.roc_auc_score(y, outputs, average="macro"),
            "average_precision": sk.average_precision_score(y, outputs, average="macro"),
            "nll": by_class(sk.log_loss, p, y),
            "brier": by_class(sk.brier_score_loss, p, y),
        }
    return {
        "loss": sk.mean_squared_error(labels, outputs),
        "mae": sk.mean_absolute_error(labels, outputs),
        "rmse": math.sqrt(sk.mean_squared_error(labels, outputs)),
        "r2": sk.r2_score(labels, outputs),
    }


@pytest.mark.parametrize("kind", KINDS)
def test_values_are_those_of_scikit_learn(kind: str) -> None:
    suited = {name for name in METRICS if get_metric(name).suits(label_type(kind))}
    values = expected(kind)
    assert set(values) == suited
    found = {name: measured(name, kind, *data(kind)) for name in values}
    assert found == pytest.approx(values, rel=1e-6)


def test_what_labels_do_not_have_is_refused() -> None:
    for kind in KINDS:
        labels = label_type(kind)
        for name in METRICS:
            if get_metric(name).suits(labels):
                check_metrics([name], labels)
                continue
            with pytest.raises(
                UserError, match=f"{name!r} is not defined for labels of .* {kind!r}"
            ):
                check_metrics([name], labels)


def test_directions() -> None:
    lower = {name for name in METRICS if not describe_metric(name).higher_is_better}
    assert lower == {"loss", "ece", "nll", "brier", "mae", "rmse"}
    percent = {name for name in METRICS if describe_metric(name).percent}
    shown = {"accuracy", "balanced_accuracy", "f1", "auroc", "average_precision", "ece"}
    assert percent == shown


@pytest.mark.parametrize("kind", KINDS)
def test_contract(kind: str) -> None:
    """A split in parts has the value of the whole one; one output that is no number has none."""
    labels = label_type(kind)
    outputs, targets = data(kind)
    broken = outputs.clone()
    broken[7] = math.nan
    for name in METRICS:
        metric = get_metric(name)
        if not metric.suits(labels):
            continue
        assert metric.recorded == (name,)
        whole, parts = (metric.new(labels) for _ in range(2))
        whole.update(outputs, targets, None)
        for x, y in zip(outputs.split(64), targets.split(64), strict=True):
            parts.update(x, y, None)
        assert parts.compute() == pytest.approx(whole.compute(), rel=1e-12)
        if name != "accuracy":  # such a prediction is wrong
            assert math.isnan(measured(name, kind, broken, targets))


def test_a_split_that_lacks_classes() -> None:
    """What is not defined is NaN; of several classes the mean is over the others, and said."""
    outputs, targets = data("classes")
    one = torch.full_like(targets, 2)
    for name in ("auroc", "mcc"):
        assert math.isnan(measured(name, "classes", outputs, one))
    binary, ones = data("binary")[0], torch.ones(N, dtype=torch.long)
    for name in ("auroc", "mcc"):
        assert math.isnan(measured(name, "binary", binary, ones))
    never = torch.zeros(N, dtype=torch.long)
    for name in ("average_precision", "auroc"):
        assert math.isnan(measured(name, "binary", binary, never))
    assert measured("average_precision", "binary", binary, ones) == pytest.approx(1)
    assert math.isnan(measured("f1", "binary", -binary.abs(), never))
    assert measured("f1", "binary", binary.abs(), never) == 0
    assert math.isnan(
        measured("r2", "regression", data("regression", 9, 1)[0], torch.full((9,), 5.0))
    )

    warn_once.cache_clear()
    right = (binary > 0).double().mean().item()
    with pytest.warns(UserWarning, match="balanced_accuracy is a mean over 1 of 2"):
        assert measured("balanced_accuracy", "binary", binary, ones) == pytest.approx(right)

    kept = targets != 3
    outputs, targets = outputs[kept], targets[kept]
    p = outputs.double().softmax(dim=1).numpy()
    of_present = [sk.roc_auc_score(targets == c, p[:, c]) for c in range(3)]
    with pytest.warns(UserWarning, match="auroc is a mean over 3 of 4 classes"):
        found = measured("auroc", "classes", outputs, targets)
    assert found == pytest.approx(np.mean(of_present), rel=1e-6)
    with pytest.warns(UserWarning, match="balanced_accuracy is a mean over 3 of 4"):
        recall = measured("balanced_accuracy", "classes", outputs, targets)
    predicted = outputs.argmax(dim=1)
    assert recall == pytest.approx(
        np.mean([(predicted[targets == c] == c).double().mean() for c in range(3)])
    )


def test_predictions_that_never_change() -> None:
    outputs, targets = torch.tensor([[2.0, 0.0]] * 6), torch.tensor([0, 1, 0, 1, 1, 0])
    values = {name: measured(name, "classes", outputs, targets) for name in ("mcc", "auroc", "f1")}
    assert values == pytest.approx({"mcc": 0.0, "auroc": 0.5, "f1": 1 / 3})


def test_small_differences_of_large_numbers() -> None:
    """Sums are in float64: the mean of a million numbers near 1000 keeps what float32 loses."""
    truth = 1000 + torch.rand(1_000_000, generator=torch.Generator().manual_seed(0))
    outputs = (truth + 0.25)[:, None]
    exact = np.abs(outputs[:, 0].double().numpy() - truth.double().numpy()).mean()
    assert measured("mae", "regression", outputs, truth) == pytest.approx(exact, rel=1e-13)
    assert measured("r2", "regression", outputs, truth) == pytest.approx(
        sk.r2_score(truth.double().numpy(), outputs.double().numpy()), rel=1e-10
    )
