"""Averages of weights along a training, against means of weights that are kept one by one."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from vectors import Vectors, records, run_until

from domainbed.algorithms import ALGORITHMS, ERM, Algorithm
from domainbed.algorithms.erm_plus_plus import mean_rate
from domainbed.cli import main
from domainbed.datasets import DATASETS
from domainbed.errors import UserError
from domainbed.spec import RunSpec
from domainbed.training import build, load_model, run
from domainbed.training.averages import SWAD, AuthorsSWAD, Averages, MovingAverage

ALL = ("ema", "sma", "swad")
FIELDS: dict[str, Any] = {
    **{"averages": ALL, "ema_decay": 0.9, "sma_start": 4},
    **{"swad_n_converge": 2, "swad_n_tolerance": 2, "swad_ratio": 1.2},
}


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(DATASETS._entries, "Vectors", Vectors)


def spec_of(algorithm: str = "ERM", **fields: Any) -> RunSpec:
    given = {"steps": 20, "checkpoint_freq": 2, "hparams": {"batch_size": 4, "lr": 0.01}}
    return RunSpec.create("Vectors", algorithm, [2], **{**given, **FIELDS, **fields})


# ---- SWAD's rule, as algorithm 1 of the paper states it ----


def swad_of_the_paper(
    losses: list[float], n_s: int, n_e: int, r: float, last: int
) -> tuple[int, int, bool, bool]:
    """Lines 1 to 12 of algorithm 1, with one iteration per loss, counted from 1.

    Returns:
        t_s and t_e, and whether each was found.
    """
    t_s, t_e, limit = 0, last, None
    of = dict(enumerate(losses, start=1))
    for i in range(1, last + 1):
        if limit is None:
            window = [of.get(i - back, math.nan) for back in range(n_s)]
            if i >= n_s and of[i - n_s + 1] == min(window):
                t_s, limit = i - n_s + 1, r / n_s * sum(window)
        elif i >= n_e and limit < min(of[i - back] for back in range(n_e)):
            return t_s, i - n_e, True, True
    return t_s, t_e, limit is not None, False


def random_curve(source: np.random.Generator) -> list[float]:
    """A loss that falls and rises again, with ties and noise."""
    length = int(source.integers(1, 30))
    valley = np.abs(np.arange(length) - source.integers(0, length)) * source.uniform(0, 0.3)
    return np.round(1 + valley + source.uniform(0, 0.5) * source.random(length), 1).tolist()


@pytest.mark.parametrize("every", [1, 3])
def test_swad_is_the_papers_algorithm(every: int) -> None:
    """Start, end and mean, at the end of every beginning of hundreds of curves."""
    source, seen = np.random.default_rng(0), set()
    for _ in range(150):
        losses, n_s = random_curve(source), int(source.integers(1, 5))
        n_e, r = n_s + int(source.integers(0, 4)), float(source.choice([1.01, 1.1, 1.3]))
        path = source.standard_normal(len(losses) * every + 1)
        swad = SWAD([torch.tensor([path[0]])], n_s, n_e, r)
        for update in range(1, len(path)):
            weights = [torch.tensor([path[update]])]
            if update % every:
                swad.add(weights)
                continue
            index = update // every
            told = swad.add_recorded(weights, update, losses[index - 1])
            t_s, t_e, started, ended = swad_of_the_paper(losses, n_s, n_e, r, index)
            assert told == {"start": t_s * every, "end": t_e * every}
            expected = path[t_s * every : t_e * every + 1].mean()
            assert swad.current()[0].item() == pytest.approx(expected, abs=1e-12)
            seen.add((started, ended))
    assert seen == {(False, False), (True, False), (True, True)}


def test_swad_with_the_published_parameters() -> None:
    """A curve read by hand: the valley is from the third loss to the sixth."""
    losses = [3.0, 2.0, 1.0, 1.1, 1.2, 1.4, *[2.0] * 6, 0.5]
    swad = SWAD([torch.zeros(1)], 3, 6, 1.3)  # limit: 1.3 · (1.0 + 1.1 + 1.2) / 3 = 1.43
    for update, loss in enumerate(losses, start=1):
        told = swad.add_recorded([torch.tensor([float(update)])], update, loss)
    assert told == {"start": 3, "end": 6}
    assert swad.current()[0].item() == pytest.approx((3 + 4 + 5 + 6) / 4)


@pytest.mark.parametrize(
    ("losses", "n_s", "n_e", "r", "taken", "span"),
    [
        # The third is the lowest of two, l = 2.52. The second is above l, so the third is the
        # first; three above l end the range, at once or when training ends before.
        ([5, 3, 2, 2.2, 2.1, 4, 4, 4], 2, 3, 1.2, [3, 4, 5], (3, 5)),
        ([5, 3, 2, 2.2, 2.1, 4], 2, 3, 1.2, [3, 4, 5], (3, 5)),
        # The second is not above l either: the range begins one segment before the lowest loss.
        ([5, 2.4, 2.2, 2, 2.1, 2.2, 4, 4, 4, 4], 2, 4, 1.2, [3, 4, 4, 5, 6], (3, 6)),
        # Fewer records than N_e: the first segment counts again until there are as many.
        ([1, 1.1, 1.1, 1.2, 1.2], 2, 4, 1.3, [2, 1, 1, 2, 3, 4, 5], (2, 5)),
        # No start: the last segment alone.
        ([3, 2, 1], 2, 3, 1.3, [3], (3, 3)),
    ],
)
def test_swad_of_its_authors(
    losses: list[float], n_s: int, n_e: int, r: float, taken: list[int], span: tuple[int, int]
) -> None:
    """Segments of two updates with weights that their number times, worked out by hand."""
    swad = AuthorsSWAD([torch.zeros(1)], n_s, n_e, r)
    for number, loss in enumerate(losses, start=1):
        swad.add([torch.tensor([number - 0.25])])
        told = swad.add_recorded([torch.tensor([number + 0.25])], 2 * number, loss)
        state = copy.deepcopy(swad.state())
        swad = AuthorsSWAD([torch.ones(1)], n_s, n_e, r)
        swad.restore(state)
    assert swad.current()[0].item() == pytest.approx(np.mean(taken))
    assert told == {"start": 2 * span[0] - 1, "end": 2 * span[1]}


def test_losses_that_are_no_numbers_start_nothing() -> None:
    swad = SWAD([torch.zeros(1)], 1, 1, 1.3)
    assert swad.add_recorded([torch.ones(1)], 1, math.nan) == {"start": 0, "end": 1}
    assert swad.current()[0].item() == pytest.approx(0.5)


def test_moving_averages() -> None:
    path = np.random.default_rng(1).standard_normal(12)
    first = [torch.tensor([path[0]])]
    ema = MovingAverage(first, lambda t: 1 - 0.8)
    sma = MovingAverage(first, lambda t: mean_rate(t, 6))
    expected = path[0]
    for update in range(1, 12):
        ema.add([torch.tensor([path[update]])])
        sma.add([torch.tensor([path[update]])])
        expected = 0.8 * expected + 0.2 * path[update]
        of_sma = path[5 : update + 1].mean() if update > 5 else path[update]
        assert ema.current()[0].item() == pytest.approx(expected, abs=1e-12)
        assert sma.current()[0].item() == pytest.approx(of_sma, abs=1e-12)


# ---- beside a run ----


class Watched(ERM):
    """ERM that keeps its weights after every update."""

    paper = "none"
    seen: list[dict[str, torch.Tensor]] = []

    def update(self, minibatches: Any, unlabeled: Any = None) -> dict[str, float]:
        if not self.seen:
            self.keep()
        found = super().update(minibatches, unlabeled)
        self.keep()
        return found

    def keep(self) -> None:
        self.seen.append({name: v.clone() for name, v in self.state_dict().items()})


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Any]]:
    folder = tmp_path_factory.mktemp("watched")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(DATASETS._entries, "Vectors", Vectors)
        patch.setitem(ALGORITHMS._entries, "Watched", Watched)
        patch.setattr(Watched, "seen", [])
        run(spec_of("Watched"), folder)
        yield folder, list(Watched.seen)


def test_averages_of_a_run_are_the_means_of_its_weights(watched: tuple[Path, Any]) -> None:
    """Tensor by tensor, as they are loaded from the run's folder."""
    folder, path = watched
    last = records(folder)[-1]
    start, end = last["swad_start"], last["swad_end"]
    assert 0 < start < end < 20, "choose other parameters: this curve shows nothing"
    for name in path[0]:
        theta = torch.stack([weights[name].double() for weights in path])
        ema = theta[0]
        for each in theta[1:]:
            ema = 0.9 * ema + 0.1 * each
        expected = {
            "ema": ema,
            "sma": theta[4:].mean(dim=0),
            "swad": theta[start : end + 1].mean(dim=0),
            None: theta[-1],
        }
        for average, value in expected.items():
            found = load_model(folder, "cpu", average).module.state_dict()[name]
            torch.testing.assert_close(found.double(), value, rtol=0, atol=1e-6)


