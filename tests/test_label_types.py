"""Label types: their contract, and every algorithm on labels of each of them."""

from __future__ import annotations

import math
import subprocess
import sys
from typing import Any

import pytest
import torch
from label_datasets import KINDS, VectorRegressionVectors
from torch import nn
from torch.nn import functional as F

from domainbed.algorithms import ALGORITHMS, ERM, ForwardPass, get_algorithm_class
from domainbed.algorithms.base import Algorithm
from domainbed.algorithms.irm import irm_penalty, scale_gradient
from domainbed.datasets import DATASETS
from domainbed.errors import UserError
from domainbed.gradients import gradient_variances
from domainbed.metrics.labels import (
    LABEL_TYPES,
    Classes,
    LabelType,
    label_type,
    register_label_type,
)
from domainbed.spec import RunSpec
from domainbed.training import build

CLASSES, BINARY, MULTILABEL, REGRESSION = map(
    label_type, ("classes", "binary", "multilabel", "regression")
)


@pytest.fixture(autouse=True)
def _datasets(monkeypatch: pytest.MonkeyPatch) -> None:
    for cls in (*KINDS.values(), VectorRegressionVectors):
        monkeypatch.setitem(DATASETS._entries, cls.__name__, cls)


def labels_of(name: str, n: int, width: int) -> torch.Tensor:
    """Labels of a type of this kind."""
    if label_type(name).kind == "classes":
        return torch.arange(n) % width
    if label_type(name).kind == "binary":
        return torch.arange(n) % 2
    values = torch.randn(n, width)
    return (values > 0).float() if label_type(name).kind == "multilabel" else values


@pytest.mark.parametrize("name", list(LABEL_TYPES))
def test_contract(name: str) -> None:
    """What holds for every registered label type."""
    kind = label_type(name)
    assert kind.name == name
    assert kind.kind in LABEL_TYPES
    assert kind.selection_metric in kind.default_metrics
    width = kind.width(2)
    torch.manual_seed(0)
    outputs, targets = torch.randn(6, width, requires_grad=True), labels_of(name, 6, width)
    kind.check(targets, width)
    losses = kind.losses(outputs, targets)
    assert losses.shape == (6,)
    torch.testing.assert_close(kind.risk(outputs, targets), losses.mean())
    # Each sample alone: the gradient of one loss is 0 for the outputs of the others.
    (gradient,) = torch.autograd.grad(losses[2], outputs)
    assert gradient[2].abs().sum() > 0
    assert gradient.abs().sum() == gradient[2].abs().sum()
    assert kind.scores(outputs).shape == outputs.shape
    assert kind.decode(outputs).shape in (targets.shape, targets.squeeze(-1).shape)
    wrong = targets * math.nan if targets.is_floating_point() else targets + 9
    with pytest.raises(UserError, match="label"):
        kind.check(wrong, width)


def test_losses_and_predictions() -> None:
    """Against values computed by hand."""
    outputs = torch.tensor([[0.0], [2.0]])
    expected = torch.tensor([math.log(2), math.log1p(math.exp(2))])
    torch.testing.assert_close(BINARY.losses(outputs, torch.tensor([1, 0])), expected)
    assert BINARY.decode(outputs).tolist() == [0, 1]
    pair = torch.tensor([[0.0, 2.0]])
    torch.testing.assert_close(
        MULTILABEL.losses(pair, torch.tensor([[1, 0]])), expected.mean(0, keepdim=True)
    )
    assert MULTILABEL.decode(pair).tolist() == [[0, 1]]
    assert REGRESSION.losses(pair, torch.tensor([[1.0, 4.0]])).tolist() == [2.5]
    assert REGRESSION.losses(outputs, torch.tensor([3.0, 2.0])).tolist() == [9.0, 0.0]
    assert REGRESSION.decode(outputs).tolist() == [0.0, 2.0]
    logits, y = torch.randn(7, 5), torch.arange(7) % 5
    assert torch.equal(CLASSES.risk(logits, y), F.cross_entropy(logits, y))


def test_regression_keeps_the_precision_of_labels() -> None:
    """Under mixed precision, 257 is 256 in bfloat16: a loss of 1 in place of 0."""
    outputs = torch.tensor([[257.0]]).bfloat16()
    target = torch.tensor([257.0])
    assert REGRESSION.losses(outputs, target).item() == 1


