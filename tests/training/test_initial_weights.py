"""Runs that begin with a linear probe: what it is, who shares it, and averages of such runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from sklearn.linear_model import LogisticRegression
from vectors import Vectors, records, run_until

from domainbed.config.run_fields import RunOptions
from domainbed.datasets import DATASETS
from domainbed.errors import UserError
from domainbed.spec import RunSpec
from domainbed.sweeps.finished import average_runs
from domainbed.training import build, load_model, run
from domainbed.training.experiment import PROBE_L2, set_initial_weights

CPU = RunOptions(device="cpu")


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(DATASETS._entries, "Vectors", Vectors)


def spec_of(algorithm: str = "ERM", seed: int = 0, **fields: Any) -> RunSpec:
    given = {"steps": 6, "checkpoint_freq": 3, "initial_weights": "linear-probe", **fields}
    hparams = {"batch_size": 4, "lr": 0.01 * (1 + seed), **given.pop("hparams", {})}
    return RunSpec.create("Vectors", algorithm, [2], hparams_seed=seed, hparams=hparams, **given)


def begun(spec: RunSpec) -> Any:
    experiment = build(spec, CPU)
    set_initial_weights(experiment)
    return experiment


@torch.no_grad()
def test_the_classifier_is_logistic_regression_on_the_first_features() -> None:
    """Of the training domains' in-splits; the featurizer stays as it was drawn."""
    experiment, drawn = begun(spec_of()), build(spec_of(), CPU)
    algorithm = experiment.algorithm
    for name, value in drawn.algorithm.featurizer.state_dict().items():
        assert torch.equal(value, algorithm.featurizer.state_dict()[name])
    pairs = [experiment.domains[e].evaluation_batches(experiment.splits[e].inside) for e in (0, 1)]
    x, y = (torch.cat(each) for each in zip(*(pair for batches in pairs for pair in batches)))
    z = algorithm.featurizer(x)
    # Of two classes scikit-learn has one row of weights, the difference of ours.
    usual = LogisticRegression(C=2 / (len(y) * PROBE_L2), tol=1e-12, max_iter=10_000)
    expected = usual.fit(z.double().numpy(), y.numpy()).predict_proba(z.double().numpy())
    found = algorithm.predict(x).softmax(dim=1).double()
    assert torch.allclose(found, torch.from_numpy(expected), atol=1e-4)
    assert algorithm.training


def test_all_runs_of_a_trial_share_it() -> None:
    """Whatever their algorithm and draws."""
    one = begun(spec_of()).algorithm
    for other in (spec_of(seed=1), spec_of("CORAL", 2)):
        theirs = begun(other).algorithm.state_dict()
        assert all(torch.equal(value, theirs[name]) for name, value in one.state_dict().items())
    of_another_trial = begun(spec_of(trial_seed=1)).algorithm
    assert not torch.equal(one.classifier.weight, of_another_trial.classifier.weight)
    shared = build(spec_of(initial_weights="shared"), CPU).algorithm
    assert torch.equal(shared.featurizer.input.weight, one.featurizer.input.weight)
    assert not torch.equal(shared.classifier.weight, one.classifier.weight)


def test_what_is_drawn_after_shared_weights_is_the_runs_own() -> None:
    """Draws of updates, such as dropout's, and minibatches."""
    for weights in ("shared", "linear-probe"):
        specs = [spec_of(seed=seed, initial_weights=weights) for seed in (0, 1)]
        experiments, drawn = [], []
        for spec in specs:
            experiments.append(build(spec, CPU))
            drawn.append(torch.rand(3))
        own = torch.Generator().manual_seed(specs[0].seed)
        assert torch.equal(drawn[0], torch.rand(3, generator=own))
        assert not torch.equal(*drawn)
        first, second = (next(each.minibatches(range(1)))[0][0] for each in experiments)
        assert not torch.equal(first, second)