def test_records_measure_the_loaded_averages(watched: tuple[Path, Any]) -> None:
    folder, _ = watched
    last, experiment = records(folder)[-1], build(spec_of("Watched"))
    split = experiment.splits[0].out
    x, y = next(iter(experiment.domains[0].evaluation_batches(split)))
    for average in ALL:
        logits = load_model(folder, "cpu", average).module.predict(x)
        accuracy = (logits.argmax(dim=1) == y).float().mean().item()
        assert last[f"{average}_env0_out_acc"] == pytest.approx(accuracy)
        assert f"{average}_env2_in_acc" in last


def test_last_weights_and_their_records_stay_what_they_are(tmp_path: Path) -> None:
    """But for what SWAD asks for, the loss of validation."""
    run(spec_of(), tmp_path / "with")
    run(spec_of(averages=(), metrics=("accuracy", "loss")), tmp_path / "without")
    with_them, without = records(tmp_path / "with"), records(tmp_path / "without")
    for ours, theirs in zip(with_them, without, strict=True):
        del ours["args"], theirs["args"]
        more = {key for key in ours if key.startswith(("ema_", "sma_", "swad_"))} | {"val_loss"}
        assert {key: value for key, value in ours.items() if key not in more} == theirs
    ours, theirs = (load_model(tmp_path / name, "cpu").module for name in ("with", "without"))
    for name, value in ours.state_dict().items():
        assert torch.equal(value, theirs.state_dict()[name])


