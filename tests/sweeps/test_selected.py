"""The models that selection chose: they have the test accuracy that the tables print."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "training"))
from vectors import Vectors

import domainbed
from domainbed.config.run_fields import RunOptions
from domainbed.datasets import DATASETS
from domainbed.errors import UserError
from domainbed.reporting import load_records
from domainbed.runs.folder import RunFolder
from domainbed.selection import SELECTION_METHODS
from domainbed.spec import RunSpec
from domainbed.training import run
from domainbed.training.trained import rebuild


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(DATASETS._entries, "Vectors", Vectors)


def spec_of(**fields: Any) -> RunSpec:
    given = {"steps": 20, "checkpoint_freq": 3, "averages": ("ema",), **fields}
    return RunSpec.create(
        "Vectors", "ERM", given.pop("test_envs", [2]), hparams={"batch_size": 4, "lr": 0.05},
        **given,
    )  # fmt: skip


def sweep(root: Path, **fields: Any) -> Path:
    """Two hparams seeds and two trials."""
    options = RunOptions(device="cpu", keep=fields.pop("keep", "selected"))
    for seed in (0, 1):
        for trial in (0, 1):
            spec = spec_of(hparams_seed=seed, trial_seed=trial, **fields)
            run(spec, root / spec.run_id, options)
    return root


def test_they_have_the_accuracy_of_the_tables(tmp_path: Path) -> None:
    root = sweep(tmp_path)
    runs, steps = load_records(root), set()
    for name in ("training-domain", "oracle"):
        chosen = SELECTION_METHODS[name].select(runs).to_dict("records")
        assert len(chosen) == 4  # two trials, of ERM and of its average
        for row in chosen:
            cell = {key: row[key] for key in ("dataset", "algorithm", "test_env", "trial_seed")}
            model = domainbed.load_selected(root, **cell, selection=name, device="cpu")
            assert model.spec.hparams_seed == row["hparams_seed"]
            assert model.spec.trial_seed == row["trial_seed"]
            assert model.classes == ["0", "1"]
            assert not model.module.training
            experiment = rebuild(RunFolder(root / model.spec.run_id), RunOptions(device="cpu"))
            inside = experiment.splits[2].inside
            ((x, y),) = experiment.domains[2].evaluation_batches(inside)
            right = (model.probabilities(x).argmax(dim=1) == y).double().mean()
            assert float(right) == pytest.approx(row["test"], abs=1e-6)
            steps.add(row["step"])
    assert len(steps) > 1


def test_the_first_trial_unless_another_is_named(tmp_path: Path) -> None:
    cell = {"dataset": "Vectors", "algorithm": "ERM", "test_env": 2, "selection": "oracle"}
    model = domainbed.load_selected(sweep(tmp_path), **cell, device="cpu")
    assert model.spec.trial_seed == 0
    with pytest.raises(UserError, match=r"chose nothing in .* test_env 2, trial_seed 7: `domain"):
        domainbed.load_selected(tmp_path, **cell, trial_seed=7)
    with pytest.raises(UserError, match=r"chose nothing in .* dataset 'PACS'"):
        domainbed.load_selected(tmp_path, **{**cell, "dataset": "PACS"})
    with pytest.raises(UserError, match="unknown selection method 'orcale'"):
        domainbed.load_selected(tmp_path, **{**cell, "selection": "orcale"})


def test_weights_that_were_not_kept(tmp_path: Path) -> None:
    """The last record is of step 18, the last weights are those after step 19."""
    cell = {"dataset": "Vectors", "algorithm": "ERM", "test_env": 2, "selection": "oracle"}
    root = sweep(tmp_path / "last", keep="last", record_last_step=False)
    with pytest.raises(UserError, match=r"no weights of step 18, which oracle chose: .*selected`"):
        domainbed.load_selected(root, **cell)
    root = sweep(tmp_path / "selected", record_last_step=False)
    kept = domainbed.load_selected(root, **cell, device="cpu")
    content = torch.load(root / kept.spec.run_id / "model_step18.pkl", weights_only=True)
    torch.testing.assert_close(dict(kept.module.state_dict()), dict(content["model_dict"]))
