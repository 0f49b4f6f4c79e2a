"""Averages over runs of a sweep, against means that are worked out by hand."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "training"))
from vectors import Vectors

from domainbed.algorithms import ALGORITHMS, ERM
from domainbed.cli import main
from domainbed.config.dimensions import Option
from domainbed.config.run_fields import RunOptions
from domainbed.datasets import DATASETS
from domainbed.errors import UserError
from domainbed.reporting import build_report, load_records
from domainbed.runs.folder import RunFolder
from domainbed.spec import RunSpec
from domainbed.sweeps import finished
from domainbed.sweeps.finished import METHODS, average_runs, mean_of
from domainbed.training import build, load_model, run

CPU = RunOptions(device="cpu")
SEEDS = (0, 1, 2, 3)


def spec_of(algorithm: str = "ERM", seed: int = 0, trial: int = 0, **fields: Any) -> RunSpec:
    given = {"steps": 12, "checkpoint_freq": 6, "initial_weights": "shared", **fields}
    hparams = {"batch_size": 4, "lr": 0.003 * (1 + seed) ** 2, **given.pop("hparams", {})}
    return RunSpec.create(
        "Vectors", algorithm, [2], hparams_seed=seed, trial_seed=trial, hparams=hparams, **given
    )


def do(root: Path, spec: RunSpec, **options: Any) -> Path:
    run(spec, root / spec.run_id, RunOptions(device="cpu", **options))
    return root / spec.run_id


class Aided(ERM):
    """ERM with a part that predicts nothing, of a width that may be another in each run."""

    paper = "none"
    options = {"width": Option(8, "of the part")}

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.aid = torch.nn.Linear(2, self.hparams["width"])


class Normalised(ERM):
    """ERM with a batch norm of the inputs, which trains."""

    paper = "none"

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.norm = torch.nn.BatchNorm1d(6)

    def predict(self, x: torch.Tensor) -> torch.Tensor:
        return super().predict(self.norm(x))


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(DATASETS._entries, "Vectors", Vectors)
    monkeypatch.setitem(ALGORITHMS._entries, "Aided", Aided)
    monkeypatch.setitem(ALGORITHMS._entries, "Normalised", Normalised)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ERM with four hparams seeds, and Aided with two."""
    root = tmp_path_factory.mktemp("sweep")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(DATASETS._entries, "Vectors", Vectors)
        patch.setitem(ALGORITHMS._entries, "Aided", Aided)
        for seed in SEEDS:
            do(root, spec_of(seed=seed))
        for seed, width in ((1, 8), (2, 16)):
            do(root, spec_of("Aided", seed, hparams={"width": width}))
    return root


@pytest.fixture
def sweep(trained: Path, tmp_path: Path) -> Path:
    return shutil.copytree(trained, tmp_path / "sweep")


def weights_of(root: Path, algorithm: str, seed: int) -> dict[str, torch.Tensor]:
    hparams = {"width": {1: 8, 2: 16}[seed]} if algorithm == "Aided" else {}
    spec = spec_of(algorithm, seed, hparams=hparams)
    return load_model(root / spec.run_id, "cpu").module.state_dict()


def record_of(root: Path, name: str) -> dict[str, Any]:
    found = [json.loads(f.read_text()) for f in root.glob("average-*/results.jsonl")]
    (record,) = [record for record in found if record["args"]["algorithm"] == name]
    return record


def measured(state: dict[str, torch.Tensor]) -> dict[str, float]:
    """What the record of these weights of ERM must hold."""
    experiment = build(spec_of(), CPU)
    experiment.algorithm.load_state_dict({**experiment.algorithm.state_dict(), **state})
    values = experiment.evaluate(11, experiment.all_splits())
    return {f"env{v.domain}_{v.split}_acc": v.value for v in values}


def by_hand(states: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    return {
        name: torch.stack([state[name].double() for state in states]).mean(dim=0).float()
        for name in states[0]
    }


def validation(state: dict[str, torch.Tensor]) -> float:
    found = measured(state)
    return (found["env0_out_acc"] + found["env1_out_acc"]) / 2


def assert_loaded(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, torch.Tensor]]:
    """A list that each set of averaged weights is added to, when it is put into the network."""
    seen: list[dict[str, torch.Tensor]] = []
    load = finished._load
    monkeypatch.setattr(finished, "_load", lambda e, s: (seen.append(s), load(e, s)))
    return seen


