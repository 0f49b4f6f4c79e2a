"""Runs on labels of each type: trained, resumed, averaged, predicted, and what is refused."""

from __future__ import annotations

import csv
import io
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from label_datasets import KINDS, BinaryVectors, MultilabelVectors, RegressionVectors
from torch.nn import functional as F
from vectors import records, run_until

from domainbed.algorithms import ALGORITHMS as REGISTRY
from domainbed.algorithms import ERM
from domainbed.cli import main
from domainbed.config.run_fields import DiagnosisOptions, RunOptions
from domainbed.datasets import DATASETS
from domainbed.diagnostics import diagnose
from domainbed.errors import UserError
from domainbed.spec import Resolver, RunSpec
from domainbed.sweeps.finished import adapt_runs, average_runs
from domainbed.training import build, load_model, run

ALGORITHMS = ("ERM", "CORAL", "Fishr", "IRM", "VREx", "GroupDRO", "Mixup", "DANN")


@pytest.fixture(autouse=True)
def _datasets(monkeypatch: pytest.MonkeyPatch) -> None:
    for cls in KINDS.values():
        monkeypatch.setitem(DATASETS._entries, cls.__name__, cls)


def spec_of(dataset: str, algorithm: str = "ERM", **fields: Any) -> RunSpec:
    fields = {"hparams": {"batch_size": 8}, **fields}
    return RunSpec.create(dataset, algorithm, [2], **fields)


@pytest.mark.parametrize("dataset", [BinaryVectors, MultilabelVectors, RegressionVectors])
def test_runs(dataset: Any, tmp_path: Path) -> None:
    metric = {"binary": "acc", "multilabel": "average_precision", "regression": "rmse"}
    for algorithm in ALGORITHMS:
        folder = tmp_path / algorithm
        spec = spec_of(dataset.__name__, algorithm)
        run(spec, folder, RunOptions(keep="none"))
        last = records(folder)[-1]
        assert math.isfinite(last[f"env2_in_{metric[dataset.labels]}"]), algorithm
        assert spec.identity()["labels"] == dataset.labels


def test_what_is_learned(tmp_path: Path) -> None:
    """Labels that follow from a linear function of the inputs are fitted."""
    bounds = {"env0_in_acc": 0.9, "env0_in_average_precision": 0.95, "env0_in_rmse": 0.7}
    deviation = RegressionVectors("", [], {}).datasets[0].tensors[1].std().item()
    datasets = (BinaryVectors, MultilabelVectors, RegressionVectors)
    for dataset, (key, bound) in zip(datasets, bounds.items()):
        hparams = {"batch_size": 32, "lr": 0.01, "mlp_width": 32}
        spec = spec_of(dataset.__name__, steps=60, checkpoint_freq=60, hparams=hparams)
        run(spec, tmp_path / key, RunOptions(keep="none"))
        first, last = (records(tmp_path / key)[i] for i in (0, -1))
        assert last["loss"] < first["loss"] / 2
        if dataset is RegressionVectors:
            assert last[key] < bound * deviation
        else:
            assert last[key] > bound, key


def test_exact_resume(tmp_path: Path) -> None:
    spec = spec_of("RegressionVectors", "Fishr", averages=("ema", "swad"), steps=6)
    run(spec, tmp_path / "whole")
    run_until(spec, tmp_path / "parts", 4)
    run(spec, tmp_path / "parts")
    assert records(tmp_path / "parts") == records(tmp_path / "whole")
    assert records(tmp_path / "whole")[0]["val_loss"] > 0


