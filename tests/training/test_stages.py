"""Runs of several stages, which any algorithm may ask for."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F
from vectors import IMAGES, Killed, Vectors, records, run_until

from domainbed.algorithms import ALGORITHMS, ERM, Stage
from domainbed.core.stopping import Interrupted, request_stop, stopping_on
from domainbed.datasets import DATASETS
from domainbed.spec import RunSpec
from domainbed.training import RunOptions, build, checkpoint, run
from domainbed.training.artifacts import read_model
from domainbed.training.sampling import Split, undivided

STEPS, EVERY = 7, 2


class Halving(ERM):
    """Learns for how many records the loss of validation falls, then does so on all images.

    It keeps the losses that it saw, and ends its first stage with its third record.
    """

    paper = "none"
    calls: list[str] = []

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.seen: list[float] = []
        self.rate, self.handed_over = 1.0, torch.zeros(1)

    def training_stages(self) -> Sequence[Stage]:
        return Stage(replacement=False, validation=("loss",)), Stage("all", replacement=False)

    def take_over(self, before: Halving) -> None:
        self.calls.append("take over")
        self.seen, self.rate = [*before.seen], before.rate
        self.handed_over = before.classifier.bias.detach().clone()

    def on_start(self) -> None:
        self.calls.append("start")

    def on_record(self, metrics: dict[str, float]) -> bool:
        metrics["rate"] = self.rate
        self.calls.append(f"record {metrics['step']}")
        if "val_loss" not in metrics:
            return False
        self.seen.append(metrics["val_loss"])
        self.rate /= 2
        return len(self.seen) == 3

    def on_end(self) -> None:
        self.calls.append("end")


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ALGORITHMS._entries, "Halving", Halving)
    monkeypatch.setitem(DATASETS._entries, "Vectors", Vectors)
    monkeypatch.setattr(Halving, "calls", [])


def spec_of(algorithm: str = "Halving", **fields: Any) -> RunSpec:
    given = {"steps": STEPS, "checkpoint_freq": EVERY, "hparams": {"batch_size": 4}, **fields}
    return RunSpec.create("Vectors", algorithm, [2], **given)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(ALGORITHMS._entries, "Halving", Halving)
        patch.setitem(DATASETS._entries, "Vectors", Vectors)
        run(spec_of(), folder)
    return folder


def test_records_of_both_stages(whole: Path) -> None:
    found = records(whole)
    first, second = found[:3], found[3:]
    assert [(r["stage"], r["step"]) for r in first] == [(1, 0), (1, 2), (1, 4)]
    assert [(r["stage"], r["step"]) for r in second] == [(2, 0), (2, 2), (2, 4), (2, 6)]
    assert {r["args"]["stages"] for r in found} == {2}
    assert [r["rate"] for r in found] == [1.0, 0.5, 0.25, *[0.125] * 4]
    for record in first:
        losses = [record[f"env{e}_out_loss"] for e in (0, 1)]
        assert record["val_loss"] == pytest.approx(sum(losses) / 2)
        assert {"env0_out_acc", "env2_in_acc", "env2_out_acc"} <= set(record)
        assert record["epoch"] == pytest.approx(record["step"] / (19 / 4))  # 4 are held out
    for record in second:
        keys = {key for key in record if "env" in key and key.endswith("_acc")}
        last = record["step"] == 6
        assert keys == ({f"fd_env{e}_in_acc" for e in range(3)} if last else {"fd_env2_in_acc"})
        assert "val_loss" not in record
        assert record["epoch"] == pytest.approx(record["step"] / (IMAGES / 4))
    shown = (whole / "out.txt").read_text()
    assert "Stage 2 of 2" in shown
    assert "val_loss" in shown
    assert "env0_out_loss" not in shown  # there would be no end of columns


def test_the_hooks_are_called_in_order(tmp_path: Path) -> None:
    run(spec_of(), tmp_path)
    first = ["start", "record 0", "record 2", "record 4", "end"]
    second = ["start", "record 0", "record 2", "record 4", "record 6", "end"]
    assert Halving.calls == [*first, "take over", *second]


def test_the_second_stage_has_a_fresh_model(tmp_path: Path) -> None:
    """Its first loss is that of weights which no update of the first stage has touched."""
    run(spec_of(), tmp_path)
    experiment = build(spec_of())
    further = experiment.further_stage(2)
    x, y = (torch.cat(each) for each in zip(*next(further.minibatches(range(1)))))
    untouched = F.cross_entropy(further.algorithm.predict(x), y).item()
    assert records(tmp_path)[3]["loss"] == pytest.approx(untouched)
    first, second = experiment.algorithm.state_dict(), further.algorithm.state_dict()
    assert not torch.equal(first["classifier.weight"], second["classifier.weight"])
    kept = read_model(tmp_path / "model.pkl", spec_of().run_id)["model_dict"]
    twin = further.further_stage(2).algorithm
    assert not torch.equal(kept["classifier.weight"], twin.classifier.weight)
    for step, minibatches in enumerate(further.minibatches(range(STEPS))):
        assert len(minibatches) == 2, step
        twin.update(minibatches)
    assert torch.equal(kept["classifier.weight"], twin.classifier.weight)


def test_a_stage_on_all_images_cuts_nothing_off() -> None:
    further = build(spec_of()).further_stage(2)
    for split in further.stage_splits:
        assert (split.out, sorted(split.inside)) == ([], list(range(IMAGES)))
    assert undivided(Split([5, 1], [4, 2], [3])) == Split([], [5, 1, 4, 2], [3])


@pytest.mark.parametrize("step", range(1, 13))
def test_a_run_killed_after_any_step_ends_as_one_that_was_not(
    step: int, whole: Path, tmp_path: Path
) -> None:
    """The first stage has 5 steps, the second 7; the kill after the last is before `done`."""
    run_until(spec_of(), tmp_path, step)
    run(spec_of(), tmp_path)
    assert records(tmp_path) == records(whole)
    one, other = (
        read_model(f / "model.pkl", spec_of().run_id)["model_dict"] for f in (tmp_path, whole)
    )
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("save", range(1, 9))
def test_a_kill_instead_of_any_checkpoint(
    save: int, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three in the first stage, one between the two, four in the second."""
    saves, real = iter(range(1, 99)), checkpoint.save

    def dies(*of_run: Any) -> None:
        if next(saves) == save:
            raise Killed
        real(*of_run)

    monkeypatch.setattr(checkpoint, "save", dies)
    with pytest.raises(Killed):
        run(spec_of(), tmp_path)
    monkeypatch.setattr(checkpoint, "save", real)
    run(spec_of(), tmp_path)
    assert records(tmp_path) == records(whole)


