"""Which weights stay: what selection chooses, at the step that it chooses, to the last bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from vectors import Vectors, run_until

from domainbed.algorithms import ALGORITHMS, ERM
from domainbed.config.run_fields import RunOptions
from domainbed.datasets import DATASETS
from domainbed.errors import UserError
from domainbed.reporting import load_records
from domainbed.selection import ORACLE, TRAINING_DOMAIN
from domainbed.selection.judging import judged
from domainbed.spec import RunSpec
from domainbed.training import run

SELECTED = RunOptions(device="cpu", keep="selected")
ALL = RunOptions(device="cpu", keep="all")


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(DATASETS._entries, "Vectors", Vectors)


def spec_of(**fields: Any) -> RunSpec:
    given = {"test_envs": [2], "algorithm": "ERM", "steps": 20, "checkpoint_freq": 3}
    hparams = {"batch_size": 4, "lr": 0.05}  # so large that accuracies go up and down
    return RunSpec.create("Vectors", **{**given, "hparams": hparams, **fields})


def weights(file: Path) -> dict[str, Any]:
    content: dict[str, Any] = torch.load(file, weights_only=True)["model_dict"]
    return content


def models(folder: Path) -> set[str]:
    return {file.name for file in folder.glob("model*.pkl")}


def steps_chosen(folder: Path) -> dict[str, dict[str, int]]:
    """By method and name of the weights, as the tables choose."""
    records = load_records(folder)
    return {
        method.name: {
            row["algorithm"].partition(" + ")[2].lower(): int(row["step"])
            for row in method.score(records).to_dict("records")
        }
        for method in (TRAINING_DOMAIN, ORACLE)
    }


def test_what_tables_choose_is_kept_as_it_was(tmp_path: Path) -> None:
    steps = {kept_as_chosen(tmp_path / str(trial), trial) for trial in range(4)}
    assert len(steps) > 1  # else this would prove little


def kept_as_chosen(folder: Path, trial: int) -> int:
    """Compares what a run keeps with what tables choose; returns the step that they choose."""
    spec = spec_of(trial_seed=trial, averages=("ema", "sma"), sma_start=2)
    run(spec, folder / "all", ALL)
    run_until(spec, folder / "selected", 5 + 3 * trial, SELECTED)
    run(spec, folder / "selected", SELECTED)
    chosen = steps_chosen(folder / "all")
    assert chosen == steps_chosen(folder / "selected")
    assert set(chosen["oracle"].values()) == {19}
    expected = {"model.pkl", "model.ema.pkl", "model.sma.pkl"}
    for name, step in chosen["training-domain"].items():
        if step < 19:
            expected.add(f"model_step{step}{f'.{name}' if name else ''}.pkl")
    assert models(folder / "selected") == expected
    digests = {f"{name}.sha256" for name in expected}
    assert {file.name for file in (folder / "selected").glob("*.sha256")} == digests
    step = chosen["training-domain"][""]
    for name in {"model.pkl", *([f"model_step{step}.pkl"] if step < 19 else [])}:
        one, other = (weights(folder / kind / name) for kind in ("selected", "all"))
        torch.testing.assert_close(one, other, rtol=0, atol=0)
    return step


def test_averages_are_kept_as_they_were_measured(tmp_path: Path) -> None:
    """The average at a step, against that of a run that ends there."""
    for trial in range(4):
        spec = spec_of(trial_seed=trial, averages=("ema",))
        run(spec, folder := tmp_path / str(trial), SELECTED)
        if (step := steps_chosen(folder)["training-domain"]["ema"]) < 19:
            break
    assert step < 19
    shorter = spec.model_copy(update={"steps": step + 1})
    run(shorter, tmp_path / "shorter", RunOptions(device="cpu"))
    one = weights(folder / f"model_step{step}.ema.pkl")
    other = weights(tmp_path / "shorter" / "model.ema.pkl")
    torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_without_a_record_of_the_last_step(tmp_path: Path) -> None:
    spec = spec_of(record_last_step=False)  # the last record is at 18 of 19
    run(spec, tmp_path / "all", ALL)
    run(spec, tmp_path / "selected", SELECTED)
    names = {f"model_step{chosen['']}.pkl" for chosen in steps_chosen(tmp_path / "all").values()}
    assert "model_step18.pkl" in names
    assert models(tmp_path / "selected") == names | {"model.pkl"}
    one, other = (weights(tmp_path / kind / "model_step18.pkl") for kind in ("selected", "all"))
    torch.testing.assert_close(one, other, rtol=0, atol=0)


class Ending(ERM):
    """Ends at the record of step 6."""

    def on_record(self, metrics: dict[str, float]) -> bool:
        return metrics["step"] == 6


class Changing(Ending):
    def on_end(self) -> None:
        for weight in self.parameters():
            weight.data.zero_()


@pytest.mark.parametrize("algorithm", [Ending, Changing])
def test_runs_that_end_themselves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, algorithm: type[ERM]
) -> None:
    monkeypatch.setitem(ALGORITHMS._entries, "Ending", algorithm)
    run(spec_of(algorithm="Ending"), tmp_path, SELECTED)
    chosen = steps_chosen(tmp_path)
    steps = {chosen["oracle"][""], chosen["training-domain"][""]}
    assert 6 in steps
    expected = {f"model_step{step}.pkl" for step in steps if step != 6 or algorithm is Changing}
    assert models(tmp_path) == expected | {"model.pkl"}


def test_only_the_methods_that_were_asked_for(tmp_path: Path) -> None:
    run(spec_of(), tmp_path, SELECTED.model_copy(update={"selection": ("oracle",)}))
    assert models(tmp_path) == {"model.pkl"}
    with pytest.raises(UserError, match="unknown selection method 'orcale'"):
        run(spec_of(), tmp_path / "b", SELECTED.model_copy(update={"selection": ("orcale",)}))


def test_of_pairs_nothing_is_chosen(tmp_path: Path) -> None:
    run(spec_of(test_envs=[0, 1]), tmp_path, SELECTED)
    assert models(tmp_path) == set()


@pytest.mark.parametrize(
    ("said", "weights"),
    [
        ({}, "last"),
        ({"keep": "none"}, "none"),
        ({"skip_model_save": True}, "none"),
        ({"save_model_every_checkpoint": True}, "all"),
        ({"skip_model_save": True, "save_model_every_checkpoint": True}, "none"),
        ({"keep": "none", "skip_model_save": True}, "none"),
        ({"keep": "selected"}, "selected"),
    ],
)
def test_one_fact_under_three_names(said: dict[str, Any], weights: str) -> None:
    assert RunOptions(**said).weights == weights


def test_contradictions_are_refused() -> None:
    with pytest.raises(UserError, match="keep is 'all', and skip_model_save is set"):
        RunOptions(keep="all", skip_model_save=True)
    with pytest.raises(UserError, match="keep is 'last', and save_model_every_checkpoint is set"):
        RunOptions(keep="last", save_model_every_checkpoint=True)


def test_weights_are_kept_by_the_metric_that_selects(tmp_path: Path) -> None:
    spec = spec_of(metrics=("accuracy", "loss"), trial_seed=1)
    by_loss = RunOptions(device="cpu", keep="selected", selection_metric="loss")
    run(spec, tmp_path / "all", ALL)
    run(spec, tmp_path / "by_loss", by_loss)
    assert judged(load_records(tmp_path / "by_loss"))[0].selection_metric == "loss"  # in its args
    steps = {}
    for metric in ("accuracy", "loss"):
        (records,) = judged(load_records(tmp_path / "all"), selection_metric=metric)
        (steps[metric],) = TRAINING_DOMAIN.select(records)["step"]
    assert steps["loss"] < steps["accuracy"]
    assert models(tmp_path / "by_loss") == {"model.pkl", f"model_step{steps['loss']}.pkl"}


def test_what_selects_is_recorded(tmp_path: Path) -> None:
    spec = spec_of()
    by_f1 = RunOptions(device="cpu", selection_metric="f1")
    with pytest.raises(UserError, match="selection_metric is 'f1', and the metrics accuracy"):
        run(spec, tmp_path / "f1", by_f1)
    by_group = RunOptions(device="cpu", keep="selected", selection=("worst-group",))
    with pytest.raises(UserError, match="worst-group chooses by accuracy_worst_group, and the"):
        run(spec, tmp_path / "group", by_group)
