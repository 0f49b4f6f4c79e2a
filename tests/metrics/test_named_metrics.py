"""Metrics by name: torchmetrics' classes, own ones, and their values by group."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

import pytest
import torch
import torchmetrics
from sklearn import metrics as sk
from torchmetrics import classification, regression

from domainbed.core.plugins import warn_once
from domainbed.errors import UserError
from domainbed.metrics import METRICS, check_metrics, describe_metric, get_metric, label_type
from domainbed.metrics import recorded_names as recorded
from domainbed.metrics.foreign import higher_is_better

OUTPUTS = torch.tensor(
    [[2.0, 0, 0], [0, 1, 0], [0, 1, 0], [0, 0, 3], [1, 0, 0], [1, 0, 2], [0, 4, 1], [1, 2, 0]]
)
LABELS = torch.tensor([0, 1, 2, 2, 0, 0, 1, 1])


def measured(
    name: str, outputs: torch.Tensor, targets: torch.Tensor, labels: str = "classes", **extras: Any
) -> dict[str, float]:
    return get_metric(name).measured(label_type(labels), outputs, targets, extras or None)


def test_classes_of_torchmetrics() -> None:
    predicted = OUTPUTS.argmax(dim=1)
    kappa = sk.cohen_kappa_score(LABELS, predicted)
    found = measured("torchmetrics:CohenKappa", OUTPUTS, LABELS)
    assert found == {"torchmetrics_CohenKappa": pytest.approx(kappa)}
    weighted = measured("torchmetrics:CohenKappa:weights=quadratic", OUTPUTS, LABELS)
    expected = sk.cohen_kappa_score(LABELS, predicted, weights="quadratic")
    assert weighted == {"torchmetrics_CohenKappa_weights_quadratic": pytest.approx(expected)}

    single, binary = OUTPUTS[:, :1] - 0.5, (LABELS == 0).long()
    f_beta = sk.fbeta_score(binary, single[:, 0] > 0, beta=0.5)
    name = "torchmetrics:classification.BinaryFBetaScore:beta=0.5"
    found = measured(name, single, binary, "binary")
    assert found == {"torchmetrics_BinaryFBetaScore_beta_0_5": pytest.approx(f_beta)}

    several = torch.nn.functional.one_hot(LABELS)
    exact = ((OUTPUTS - 0.5 > 0).long() == several).all(dim=1).double().mean()
    found = measured("torchmetrics:ExactMatch", OUTPUTS - 0.5, several, "multilabel")
    assert found == {"torchmetrics_ExactMatch": pytest.approx(exact.item())}

    numbers = torch.arange(8.0)
    correlation = torch.corrcoef(torch.stack([OUTPUTS[:, 1], numbers]))[0, 1].item()
    found = measured("torchmetrics:PearsonCorrCoef", OUTPUTS[:, 1:2], numbers, "regression")
    assert found == {"torchmetrics_PearsonCorrCoef": pytest.approx(correlation)}


@pytest.mark.parametrize(
    ("name", "labels", "message"),
    [
        ("torchmetrics:CohenKapa", "classes", "no class 'CohenKapa'.*'CohenKappa'"),
        ("torchmetrics:nowhere.CohenKappa", "classes", "no class 'nowhere.CohenKappa'"),
        ("torchmetrics:Metric:", "classes", "'' is not of the form argument=value"),
        ("torchmetrics:CohenKappa:weighs=linear", "classes", "cannot be made.*weighs"),
        ("torchmetrics:FBetaScore:beta=-1", "classes", "cannot be made.*beta"),
        ("torchmetrics:CohenKappa", "regression", "cannot be made.*BINARY.*regression"),
        ("torchmetrics:ExactMatch", "binary", "cannot be made.*MULTILABEL"),
        ("torchmetrics:HingeLoss", "multilabel", "cannot be made.*MULTICLASS.*multilabel"),
        ("torchmetrics:classification.BinaryAUROC", "classes", "not defined.*binary"),
        ("torchmetrics:MeanSquaredError", "classes", "not defined .*regression"),
        ("auroc_by_group_by_group", "classes", "several values"),
        ("acuracy_by_group", "classes", "unknown metric 'acuracy'"),
        ("accuracy_worst_group", "classes", "is a value of 'accuracy_by_group'"),
        ("auroc", "regression", "but for classes, binary, multilabel: choose"),
    ],
)
def test_what_is_refused_before_a_run(name: str, labels: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_metrics([name], label_type(labels))


def test_a_table_is_no_value() -> None:
    with pytest.raises(UserError, match=r"ConfusionMatrix' computed an array of shape \(3, 3\)"):
        measured("torchmetrics:ConfusionMatrix", OUTPUTS, LABELS)


def test_directions_are_those_that_torchmetrics_declares() -> None:
    declared = {
        name: cls.higher_is_better
        for module in (torchmetrics, classification, regression)
        for name, cls in vars(module).items()
        if isinstance(getattr(cls, "higher_is_better", None), bool)
        and cls.__module__.startswith(("torchmetrics.classification", "torchmetrics.regression"))
    }
    assert len(declared) > 60
    wrong = {name for name, higher in declared.items() if higher_is_better(name) != higher}
    assert not wrong
    facts = describe_metric("torchmetrics_HammingDistance_threshold_0_5_worst_group")
    assert not facts.higher_is_better


def test_names_and_directions_need_no_pytorch() -> None:
    code = (
        "import sys; from domainbed.metrics import METRICS, describe_metric, recorded_names\n"
        "for name in [*METRICS, 'torchmetrics_CohenKappa', 'f1_worst_group']: describe_metric(name)"
        "\nrecorded_names(['torchmetrics:CohenKappa', 'ece_by_group'])\n"
        "assert not {'torch', 'torchmetrics', 'pandas'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


GROUPS = ["a", "a", "b", "b", "a", "b", "c", "c"]


def test_by_group() -> None:
    right = (OUTPUTS.argmax(dim=1) == LABELS).double()
    means = {name: right[[g == name for g in GROUPS]].mean().item() for name in "abc"}
    assert means == {"a": 1, "b": 1 / 3, "c": 1}
    found = measured("accuracy_by_group", OUTPUTS, LABELS, group=GROUPS)
    assert found == {
        "accuracy_worst_group": pytest.approx(1 / 3),
        "accuracy_mean_group": pytest.approx(7 / 9),
        "accuracy_group_gap": pytest.approx(2 / 3),
    }
    assert tuple(found) == recorded(["accuracy_by_group"])
    recalls = [right[label == LABELS].mean().item() for label in LABELS.unique()]
    assert measured("accuracy_by_class", OUTPUTS, LABELS) == {
        "accuracy_worst_class": pytest.approx(min(recalls)),
        "accuracy_mean_class": pytest.approx(sum(recalls) / len(recalls)),
        "accuracy_class_gap": pytest.approx(max(recalls) - min(recalls)),
    }
    numbers = torch.tensor([[0.0], [1], [2], [3]])
    errors = torch.tensor([1.0, 1, 4, 3])
    found = measured(
        "rmse_by_group",
        numbers,
        numbers[:, 0] + errors,
        "regression",
        group=torch.tensor([5, 5, 7, 7]),
    )
    worst = math.sqrt((16 + 9) / 2)
    assert found == pytest.approx(
        {"rmse_worst_group": worst, "rmse_mean_group": (1 + worst) / 2, "rmse_group_gap": worst - 1}
    )


def test_groups_without_a_value_are_left_out() -> None:
    """The AUROC of group b, whose labels are all 1, is not defined."""
    scores, labels = torch.tensor([[0.0], [1], [2], [3], [4]]), torch.tensor([0, 1, 0, 1, 1])
    warn_once.cache_clear()
    with pytest.warns(UserWarning, match="auroc_by_group is of 1 of 2 parts"):
        found = measured("auroc_by_group", scores, labels, "binary", group=list("aaabb"))
    assert found["auroc_worst_group"] == found["auroc_mean_group"] == pytest.approx(0.5)
    assert found["auroc_group_gap"] == 0
    found = measured("auroc_by_group", scores[3:], labels[3:], "binary", group=["x", "y"])
    assert all(map(math.isnan, found.values()))
    with pytest.raises(UserError, match="by group need samples with a group"):
        measured("auroc_by_group", scores, labels, "binary")


class Extremes:
    """The least and the greatest output, over the whole split."""

    higher_is_better = False
    percent = True
    label_kinds = ("regression",)
    parts = ("least", "greatest")

    def __init__(self) -> None:
        self.seen: list[torch.Tensor] = []

    def update(self, outputs: torch.Tensor, targets: torch.Tensor, extras: Any) -> None:
        self.seen.append(outputs)

    def compute(self) -> Mapping[str, Any]:
        whole = torch.cat(self.seen)
        return {"least": whole.min(), "greatest": whole.max()}


def test_an_own_metric_of_several_values(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(METRICS._entries, "extremes", Extremes)
    found = measured("extremes", OUTPUTS, LABELS.double(), "regression")
    assert found == {"extremes_least": 0, "extremes_greatest": 4}
    assert describe_metric("extremes_least") == ("extremes_least", False, True)
    with pytest.raises(UserError, match="choose one of extremes_least, extremes_greatest"):
        describe_metric("extremes")
    with pytest.raises(UserError, match="not defined for labels of the type 'classes'"):
        check_metrics(["extremes"], label_type("classes"))
    monkeypatch.setattr(Extremes, "compute", lambda self: {"least": 0.0})
    with pytest.raises(UserError, match="expected a dict of least, greatest"):
        measured("extremes", OUTPUTS, LABELS.double(), "regression")


def test_what_cannot_be_registered_or_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="is not a metric: expected a class with update"):
        METRICS.register(type("Half", (), {"update": lambda self: None}))
    monkeypatch.setitem(METRICS._entries, "top-2", lambda outputs, targets: targets)
    with pytest.raises(UserError, match="'top-2' cannot be recorded under this name"):
        get_metric("top-2")
    needing = type("Needing", (Extremes,), {"__init__": lambda self, width: None})
    monkeypatch.setitem(METRICS._entries, "needing", needing)
    with pytest.raises(UserError, match=r"'needing' cannot be made.*'width'"):
        check_metrics(["needing"], label_type("regression"))
    monkeypatch.setitem(METRICS._entries, "extremes", Extremes)
    monkeypatch.setitem(METRICS._entries, "extremes_least", lambda outputs, targets: targets)
    with pytest.raises(UserError, match="'extremes' and 'extremes_least' are both recorded"):
        check_metrics(["extremes", "extremes_least"], label_type("regression"))