def test_predictions_of_each_type(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = {}
    for name in KINDS:
        folder = tmp_path / name
        run(spec_of(name), folder)
        with pytest.raises(SystemExit) as exit:
            main(["model", "predict", str(folder), "--domain", "1", "--dataset", name])
        assert exit.value.code == 0
        found[name] = list(csv.reader(io.StringIO(capsys.readouterr().out)))
    assert found["Labelled"][0][:3] == ["position", "label", "class"]
    assert {row[1] for row in found["BinaryVectors"][1:]} <= {"0", "1"}
    assert found["BinaryVectors"][0][3:] == ["p(0)", "p(1)"]
    for _, _, predicted, *both in found["BinaryVectors"][1:]:
        assert sum(map(float, both)) == pytest.approx(1, abs=2e-4)
        assert float(both[int(predicted)]) >= 0.5
    of_labels = [f"label({k})" for k in range(3)]
    assert found["MultilabelVectors"][0] == ["position", *of_labels, "p(0)", "p(1)", "p(2)"]
    assert all(0 <= float(cell) <= 1 for row in found["MultilabelVectors"][1:] for cell in row[1:])
    assert found["RegressionVectors"][0] == ["position", "label(0)", "0"]
    position, label, predicted = found["RegressionVectors"][1]
    x, y = RegressionVectors("", [], {}).datasets[1][int(position)]
    assert float(label) == pytest.approx(y.item(), rel=1e-5)
    model = load_model(tmp_path / "RegressionVectors")
    expected = model.module.predict(x[None].to(next(model.module.parameters()).device)).item()
    assert float(predicted) == pytest.approx(expected, rel=1e-4)
    assert model.probabilities(x[None]).item() == expected
    both = load_model(tmp_path / "BinaryVectors").probabilities(torch.zeros(3, 5))
    torch.testing.assert_close(both.sum(dim=1), torch.ones(3))


def test_averages_of_runs_and_what_is_refused(tmp_path: Path) -> None:
    for seed in (0, 1):
        spec = RunSpec.create(
            "RegressionVectors",
            "ERM",
            [2],
            hparams_seed=seed,
            initial_weights="shared",
            hparams={"batch_size": 8, "mlp_width": 8},
        )
        run(spec, tmp_path / spec.run_id)
    list(average_runs(tmp_path, "ensemble"))
    list(average_runs(tmp_path, "uniform-soup"))
    written = [
        records_of
        for path in sorted(tmp_path.glob("average-*"))
        for records_of in [(path / "results.jsonl").read_text()]
    ]
    assert len(written) == 2
    assert all('"env2_in_rmse"' in text for text in written)
    with pytest.raises(UserError, match=r"no run in .* predicts by a linear classifier"):
        list(adapt_runs(tmp_path))
    with pytest.raises(UserError, match="labels are 'regression'"):
        diagnose(tmp_path / spec.run_id, DiagnosisOptions(dataset=None))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"algorithm": "CDANN"}, "CDANN needs classes, and labels are 'regression'"),
        ({"hparams": {"class_balanced": True}}, "'class_balanced' is True, but labels are"),
        ({"initial_weights": "linear-probe"}, "initial_weights is 'linear-probe', which needs"),
        ({"metrics": ("accuracy",)}, "'accuracy' is not defined for labels of the type"),
        ({"labels": "numbers"}, "unknown label type 'numbers'"),
    ],
)
def test_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        spec_of("RegressionVectors", **fields)
    if "algorithm" in fields:
        resolver = Resolver.of("RegressionVectors", "CDANN", {}, {})
        assert "needs classes" in str(resolver.obstacle([2]))


def test_the_field_wins_over_the_dataset(tmp_path: Path) -> None:
    """Two classes may be told apart by one logit; runs on classes have no field in their id."""
    plain, binary = (
        spec_of("Debug28", **fields) for fields in ({}, {"labels": "binary", "steps": 2})
    )
    assert "labels" not in plain.identity()
    assert binary.identity()["labels"] == "binary"
    run(binary, tmp_path, RunOptions(save_predictions=True))
    assert load_model(tmp_path).module.num_classes == 1
    assert load_model(tmp_path).module.facts.labels == "binary"


class OtherHparams(ERM):
    """Hands its parent other hyper-parameters than it was given, as classes of DomainBed may."""

    def __init__(self, input_shape: Any, num_classes: Any, num_domains: Any, hparams: Any) -> None:
        super().__init__(input_shape, num_classes, num_domains, {**hparams, "lr": 1.0})


def test_a_class_that_drops_the_facts_has_the_run_s_labels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else cross-entropies of shares would be learned in place of those of properties."""
    monkeypatch.setitem(REGISTRY._entries, "OtherHparams", OtherHparams)
    spec = spec_of("MultilabelVectors", "OtherHparams", steps=1)
    run(spec, tmp_path)
    assert load_model(tmp_path).module.facts.steps == 1
    experiment = build(spec)
    (minibatches,) = experiment.minibatches(range(1))
    forward = experiment.algorithm.forward_pass(minibatches)
    expected = F.binary_cross_entropy_with_logits(forward.logits, forward.y)
    assert forward.pooled_risk().item() == pytest.approx(expected.item())
    assert ERM((5,), 3, 2, spec.hparams).facts.labels == "classes"  # one made by hand


def test_files_of_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of binary labels both probabilities; else the columns of labels, without a class."""
    found = {}
    for name in ("BinaryVectors", "MultilabelVectors", "RegressionVectors"):
        run(spec_of(name, steps=1), tmp_path / name)
        model = replace(load_model(tmp_path / name), preprocess=lambda file: torch.ones(5))
        monkeypatch.setattr("domainbed.training.load_model", lambda *_, model=model: model)
        with pytest.raises(SystemExit):
            main(["model", "predict", str(tmp_path / name), "a.png"])
        found[name] = list(csv.reader(io.StringIO(capsys.readouterr().out)))
        outputs = model.module.predict(torch.ones(1, 5))[0]
    (header, row), (of_many, shares), (of_numbers, numbers) = found.values()
    assert header == ["file", "class", "p(0)", "p(1)"]
    assert float(row[2]) + float(row[3]) == pytest.approx(1, abs=1e-4)
    assert row[1] == str(int(float(row[3]) > 0.5))
    assert of_many == ["file", "p(0)", "p(1)", "p(2)"]
    assert all(0 < float(share) < 1 for share in shares[1:])
    assert of_numbers == ["file", "0"]
    assert float(numbers[1]) == pytest.approx(outputs.item(), rel=1e-4)