def test_what_predicts_and_what_is_trained_both_begin_with_it() -> None:
    algorithm = begun(spec_of("ERMPlusPlus")).algorithm
    plain = begun(spec_of()).algorithm.classifier.weight
    assert torch.equal(algorithm.classifier.weight, plain)
    assert torch.equal(algorithm.predicting_parts()[1].weight, plain)


def test_averages_along_a_training_begin_with_it(tmp_path: Path) -> None:
    """Those that hold on to the first weights show them."""
    fields = {"averages": ("ema", "wise"), "ema_decay": 0.0, "wise_alpha": 0.25}
    run(spec_of(**fields), tmp_path, CPU)
    first = begun(spec_of()).algorithm.state_dict()
    last, ema, wise = (
        load_model(tmp_path, "cpu", average).module.state_dict()
        for average in (None, "ema", "wise")
    )
    for name, value in first.items():
        torch.testing.assert_close(ema[name], last[name])
        torch.testing.assert_close(wise[name], 0.75 * value + 0.25 * last[name])


@pytest.mark.parametrize("kill", [4, 6])
def test_a_killed_run_goes_on_exactly(kill: int, tmp_path: Path) -> None:
    """Also after its last update, when nothing is left but to keep the weights."""
    spec = spec_of(averages=("ema", "wise"))
    run(spec, tmp_path / "whole", CPU)
    run_until(spec, tmp_path / "cut", kill)
    run(spec, tmp_path / "cut", CPU)
    assert records(tmp_path / "whole") == records(tmp_path / "cut")
    for average in (None, "ema", "wise"):
        one, other = (load_model(tmp_path / f, "cpu", average).module for f in ("whole", "cut"))
        for name, value in one.state_dict().items():
            assert torch.equal(value, other.state_dict()[name]), (average, name)


def test_diwa_of_such_runs_is_the_mean_of_their_weights(tmp_path: Path) -> None:
    """Of two algorithms; beside runs that share random weights alone it is refused."""
    specs = [spec_of(), spec_of(seed=1), spec_of("CORAL", 1)]
    for spec in specs:
        run(spec, tmp_path / spec.run_id, CPU)
    (averaged,) = average_runs(tmp_path, "diwa-uniform", together=True, machine=CPU)
    states = [load_model(tmp_path / s.run_id, "cpu").module.state_dict() for s in specs]
    experiment = build(specs[0], CPU)
    mean = {k: torch.stack([s[k].double() for s in states]).mean(0).float() for k in states[0]}
    experiment.algorithm.load_state_dict(mean)
    assert averaged.validation == pytest.approx(experiment.validated("accuracy"))
    (file,) = tmp_path.glob("average-*/results.jsonl")
    record = json.loads(file.read_text())
    measured = experiment.evaluate(5, experiment.all_splits())
    values = {f"env{v.domain}_{v.split}_acc": v.value for v in measured}
    assert {key: record[key] for key in values} == values

    other = spec_of(seed=2, initial_weights="shared")
    run(other, tmp_path / other.run_id, CPU)
    with pytest.raises(UserError, match="started with different weights"):
        list(average_runs(tmp_path, "diwa-uniform", ["ERM"], machine=CPU))


@pytest.mark.parametrize(
    ("algorithm", "hparams", "said"),
    [
        ("MTL", {}, "but MTL predicts by more than a classifier on its features: choose 'shared'"),
        ("ERM", {"nonlinear_classifier": True}, "the classifier of ERM is not one linear layer"),
        ("KNN", {}, "but KNN has no classifier on features"),
    ],
)
def test_what_has_no_linear_classifier(
    algorithm: str, hparams: dict[str, Any], said: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=said):
        run(spec_of(algorithm, hparams=hparams), tmp_path, CPU)


def test_it_is_part_of_the_identity() -> None:
    kinds = ("own", "shared", "linear-probe")
    assert len({spec_of(initial_weights=kind).run_id for kind in kinds}) == 3
    assert "wise_alpha" not in spec_of().identity()
