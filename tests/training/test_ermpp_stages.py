"""ERM++ in two stages: rates by plateau, then all images with the same rates."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F
from vectors import Vectors, records, run_until

from domainbed.datasets import DATASETS
from domainbed.runs.folder import RunFolder
from domainbed.spec import RunSpec
from domainbed.training import build, load_model, run

SMALL = {"mlp_width": 8, "batch_size": 4, "linear_steps": 3, "sma_start": 5, "lr": 0.3}
BOTH = {**SMALL, "auto_lr": True}
STEPS, EVERY = 60, 2


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(DATASETS._entries, "Vectors", Vectors)


def spec_of(hparams: dict[str, Any] = BOTH, steps: int = STEPS, **fields: Any) -> RunSpec:
    given = {"steps": steps, "checkpoint_freq": EVERY, "hparams": hparams, **fields}
    return RunSpec.create("Vectors", "ERMPlusPlus", [2], **given)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(DATASETS._entries, "Vectors", Vectors)
        run(spec_of(), folder)
    return folder


def of_stage(folder: Path, number: int) -> list[dict[str, Any]]:
    return [record for record in records(folder) if record["stage"] == number]


def expected_rates(losses: list[float], rate: float) -> list[float]:
    """A tenth after two records in a row without an improvement, until the third fall."""
    rates, best, without, falls = [], float("inf"), 0, 0
    for loss in losses:
        without = 0 if loss < best * (1 - 1e-4) else without + 1
        best = min(best, loss) if without == 0 else best
        if without > 1:
            rate, without, falls = rate * 0.1, 0, falls + 1
        rates.append(rate)
        if falls == 3:
            break
    return rates


def test_the_rates_of_the_first_stage_follow_its_validation(whole: Path) -> None:
    """A record has the rate of the updates before it; the third fall ends the stage."""
    found = of_stage(whole, 1)
    warm = [r for r in found if r["step"] + 1 <= SMALL["linear_steps"]]
    rest = found[len(warm) :]
    assert len(warm) == 2
    assert {r["lr"] for r in warm} == {0.3}
    rates = expected_rates([r["val_loss"] for r in rest], 0.3)
    assert [r["lr"] for r in rest] == pytest.approx([0.3, *rates[:-1]])
    assert rates[-1] == pytest.approx(3e-4)
    assert len(rates) == len(rest)
    assert found[-1]["step"] < STEPS - 2


def test_the_second_stage_repeats_steps_and_rates(whole: Path) -> None:
    first, second = of_stage(whole, 1), of_stage(whole, 2)
    assert [r["step"] for r in second] == [r["step"] for r in first]
    assert [r["lr"] for r in second] == [r["lr"] for r in first]
    assert [r["loss"] for r in second] != [r["loss"] for r in first]


def test_the_validation_is_that_of_the_averaged_model(tmp_path: Path) -> None:
    """Done by hand: the same updates, before any rate can fall, and each out-split's mean loss."""
    run(spec_of(steps=6), tmp_path)
    experiment = build(spec_of(steps=6))
    for minibatches in experiment.minibatches(range(6)):
        experiment.algorithm.update(minibatches)
    losses = []
    for env in (0, 1):
        x, y = Vectors("", [2], {}).datasets[env].tensors
        out = experiment.splits[env].out
        losses.append(F.cross_entropy(experiment.algorithm.network_sma(x[out]), y[out]).item())
    assert of_stage(tmp_path, 1)[-1]["val_loss"] == pytest.approx(sum(losses) / 2, rel=1e-5)


def test_without_three_falls_the_second_stage_takes_all_steps(tmp_path: Path) -> None:
    """DomainBed raises there, its list being empty."""
    run(spec_of(steps=11), tmp_path)
    first, second = of_stage(tmp_path, 1), of_stage(tmp_path, 2)
    assert [r["step"] for r in first] == [r["step"] for r in second] == [0, 2, 4, 6, 8, 10]
    assert [r["lr"] for r in first] == [r["lr"] for r in second]
    assert RunFolder(tmp_path).is_done()


def test_a_warm_up_longer_than_the_run_has_no_rates(tmp_path: Path) -> None:
    run(spec_of({**BOTH, "linear_steps": 500}, steps=5), tmp_path)
    assert [(r["stage"], r["lr"]) for r in records(tmp_path)] == [(1, 0.3)] * 3 + [(2, 0.3)] * 3


def test_the_model_that_is_kept_is_that_of_the_result(whole: Path) -> None:
    """On all images of the test domain, as the last record of the second stage has it."""
    model = load_model(whole)
    x, y = Vectors("", [2], {}).datasets[2].tensors
    right = (model.module.predict(x).argmax(dim=1) == y).float().mean().item()
    assert of_stage(whole, 2)[-1]["fd_env2_in_acc"] == pytest.approx(right)


@pytest.mark.parametrize("share", [0.1, 0.48, 0.52, 0.98])
def test_a_kill_in_either_stage_changes_nothing(share: float, whole: Path, tmp_path: Path) -> None:
    steps = of_stage(whole, 1)[-1]["step"] + 1 + of_stage(whole, 2)[-1]["step"] + 1
    run_until(spec_of(), tmp_path, int(share * steps))
    run(spec_of(), tmp_path)
    assert records(tmp_path) == records(whole)
    one, other = (torch.load(f / "model.pkl")["model_dict"] for f in (tmp_path, whole))
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("lars", [False, True])
def test_kills_at_every_switch_of_a_plain_run(lars: bool, tmp_path: Path) -> None:
    """After the last update of the warm-up, and around the first that is averaged."""
    spec = spec_of({**SMALL, "lars": lars}, steps=9)
    run(spec, tmp_path / "whole")
    for step in (4, 2, 2):
        run_until(spec, tmp_path / "pieces", step)
    run(spec, tmp_path / "pieces")
    assert records(tmp_path / "pieces") == records(tmp_path / "whole")


def test_alone_it_is_trained_as_every_other_method(tmp_path: Path) -> None:
    run(spec_of(SMALL, steps=3), tmp_path)
    for record in records(tmp_path):
        assert not {"stage", "lr", "val_loss", "env0_out_loss"} & set(record)
        assert {"env2_in_acc", "env0_out_acc"} <= set(record)


def test_the_choice_is_part_of_the_runs_identity() -> None:
    assert spec_of(BOTH).run_id != spec_of(SMALL).run_id
    assert spec_of(BOTH).hparams["auto_lr"] is True


def test_class_balance_and_random_draws_in_both_stages(tmp_path: Path) -> None:
    given = {**BOTH, "class_balanced": True, "nonlinear_classifier": True}
    spec = spec_of({k: v for k, v in given.items() if k != "lr"}, steps=6, hparams_seed=3)
    run(spec, tmp_path)
    assert [r["step"] for r in records(tmp_path)] == [0, 2, 4, 5] * 2
