"""Run specs: checks that name the field, an identity that is stable and free of paths."""

from __future__ import annotations

import dataclasses
import json

import pytest

from domainbed.errors import UserError
from domainbed.spec import RunSpec


def test_defaults_are_the_published_ones():
    spec = RunSpec.create("DomainNet", "ERM", [1])
    assert (spec.steps, spec.checkpoint_freq, spec.holdout_fraction) == (5001, 1000, 0.2)
    assert (spec.hparams_seed, spec.trial_seed, spec.task) == (0, 0, "domain_generalization")
    assert RunSpec.create("ColoredMNIST", "ERM", [1]).checkpoint_freq == 100
    assert RunSpec.create("PACS", "ERM", [1]).checkpoint_freq == 300


def test_seed_is_derived():
    spec = RunSpec.create("PACS", "ERM", [0], hparams_seed=3, trial_seed=1)
    assert spec.seed == 1704687671
    assert RunSpec.create("PACS", "ERM", [0], seed=7).seed == 7


def test_run_id_is_pinned():
    """Changing it would make every finished run of every user run again."""
    spec = RunSpec.create("ColoredMNIST", "Fishr", [2])
    assert spec.run_id == "f4764eed7803c7e89710e0e7378da34b"


def test_test_envs_are_ordered():
    assert RunSpec.create("PACS", "ERM", [3, 1]) == RunSpec.create("PACS", "ERM", (1, 3))


def test_every_field_is_part_of_the_identity():
    spec = RunSpec.create("PACS", "ERM", [0])
    names = {field.name for field in dataclasses.fields(RunSpec)}
    assert set(spec.identity()) == names
    changed = {
        **{"algorithm": "IRM", "dataset": "VLCS", "test_envs": (1,), "hparams_seed": 1},
        **{"trial_seed": 1, "seed": 1, "steps": 3, "checkpoint_freq": 1},
        **{"holdout_fraction": 0.1, "uda_holdout_fraction": 0.1, "task": "domain_adaptation"},
        **{"hparams": {"lr": 1}, "shared_draws": True, "augment_validation": True},
        "precision": "bf16",
    }
    assert set(changed) == names
    ids = {dataclasses.replace(spec, **{k: v}).run_id for k, v in changed.items()}
    assert len(ids | {spec.run_id}) == len(names) + 1


def test_identity_is_json_and_has_no_path(tmp_path):
    for domain in "ab":
        (tmp_path / "photos" / domain / "cat").mkdir(parents=True)
    spec = RunSpec.create(f"folder:{tmp_path / 'photos'}", "ERM", [0])
    text = json.dumps(spec.identity())
    assert json.loads(text) == spec.identity()
    assert str(tmp_path) not in text
    assert spec.identity()["dataset"] == "photos"


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("test_envs", {"test_envs": []}, "at least one"),
        ("test_envs", {"test_envs": [4]}, "between 0 and 3"),
        ("test_envs", {"test_envs": [-1]}, "between 0 and 3"),
        ("test_envs", {"test_envs": [1, 1]}, "each domain once"),
        ("test_envs", {"test_envs": [0, 1, 2, 3]}, "a training domain left"),
        ("steps", {"steps": 0}, "1 or more"),
        ("checkpoint_freq", {"checkpoint_freq": 0}, "1 or more"),
        ("holdout_fraction", {"holdout_fraction": 0.0}, "between 0 and 1"),
        ("holdout_fraction", {"holdout_fraction": 1.0}, "between 0 and 1"),
        ("uda_holdout_fraction", {"uda_holdout_fraction": 1.0}, "less than 1"),
        ("uda_holdout_fraction", {"task": "domain_adaptation"}, "more than 0"),
        ("hparams_seed", {"hparams_seed": -1}, "0 or more"),
        ("trial_seed", {"trial_seed": -1}, "0 or more"),
        ("task", {"task": "segmentation"}, "domain_generalization"),
        ("precision", {"precision": "fp8"}, "float32, bf16"),
    ],
)
def test_impossible_values(name, values, message):
    arguments = {"dataset": "PACS", "algorithm": "ERM", "test_envs": [0], **values}
    with pytest.raises(UserError, match=message) as caught:
        RunSpec.create(**arguments)
    text = str(caught.value)
    assert text.startswith(f"{name} is ")
    assert "\n" not in text


def test_misspelt_hyper_parameter():
    with pytest.raises(UserError, match=r"'lamda'.*Did you mean 'lambda'") as caught:
        RunSpec.create("PACS", "Fishr", [0], hparams={"lamda": 1})
    assert "penalty_anneal_iters" in str(caught.value)


def test_hyper_parameter_of_a_wrong_type():
    with pytest.raises(UserError, match="'lr' of ERM cannot be 'high': the default is"):
        RunSpec.create("PACS", "ERM", [0], hparams={"lr": "high"})


@pytest.mark.parametrize(
    ("algorithm", "hparams"),
    [
        ("ERM", {"batch_size": 8.5}),
        ("ERM", {"batch_size": 0}),
        ("ERM", {"batch_size": True}),
        ("ERM", {"lr": -1}),
        ("ERM", {"lr": float("nan")}),
        ("ERM", {"class_balanced": 1}),
        ("DANN", {"mlp_depth": 3.5}),
        ("Fishr", {"ema": 1.0}),
        ("Fishr", {"penalty_anneal_iters": 1.5}),
    ],
)
def test_values_that_cannot_be(algorithm, hparams):
    with pytest.raises(UserError, match=f"'{next(iter(hparams))}' of {algorithm} cannot be"):
        RunSpec.create("PACS", algorithm, [0], hparams=hparams)


def test_values_at_the_edge_are_accepted():
    hparams = {"lambda": 0.5, "penalty_anneal_iters": 0, "ema": 0, "batch_size": 1, "lr": 1}
    spec = RunSpec.create("PACS", "Fishr", [0], hparams=hparams)
    assert spec.resolved_hparams()["lambda"] == 0.5


def test_fixed_values_win_over_draws():
    spec = RunSpec.create("PACS", "ERM", [0], hparams_seed=5, hparams={"lr": 0.25})
    other = RunSpec.create("PACS", "ERM", [0], hparams_seed=5)
    assert spec.resolved_hparams() == {**other.resolved_hparams(), "lr": 0.25}


@pytest.mark.parametrize(("dataset", "algorithm"), [("PACCS", "ERM"), ("PACS", "EMR")])
def test_unknown_names(dataset, algorithm):
    with pytest.raises(UserError, match="Did you mean"):
        RunSpec.create(dataset, algorithm, [0])