def test_a_run_killed_again_and_again(whole: Path, tmp_path: Path) -> None:
    for _ in range(4):
        run_until(spec_of(), tmp_path, 3)
    run(spec_of(), tmp_path)
    assert records(tmp_path) == records(whole)


def test_weights_of_every_record_are_kept_apart(tmp_path: Path) -> None:
    run(spec_of(), tmp_path, RunOptions(save_model_every_checkpoint=True))
    names = {file.name for file in tmp_path.glob("model_*.pkl")}
    first = {f"model_step{step}.pkl" for step in (0, 2, 4)}
    assert names == first | {f"model_stage2_step{step}.pkl" for step in (0, 2, 4, 6)}


def test_steps_of_all_stages_are_reported_as_a_share(tmp_path: Path) -> None:
    taken: list[int] = []
    run(spec_of(), tmp_path, on_step=taken.append)
    assert taken == [0, 1, 1, 2, 2, 4, 4, 5, 5, 6, 6, 7]


def test_stages_of_a_method_with_the_penalty_of_fishr_on_top(tmp_path: Path) -> None:
    run(spec_of("Fishr+Halving", steps=3), tmp_path)
    found = records(tmp_path)
    assert [(r["stage"], r["step"]) for r in found] == [(1, 0), (1, 2), (2, 0), (2, 2)]
    assert [r["rate"] for r in found] == [1.0, 0.5, 0.25, 0.25]
    assert all(r["fishr_penalty"] > 0 for r in found)


def test_a_stage_on_all_images_has_none_for_a_validation() -> None:
    with pytest.raises(ValueError, match="none left for validation"):
        Stage("all", validation=("loss",))


class OneLong(ERM):
    """One stage, without replacement."""

    paper = "none"

    def training_stages(self) -> Sequence[Stage]:
        return (Stage(replacement=False),)


def test_one_stage_of_another_kind_is_not_marked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(ALGORITHMS._entries, "OneLong", OneLong)
    run(spec_of("OneLong", steps=2), tmp_path)
    assert not any("stage" in r or "stages" in r["args"] for r in records(tmp_path))


@pytest.mark.parametrize(
    ("algorithm", "averages", "expected"),
    [("ERM", ["ema", "sma", "swad"], STEPS), ("Halving", [], 4 + STEPS)],
)
def test_a_run_that_is_asked_to_stop_after_every_step_ends_the_same(
    algorithm: str, averages: list[str], expected: int, tmp_path: Path
) -> None:
    """The last step of a stage is no place to stop."""
    spec = spec_of(algorithm, averages=averages)
    run(spec, tmp_path / "whole")
    sessions = 0
    while not (tmp_path / "pieces" / "done").exists():
        sessions += 1
        assert sessions <= expected, "a session that was stopped has saved nothing"
        with stopping_on([]), suppress(Interrupted):
            run(spec, tmp_path / "pieces", on_step=lambda taken: request_stop())
    assert sessions == expected
    assert records(tmp_path / "pieces") == records(tmp_path / "whole")
    for file in ["model.pkl", *(f"model.{name}.pkl" for name in averages)]:
        whole, pieces = (
            read_model(tmp_path / place / file, spec.run_id)["model_dict"]
            for place in ("whole", "pieces")
        )
        assert all(torch.equal(whole[name], pieces[name]) for name in whole)