@pytest.mark.parametrize("algorithm", ["Fish", "MTL"])
def test_a_run_with_averages_resumes_exactly(algorithm: str, tmp_path: Path) -> None:
    spec = spec_of(algorithm)
    run(spec, tmp_path / "whole")
    for kill in (4, 5, 7):
        run_until(spec, tmp_path / "pieces", kill)
    run(spec, tmp_path / "pieces")
    assert records(tmp_path / "pieces") == records(tmp_path / "whole")
    for average in ALL:
        one, other = (load_model(tmp_path / f, "cpu", average) for f in ("whole", "pieces"))
        for name, value in one.module.state_dict().items():
            assert torch.equal(value, other.module.state_dict()[name]), name


class Normalised(ERM):
    """ERM whose featurizer has a batch norm that trains."""

    paper = "none"

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.featurizer.add_module("norm", nn.BatchNorm1d(6))

    def predict(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.featurizer(self.featurizer.norm(3 * x)))


def test_statistics_of_batch_norm_are_those_of_the_averaged_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(ALGORITHMS._entries, "Normalised", Normalised)
    spec = spec_of("Normalised", averages=("sma",), steps=6)
    run(spec, tmp_path)
    state = load_model(tmp_path, "cpu", "sma").module.state_dict()
    batches = [torch.cat([3 * x for x, _ in pairs]) for pairs in build(spec).minibatches(range(6))]
    mean = torch.stack([x.mean(dim=0) for x in batches]).mean(dim=0)
    var = torch.stack([x.var(dim=0) for x in batches]).mean(dim=0)
    torch.testing.assert_close(state["featurizer.norm.running_mean"], mean)
    torch.testing.assert_close(state["featurizer.norm.running_var"], var)
    assert state["featurizer.norm.num_batches_tracked"] == 6

    experiment = build(spec)  # and what is in the network comes back, counts too
    averages = Averages(experiment)
    before = {name: v.clone() for name, v in experiment.algorithm.state_dict().items()}
    with averages.in_place("sma"):
        assert experiment.algorithm.featurizer.norm.num_batches_tracked == 6
    after = experiment.algorithm.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert experiment.algorithm.featurizer.norm.momentum == 0.1


