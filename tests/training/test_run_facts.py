"""What an algorithm knows of its run, in its constructor, its updates and its predictions."""

from __future__ import annotations

import copy
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from vectors import Vectors, records, run_until

from domainbed import load_model
from domainbed.algorithms import ALGORITHMS, ERM, Algorithm, Stage
from domainbed.config.run_facts import HParams, RunFacts
from domainbed.datasets import DATASETS
from domainbed.runs.folder import RunFolder
from domainbed.spec import RunSpec
from domainbed.training import build, checkpoint, run
from domainbed.training.trained import load_trained_weights, rebuild

STEPS = 8


class Watching(ERM):
    """Tells what it knows, and predicts by it."""

    paper = "none"

    def __init__(self, input_shape: Any, num_classes: Any, num_domains: Any, hparams: Any) -> None:
        super().__init__(input_shape, num_classes, num_domains, hparams)
        self.told = hparams.facts
        self.steps_seen = [self.facts.steps]

    def update(self, minibatches: Any, unlabeled: Any = None) -> Any:
        self.steps_seen.append(self.facts.step)
        return {**super().update(minibatches), "progress": self.facts.progress}

    def predict(self, x: torch.Tensor) -> torch.Tensor:
        return self.network(x) * (-1) ** self.facts.step


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ALGORITHMS._entries, "Watching", Watching)
    monkeypatch.setitem(DATASETS._entries, "Vectors", Vectors)


def spec_of(algorithm: str = "Watching", **hparams: Any) -> RunSpec:
    return RunSpec.create(
        "Vectors",
        algorithm,
        [2],
        steps=STEPS,
        checkpoint_freq=3,
        hparams={"batch_size": 4, **hparams},
    )


def test_facts_of_a_run() -> None:
    experiment = build(spec_of())
    names = list(experiment.dataset.ENVIRONMENTS)
    sizes = tuple(len(experiment.splits[e].inside) for e in (0, 1))
    facts = experiment.algorithm.facts
    assert facts == RunFacts(
        steps=STEPS,
        class_names=tuple(experiment.dataset.class_names),
        domain_names=tuple(names[:2]),
        test_domains=(names[2],),
        test_envs=(2,),
        group_sizes=sizes,
        class_sizes=(19, 19),
        dataset="Vectors",
    )
    assert experiment.algorithm.told is facts
    assert experiment.algorithm.hparams == experiment.spec.hparams
    of_all = build(spec_of("ERMPlusPlus", auto_lr=True)).further_stage(2).facts
    assert of_all.group_sizes == tuple(len(experiment.domains[e]) for e in (0, 1))
    added = build(spec_of("Fishr+CORAL")).algorithm
    assert added.base.facts is added.facts


def test_the_step_of_a_run_and_of_one_that_was_killed(tmp_path: Path) -> None:
    run(spec_of(), tmp_path / "whole")
    run_until(spec_of(), tmp_path / "pieces", 5)
    saved = checkpoint._read(RunFolder(tmp_path / "pieces").checkpoint)["algorithm"]["attributes"][
        ""
    ]
    assert saved["hparams"]["type"] == "dict"
    assert not {"facts", "told"} & set(saved)
    run(spec_of(), tmp_path / "pieces")
    whole, pieces = records(tmp_path / "whole"), records(tmp_path / "pieces")
    assert [record["progress"] for record in whole] == [0, 2 / STEPS, 5 / STEPS, 7 / STEPS]
    assert pieces == whole


def test_a_trained_model_predicts_as_at_its_last_record(tmp_path: Path) -> None:
    run(spec_of(), tmp_path)
    experiment = rebuild(RunFolder(tmp_path))
    load_trained_weights(experiment, RunFolder(tmp_path))
    module = load_model(tmp_path).module
    assert module.facts == experiment.facts
    assert (module.facts.step, module.facts.domain_names) == (STEPS - 1, ("a", "b"))
    last = records(tmp_path)[-1]
    values = experiment.evaluate(STEPS - 1, experiment.all_splits())
    loss = {f"env{v.domain}_{v.split}_acc": v.value for v in values if v.metric == "accuracy"}
    assert {name: last[name] for name in loss} == loss


class Twice(Watching):
    def training_stages(self) -> Any:
        return Stage(), Stage("all")


def test_each_stage_starts_at_step_0(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ALGORITHMS._entries, "Twice", Twice)
    run_until(spec_of("Twice"), tmp_path, STEPS + 2)
    run(spec_of("Twice"), tmp_path)
    found = [(record["stage"], record["progress"]) for record in records(tmp_path)]
    shares = [0, 2 / STEPS, 5 / STEPS, 7 / STEPS]
    assert found == [(stage, share) for stage in (1, 2) for share in shares]


def test_hyper_parameters_are_a_dict() -> None:
    facts, plain = RunFacts(steps=10), {"lr": 0.1, "batch_size": 4}
    hparams = HParams(plain, facts)
    assert hparams == plain
    assert json.dumps(hparams) == json.dumps(plain)
    for copied in (
        *(hparams.copy(), copy.copy(hparams), copy.deepcopy(hparams), {**hparams}),
        pickle.loads(pickle.dumps(hparams)),
    ):
        assert (type(copied), copied) == (dict, plain)
    facts.begin(4)
    assert (hparams.facts.progress, copy.deepcopy(facts)) == (0.4, facts)
    with pytest.raises(AttributeError):
        facts.steps = 5  # type: ignore[misc]


def test_a_class_made_by_hand_has_defaults() -> None:
    assert Algorithm((3,), 2, 2, {}).facts == RunFacts()
