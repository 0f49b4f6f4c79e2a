"""Thresholds, temperatures and what they give by domain, of predictions written by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.special import expit

from domainbed.core.files import sealed_json
from domainbed.errors import UserError
from domainbed.metrics.decision import decide
from domainbed.runs.predictions import Predicted, write_predictions

DOMAINS = ["north", "south", "west"]


def written(folder: Path, parts: list[Predicted], **facts: Any) -> Path:
    (folder / "run.json").write_text(sealed_json({"test_envs": [2]}))
    usual = {"run_id": "x", "step": 1, "classes": ["benign", "malignant"], "domains": DOMAINS}
    write_predictions(folder / "predictions.parquet", {**usual, **facts}, parts)
    return folder


def part(domain: int, split: str, margins: Any, labels: Any, groups: Any = None) -> Predicted:
    """Logits of two classes that differ by `margins`."""
    margins = np.asarray(margins, np.float32)
    logits = np.stack([np.zeros_like(margins), margins], axis=1)
    images = [f"{domain}/{split}/{number}" for number in range(len(margins))]
    return Predicted(domain, split, images, np.asarray(labels), logits, groups)


def test_threshold_rates_and_confusion_of_each_domain(tmp_path: Path) -> None:
    parts = [
        part(0, "in", [9, 9], [0, 0]),  # what is trained on counts nowhere
        part(0, "out", [-2, -1, 1, 3], [0, 0, 1, 1]),
        part(1, "out", [-3, 0.5, 2, 4], [0, 0, 0, 1]),
        part(2, "in", [-1, 2, -2, 5], [0, 0, 1, 1]),
        part(2, "out", [-4], [0]),
    ]
    run = written(tmp_path, parts)
    threshold, _, table = decide(run, draws=50)
    # Of the validation margins 1 catches all positives, and of five negatives one too many.
    assert threshold == pytest.approx(expit(1), rel=1e-6)
    assert list(table.index) == DOMAINS
    confusion = table[["tp", "fn", "fp", "tn"]].to_numpy().tolist()
    assert confusion == [[2, 0, 0, 2], [1, 0, 1, 2], [1, 1, 1, 2]]
    assert table["test"].tolist() == [False, False, True]
    assert table["images"].tolist() == table["groups"].tolist() == [4, 4, 5]
    assert table["sensitivity"].tolist() == [1, 1, 0.5]
    assert table["specificity"].tolist() == pytest.approx([1, 2 / 3, 2 / 3])
    assert table["auroc"].tolist() == pytest.approx([1, 1, 4 / 6])
    assert (table["auroc_low"] <= table["auroc"]).all()
    assert (table["auroc"] <= table["auroc_high"]).all()
    assert decide(run, sensitivity=0.6, draws=2)[0] == pytest.approx(expit(3), rel=1e-6)
    # Deciding for the other class mirrors everything.
    _, _, other = decide(run, positive="benign", draws=2)
    assert other["auroc"].tolist() == pytest.approx(table["auroc"].tolist())


def test_temperature_calibrates(tmp_path: Path) -> None:
    """Labels drawn with the probability of a third of the margin need a temperature of 3."""
    source = np.random.default_rng(0)
    margins = source.normal(0, 6, 4000).astype(np.float32)
    labels = (source.random(4000) < expit(margins / 3)).astype(int)
    halves = [part(0, "out", margins[:2000], labels[:2000])]
    run = written(tmp_path, [*halves, part(2, "in", margins[2000:], labels[2000:])])
    _, temperature, table = decide(run, draws=2)
    assert temperature == pytest.approx(3, rel=0.1)
    assert (table["ece"] > 0.08).all()
    assert (table["ece_calibrated"] < 0.03).all()
    # One logit of binary labels says the same.
    parts = [
        Predicted(d, s, [str(i) for i in range(2000)], labels[rows], margins[rows, None])
        for d, s, rows in ((0, "out", slice(2000)), (2, "in", slice(2000, None)))
    ]
    facts = {"labels": "binary", "label_kind": "binary"}
    _, same, one = decide(written(tmp_path, parts, **facts), draws=2)
    assert same == pytest.approx(temperature, rel=1e-4)
    assert np.allclose(one.drop(columns="test").astype(float), table.drop(columns="test"), 1e-5)


def test_intervals_are_over_groups(tmp_path: Path) -> None:
    """Ten images of each patient are worth one: the interval is as wide as that of one each."""
    source = np.random.default_rng(1)
    margins, labels = source.normal(0, 1, 40), np.arange(40) % 2
    margins = margins + labels
    names = [f"patient {number}" for number in range(40)]
    width = {}
    for copies, groups in ((1, names), (10, names), (10, None)):
        several = {"margins": margins.repeat(copies), "labels": labels.repeat(copies)}
        groups = [name for name in groups for _ in range(copies)] if groups else None
        parts = [part(d, s, **several, groups=groups) for d, s in ((0, "out"), (2, "in"))]
        row = decide(written(tmp_path, parts), draws=100)[2].loc["west"]
        width[copies, groups is None] = row["auroc_high"] - row["auroc_low"]
        assert row["groups"] == (40 if groups else 40 * copies)
    assert width[10, False] == pytest.approx(width[1, False])
    assert width[10, True] < 0.5 * width[1, False]


def test_what_cannot_be_decided_is_refused(tmp_path: Path) -> None:
    parts = [part(0, "out", [1, 2], [1, 1]), part(2, "in", [1, 2], [0, 1])]
    with pytest.raises(UserError, match="validation is all or none of 'malignant'"):
        decide(written(tmp_path, parts))
    with pytest.raises(UserError, match=r"positive is 'x', and .* predicts benign, malignant"):
        decide(tmp_path, "x")
    three = [Predicted(0, "out", ["a"], np.array([0]), np.zeros((1, 3)))]
    with pytest.raises(UserError, match=r"positive is None, and .* predicts a, b, c: name the"):
        decide(written(tmp_path, three, classes=["a", "b", "c"]))
    numbers = [Predicted(0, "out", ["a"], np.array([0.5]), np.zeros((1, 1)))]
    facts = {"labels": "regression", "classes": ["a", "b"]}
    with pytest.raises(UserError, match="name the class to decide for"):
        decide(written(tmp_path, numbers, **facts))
    (tmp_path / "predictions.parquet").unlink()
    with pytest.raises(UserError, match="domainbed model predict RUN_FOLDER --save_predictions"):
        decide(tmp_path)
    assert json.loads((tmp_path / "run.json").read_text())["test_envs"] == [2]