@pytest.mark.parametrize(
    ("kind", "labels", "classes", "message"),
    [
        (CLASSES, torch.tensor([0, 3]), 3, "image 1 has the label 3, expected 0 to 2"),
        (BINARY, torch.tensor([0, 1, 2]), 2, "image 2 has the label 2, expected 0 or 1"),
        (BINARY, torch.tensor([[0], [1]]), 2, r"the shape \(1,\), expected \(\)"),
        (MULTILABEL, torch.tensor([[0, 1], [0.5, 1]]), 2, r"image 1 has the label \[0.5, 1.0\]"),
        (MULTILABEL, torch.tensor([0, 1]), 2, r"the shape \(\), expected \(2,\)"),
        (REGRESSION, torch.tensor([1, 2]), 1, "is torch.int64, expected a floating-point one"),
        (REGRESSION, torch.tensor([[1.0, 2.0]]), 3, r"the shape \(2,\), expected \(3,\)"),
        (
            REGRESSION,
            torch.tensor([1.0, math.inf]),
            1,
            "image 1 has the label inf, expected finite",
        ),
    ],
)
def test_wrong_labels(kind: Any, labels: torch.Tensor, classes: int, message: str) -> None:
    with pytest.raises(UserError, match=message):
        kind.check(labels, classes)


def test_names_are_known_without_pytorch() -> None:
    code = (
        "import sys; from domainbed.metrics.labels import label_type;"
        "print(label_type('regression').default_metrics, 'torch' in sys.modules)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.split("\n")[0] == "('rmse',) False"


@pytest.mark.parametrize("dataset", [*KINDS, "VectorRegressionVectors"])
def test_every_algorithm_trains_or_is_refused(dataset: str) -> None:
    kind = label_type(DATASETS[dataset].labels)
    trained = []
    for name in [*ALGORITHMS, "Fishr+CORAL"]:
        cls = get_algorithm_class(name)
        try:
            spec = RunSpec.create(
                dataset, name, [2], metrics=("loss",), steps=2, hparams={"batch_size": 6}
            )
            experiment = build(spec)
        except UserError:
            refused = cls.needs_images or cls.needs_text
            assert refused or (cls.needs_classes and kind.kind != "classes"), name
            continue
        assert kind.kind == "classes" or not cls.needs_classes, name
        for minibatches in experiment.minibatches(range(2)):
            metrics = experiment.algorithm.update(minibatches)
        assert all(math.isfinite(value) for value in metrics.values()), name
        x = minibatches[0][0]
        assert experiment.algorithm.predict(x).shape == (len(x), experiment.outputs), name
        trained.append(name)
    assert {"ERM", "CORAL", "DANN", "Fishr", "Fishr+CORAL", "IRM", "Mixup", "MLDG"} <= {*trained}


def test_classes_that_say_nothing_of_labels_need_classes() -> None:
    """What may compute cross-entropies of its own is not trained on other labels."""

    class Theirs(Algorithm):
        def update(self, minibatches: Any, unlabeled: Any = None) -> Any: ...

    class OwnUpdate(ERM):
        def update(self, minibatches: Any, unlabeled: Any = None) -> Any: ...

    class OwnObjective(ERM):
        def objective_of(self, forward: ForwardPass) -> Any:
            return forward.pooled_risk(), {}

    class OwnPass(ERM):
        def forward_pass(self, minibatches: Any) -> Any: ...

    class Declared(OwnUpdate):
        needs_classes = False

    found = [cls.needs_classes for cls in (Theirs, OwnUpdate, OwnPass, OwnObjective, Declared)]
    assert found == [True, True, True, False, False]


def test_gradient_variances_of_any_loss() -> None:
    """Of linear and other heads, against a backward pass for each sample."""
    torch.manual_seed(0)
    sizes = [4, 5]
    heads = {
        "linear": lambda width: nn.Linear(3, width),
        "stack": lambda width: nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, width)),
        "other": lambda width: nn.Sequential(nn.LayerNorm(3), nn.Linear(3, width)),
    }
    for kind, count in [(BINARY, 2), (MULTILABEL, 3), (REGRESSION, 1), (REGRESSION, 2)]:
        width = kind.width(count)
        for head in (make(width) for make in heads.values()):
            x, y = torch.randn(9, 3), labels_of(kind.name, 9, width)
            found = gradient_variances(head, x, y, sizes, kind.losses)
            rows = []
            for i in range(9):
                loss = kind.losses(head(x[i : i + 1]), y[i : i + 1]).sum()
                gradients = torch.autograd.grad(loss, list(head.parameters()))
                rows.append(torch.cat([g.flatten() for g in gradients]))
            parts = torch.stack(rows).split(sizes)
            naive = torch.stack([part.var(dim=0, unbiased=False) for part in parts])
            torch.testing.assert_close(found, naive, rtol=1e-4, atol=1e-6)


