"""T3A over the finished runs of a sweep, against streams that are predicted here."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "training"))
from vectors import Vectors

from domainbed.algorithms.t3a import SUPPORTS, Templates
from domainbed.cli import main
from domainbed.config.run_fields import RunOptions
from domainbed.datasets import DATASETS
from domainbed.reporting import build_report, load_records
from domainbed.spec import RunSpec
from domainbed.training import build, load_model, run

CPU = RunOptions(device="cpu")


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(DATASETS._entries, "Vectors", Vectors)


def spec_of(algorithm: str, seed: int = 0) -> RunSpec:
    hparams = {"batch_size": 4, "lr": 0.01} if algorithm == "ERM" else {}
    return RunSpec.create(
        "Vectors", algorithm, [2], hparams_seed=seed, hparams=hparams, steps=3, checkpoint_freq=3
    )


def adapt(*words: str) -> int:
    with pytest.raises(SystemExit) as exit_:
        main(["model", "adapt", *words, "--device", "cpu"])
    return exit_.value.code


def accuracy(root: Path, spec: RunSpec, most: int, domain: int, split: str) -> float:
    """Of the stream of one split."""
    model, experiment = load_model(root / spec.run_id, "cpu").module, build(spec, CPU)
    featurizer, head = model.predicting_parts()
    chosen = experiment.splits[domain]
    indices = chosen.inside if split == "in" else chosen.out
    templates, right = Templates(head, most), 0
    for x, y in experiment.domains[domain].evaluation_batches(indices):
        right += int((templates(featurizer(x)).argmax(1) == y).sum())
    return right / len(indices)


def test_runs_are_adapted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each with the M that validates best, as a row beside the run's own; twice is as once."""
    specs = [spec_of("ERM"), spec_of("ERM", 1), spec_of("LinearProbe"), spec_of("KNN")]
    for spec in specs:
        run(spec, tmp_path / spec.run_id, CPU)
    for _ in range(2):
        assert adapt(str(tmp_path)) == 0
    told = capsys.readouterr().out.splitlines()[:4]
    assert sum("left out: KNN has no classifier on features" in line for line in told) == 1
    found: list[dict[str, Any]] = [
        json.loads(file.read_text()) for file in tmp_path.glob("adapted-*/results.jsonl")
    ]
    assert len(found) == 3
    for record in found:
        (run_id,) = record["args"]["runs"]
        (spec,) = [spec for spec in specs if spec.run_id == run_id]
        assert record["args"]["algorithm"] == f"{spec.algorithm} + T3A"
        assert record["args"]["hparams_seed"] == spec.hparams_seed
        validated = {
            most: sum(accuracy(tmp_path, spec, most, domain, "out") for domain in (0, 1))
            for most in SUPPORTS
        }
        best = max(validated, key=lambda most: validated[most])
        assert record["hparams"] == {**spec.hparams, "t3a_supports": best}
        assert record["env2_in_acc"] == accuracy(tmp_path, spec, best, 2, "in")
    table = build_report(load_records(tmp_path), ["training-domain"]).tables[0]
    assert list(table.rows) == [*("ERM", "ERM + T3A", "LinearProbe", "LinearProbe + T3A", "KNN")]


def test_what_cannot_be_adapted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(spec_of("KNN"), tmp_path / spec_of("KNN").run_id, CPU)
    assert adapt(str(tmp_path)) != 0
    assert "no run in" in capsys.readouterr().err
    assert adapt(str(tmp_path), "--supports", "-1") != 0
    assert "--supports is -1, with --method T3A: expected 0" in capsys.readouterr().err
    assert adapt(str(tmp_path), "--method", "Tent", "--supports", "5") != 0
    assert "with --method Tent: expected 0 (all) or more, with T3A" in capsys.readouterr().err
    assert adapt(str(tmp_path / "none")) != 0


def test_runs_are_adapted_by_steps(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The record says by what, and what the run measured without; what needs batch norm is told."""
    spec = spec_of("ERM")
    run(spec, tmp_path / spec.run_id, CPU)
    assert adapt(str(tmp_path), "--method", "SHOT_IM") == 0
    (file,) = tmp_path.glob("adapted-*/results.jsonl")
    record = json.loads(file.read_text())
    assert record["args"]["algorithm"] == "ERM + SHOT_IM"
    assert record["args"]["adaptation"] == "SHOT_IM"
    assert "batches of 64" in record["args"]["adapted_in"]
    own = json.loads((tmp_path / spec.run_id / "results.jsonl").read_text().splitlines()[-1])
    before = record["args"]["unadapted"]
    assert before["env2_in_acc"] == own["env2_in_acc"]
    assert record["hparams"]["adapt_lr"] in (0.001, 0.01, 0.1)
    assert record["hparams"]["adapt_steps"] in (1, 3)
    capsys.readouterr()
    assert adapt(str(tmp_path), "--method", "Tent") != 0
    assert "left out: Tent needs batch norm layers" in capsys.readouterr().out
    assert adapt(str(tmp_path), "--method", "Tant") != 0
    assert "--method is 'Tant': expected one of T3A, BatchNorm, Tent" in capsys.readouterr().err