def test_a_run_without_averages_keeps_no_more(tmp_path: Path) -> None:
    run(spec_of(averages=()), tmp_path)
    assert sorted(f.name for f in tmp_path.glob("model*.pkl")) == ["model.pkl"]
    with pytest.raises(UserError, match="has no averages, and no 'swad'"):
        load_model(tmp_path, "cpu", "swad")


def test_the_command_predicts_with_an_average(
    watched: tuple[Path, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(ALGORITHMS._entries, "Watched", Watched)
    folder, shown = str(watched[0]), []
    for words in ([], ["--average", "ema"], ["--average", "x"]):
        with pytest.raises(SystemExit):
            main(["model", "predict", folder, "--domain", "2", "--device", "cpu", *words])
        shown.append(capsys.readouterr())
    assert len(shown[0].out.splitlines()) == len(shown[1].out.splitlines()) > 10
    assert shown[0].out != shown[1].out
    assert "has averages ema, sma, swad, and no 'x'" in shown[2].err
    with pytest.raises(SystemExit):
        main(["model", "predict", folder, "--save_predictions", "--average", "ema"])
    assert "leave --average out" in capsys.readouterr().err


def test_several_stages_have_no_average(tmp_path: Path) -> None:
    spec = RunSpec.create(
        "Vectors", "ERMPlusPlus", [2], hparams={"auto_lr": True}, averages=("ema",)
    )
    with pytest.raises(UserError, match="several stages"):
        run(spec, tmp_path)


class Constant(Algorithm):
    """It predicts the same class always, and has nothing to train."""

    paper = "none"

    def update(self, minibatches: Any, unlabeled: Any = None) -> dict[str, float]:
        return {"loss": 0.0}

    def predict(self, x: torch.Tensor) -> torch.Tensor:
        return x[:, :2] * 0


def test_no_weights_have_no_average(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ALGORITHMS._entries, "Constant", Constant)
    with pytest.raises(UserError, match="Constant has no weights"):
        run(spec_of("Constant"), tmp_path)


def test_no_average_is_part_of_no_identity() -> None:
    plain = RunSpec.create("PACS", "ERM", [0])
    assert not {"averages", "ema_decay", "swad_ratio"} & set(plain.identity())
    assert RunSpec.create("PACS", "ERM", [0], averages=("swad",)).run_id != plain.run_id
    ratios = {name: RunSpec.create(name, "ERM", [0]).tolerance_ratio for name in ("PACS", "VLCS")}
    assert ratios == {"PACS": 1.3, "VLCS": 1.2}
    with pytest.raises(UserError, match="swad_n_converge \\(3\\) or more"):
        RunSpec.create("PACS", "ERM", [0], swad_n_tolerance=2)


def test_the_tables_have_a_row_of_each_average(watched: tuple[Path, Any]) -> None:
    from domainbed.reporting import build_report, load_records

    folder, _ = watched
    found = load_records(folder)
    assert list(found.runs["algorithm"]) == [
        *("Watched", "Watched + EMA", "Watched + SMA", "Watched + SWAD")
    ]
    last = json.loads((folder / "results.jsonl").read_text().splitlines()[-1])
    table = build_report(found, ["oracle"]).tables[0]
    assert list(table.rows) == list(found.runs["algorithm"])
    for row, prefix in zip(table.rows.values(), ("", "ema_", "sma_", "swad_"), strict=True):
        assert row[2].mean == pytest.approx(100 * last[f"{prefix}env2_in_acc"])