def test_irm_of_other_losses() -> None:
    """Of squared errors (s l − y)² the derivative at s = 1 is 2 l (l − y)."""
    torch.manual_seed(0)
    outputs, targets = torch.randn(6, 1, dtype=torch.float64), torch.randn(6, dtype=torch.float64)
    terms = (2 * outputs * (outputs - targets[:, None])).squeeze(1)
    torch.testing.assert_close(scale_gradient(outputs, targets, REGRESSION), terms.mean())
    expected = terms[::2].mean() * terms[1::2].mean()
    torch.testing.assert_close(irm_penalty(outputs, targets, REGRESSION), expected)
    logits = torch.randn(6, 1, dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([0, 1, 1, 0, 0, 1])
    both = F.pad(logits, (1, 0))  # logits of two classes with the same probabilities
    found, closed = irm_penalty(logits, labels, BINARY), irm_penalty(both, labels)
    torch.testing.assert_close(found, closed)
    gradients = [torch.autograd.grad(each, logits)[0] for each in (found, closed)]
    torch.testing.assert_close(*gradients)


def test_fishr_s_penalty_is_of_the_loss_that_is_learned() -> None:
    hparams = {"batch_size": 6, "penalty_anneal_iters": 0}
    experiment = build(RunSpec.create("RegressionVectors", "Fishr", [2], hparams=hparams))
    (minibatches,) = experiment.minibatches(range(1))
    algorithm = experiment.algorithm
    forward, head = algorithm.forward_pass(minibatches), algorithm.classifier
    variances = []
    for z, y in zip(forward.domain_features, forward.by_domain(forward.y)):
        errors = 2 * (head(z).squeeze(1) - y)[:, None]  # of which the gradient is error ⊗ [z, 1]
        gradients = torch.cat([errors * z, errors], dim=1)
        variances.append(gradients.var(dim=0, unbiased=False))
    stacked = torch.stack(variances)
    expected = (stacked - stacked.mean(dim=0)).square().mean()
    metrics = algorithm.update(minibatches)
    assert metrics["penalty"] == pytest.approx(expected.item(), rel=1e-4)


def test_a_type_with_another_loss_of_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    """It trains what needs classes, and IRM's closed form is not taken for it."""
    monkeypatch.setattr(LABEL_TYPES, "_entries", dict(LABEL_TYPES._entries))

    @register_label_type
    class Smoothed(Classes):
        name = "smoothed"

        def losses(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
            return F.cross_entropy(outputs, targets, reduction="none", label_smoothing=0.2)

        def risk(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
            return self.losses(outputs, targets).mean()

    logits, y = torch.randn(6, 3, dtype=torch.float64), torch.arange(6) % 3
    step = 1e-6
    risks = [label_type("smoothed").risk(s * logits, y) for s in (1 - step, 1 + step)]
    expected = (risks[1] - risks[0]) / (2 * step)
    torch.testing.assert_close(
        scale_gradient(logits, y, label_type("smoothed")), expected, rtol=1e-6, atol=1e-8
    )
    experiment = build(RunSpec.create("Labelled", "CDANN", [2], labels="smoothed"))
    (minibatches,) = experiment.minibatches(range(1))
    forward = experiment.algorithm.forward_pass(minibatches)
    smoothed = F.cross_entropy(forward.logits, forward.y, label_smoothing=0.2)
    assert forward.pooled_risk().item() == pytest.approx(smoothed.item())


def test_what_is_no_label_type() -> None:
    class Nameless(LabelType):
        kind = "regression"

    with pytest.raises(ValueError, match="int is no label type: inherit from"):
        register_label_type(int)  # type: ignore[type-var]
    with pytest.raises(ValueError, match="Nameless has no name, default_metrics, selection_metric"):
        register_label_type(Nameless)
    with pytest.raises(
        UserError, match=r"unknown label type 'regresion'\. Did you mean 'regression"
    ):
        label_type("regresion")