def test_runs_with_shared_weights_begin_alike() -> None:
    """But learn from other minibatches; and without the field nothing is shared."""
    first, second = (build(spec_of(seed=seed), CPU) for seed in (0, 1))
    other = build(spec_of("Aided", 1, hparams={"width": 8}), CPU).algorithm.state_dict()
    for name, value in first.algorithm.state_dict().items():
        assert torch.equal(value, second.algorithm.state_dict()[name])
        assert torch.equal(value, other[name])
    x, _ = next(first.minibatches(range(1)))[0]
    assert not torch.equal(x, next(second.minibatches(range(1)))[0][0])
    seeds = {spec_of(seed=seed, initial_weights="own").initial_seed for seed in SEEDS}
    assert len(seeds) == len(SEEDS)
    assert spec_of(trial=1).initial_seed != spec_of().initial_seed
    assert "initial_weights" not in spec_of(initial_weights="own").identity()


def test_uniform_soup_is_the_mean_tensor_by_tensor(
    sweep: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = assert_loaded(monkeypatch)
    (averaged,) = average_runs(sweep, "uniform-soup", ["ERM"], machine=CPU)
    expected = by_hand([weights_of(sweep, "ERM", seed) for seed in SEEDS])
    for name, value in expected.items():
        torch.testing.assert_close(seen[-1][name], value, rtol=0, atol=0)
    record = record_of(sweep, "ERM + uniform soup")
    assert {key: record[key] for key in measured(expected)} == measured(expected)
    assert record["args"]["runs"] == [spec_of(seed=seed).run_id for seed in SEEDS]
    assert averaged.validation == pytest.approx(validation(expected))
    assert "4 of 4 (hparams seeds: ERM 0, ERM 1, ERM 2, ERM 3)" in averaged.describe()


@pytest.mark.parametrize("method", ["greedy-soup", "diwa-restricted"])
def test_greedy_choice_is_recipe_1(method: str, sweep: Path) -> None:
    (averaged,) = average_runs(sweep, method, ["ERM"], machine=CPU)
    states = {seed: weights_of(sweep, "ERM", seed) for seed in SEEDS}
    order = sorted(SEEDS, key=lambda seed: -validation(states[seed]))
    taken = order[:1]
    for seed in order[1:]:
        soup, more = ([states[s] for s in seeds] for seeds in (taken, [*taken, seed]))
        if validation(by_hand(more)) >= validation(by_hand(soup)):
            taken = [*taken, seed]
    assert [member.spec.hparams_seed for member in averaged.taken] == taken
    record = record_of(sweep, f"ERM + {METHODS[method].title}")
    expected = measured(by_hand([states[seed] for seed in taken]))
    assert {key: record[key] for key in expected} == expected


@pytest.mark.parametrize("method", METHODS)
def test_an_average_of_one_is_its_member(method: str, tmp_path: Path) -> None:
    folder = do(tmp_path, spec_of())
    (averaged,) = average_runs(tmp_path, method, machine=CPU)
    last = json.loads((folder / "results.jsonl").read_text().splitlines()[-1])
    record = record_of(tmp_path, averaged.name)
    keys = [key for key in last if key.startswith("env")]
    assert {key: record[key] for key in keys} == {key: last[key] for key in keys}


def test_ensemble_is_of_probabilities(sweep: Path) -> None:
    list(average_runs(sweep, "ensemble", together=True, machine=CPU))
    experiment = build(spec_of(), CPU)
    x, y = next(iter(experiment.domains[2].evaluation_batches(experiment.splits[2].inside)))
    ids = record_of(sweep, "ERM, Aided + ensemble")["args"]["runs"]
    models = [load_model(sweep / run_id, "cpu") for run_id in ids]
    mean = sum(model.probabilities(x) for model in models) / 6
    accuracy = (mean.argmax(dim=1) == y).float().mean().item()
    assert record_of(sweep, "ERM, Aided + ensemble")["env2_in_acc"] == pytest.approx(accuracy)


def test_diwa_takes_several_algorithms(sweep: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What predicts is averaged; parts of other widths are no obstacle."""
    seen = assert_loaded(monkeypatch)
    list(average_runs(sweep, "diwa-uniform", together=True, machine=CPU))
    states = [weights_of(sweep, "ERM", seed) for seed in SEEDS]
    states += [weights_of(sweep, "Aided", seed) for seed in (1, 2)]
    for name in [name for name in states[0] if name.startswith(("featurizer", "classifier"))]:
        expected = torch.stack([state[name].double() for state in states]).mean(dim=0).float()
        torch.testing.assert_close(seen[-1][name], expected, rtol=0, atol=1e-7)
    assert "env2_in_acc" in record_of(sweep, "ERM, Aided + DiWA")


def test_rows_stand_in_the_same_tables(
    sweep: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for _ in range(2):  # the second time replaces the first
        with pytest.raises(SystemExit) as status:
            main(["model", "average", str(sweep), "--method", "diwa-uniform", "--device", "cpu"])
        assert status.value.code == 0
    assert capsys.readouterr().out.count("ERM + DiWA on Vectors, test domain 2, trial 0: ") == 2
    table = build_report(load_records(sweep), ["training-domain"]).tables[0]
    assert list(table.rows) == ["ERM", "ERM + DiWA", "Aided", "Aided + DiWA"]
    record = record_of(sweep, "ERM + DiWA")
    assert table.rows["ERM + DiWA"][2].mean == pytest.approx(100 * record["env2_in_acc"])
    assert RunFolder(next(sweep.glob("average-*"))).state() == "done"


def test_what_cannot_be_averaged_is_said(sweep: Path, tmp_path: Path) -> None:
    def fails(root: Path, method: str, message: str, **options: Any) -> None:
        with pytest.raises(UserError, match=message):
            list(average_runs(root, method, machine=CPU, **options))

    fails(sweep, "uniform-soop", "Did you mean 'uniform-soup'")
    fails(sweep, "uniform-soup", "no finished runs of the algorithm 'Fish'", algorithms=["Fish"])
    fails(sweep, "uniform-soup", "--together is for diwa-uniform", together=True)
    fails(tmp_path / "none", "ensemble", "is not a folder")
    do(sweep, spec_of("MTL"))
    fails(sweep, "diwa-uniform", "MTL does not predict by its classifier", together=True)
    do(sweep, spec_of(seed=5, hparams={"mlp_width": 5}))
    fails(sweep, "uniform-soup", "has another network than", algorithms=["ERM"])
    do(sweep, spec_of(seed=6, initial_weights="own"))
    fails(sweep, "uniform-soup", "'initial_weights: shared'", algorithms=["ERM"])
    do(sweep, spec_of(seed=7), skip_model_save=True)
    fails(sweep, "ensemble", "without skip_model_save", algorithms=["ERM"])


def test_means_keep_type_and_integers() -> None:
    states = [{"w": torch.tensor([float(n)]), "n": torch.tensor(n)} for n in (1, 2, 4)]
    found = mean_of(states)
    assert found["w"].dtype == torch.float32
    assert (found["w"].item(), found["n"].item()) == (pytest.approx(7 / 3), 1)


def test_statistics_of_batch_norm_are_estimated_anew(tmp_path: Path) -> None:
    """At the averaged weights: of a layer before them all, they are those of the inputs."""
    for seed in (0, 1):
        do(tmp_path, spec_of("Normalised", seed))
    seen = []
    with pytest.MonkeyPatch.context() as patch:
        load = finished._load
        patch.setattr(finished, "_load", lambda e, s: (load(e, s), seen.append(e)))
        list(average_runs(tmp_path, "uniform-soup", machine=CPU))
    pairs = build(spec_of("Normalised"), CPU).minibatches(range(12))
    mean = torch.stack([torch.cat([x for x, _ in each]).mean(dim=0) for each in pairs]).mean(dim=0)
    torch.testing.assert_close(seen[-1].algorithm.norm.running_mean, mean)
