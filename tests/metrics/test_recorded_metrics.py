"""Metrics in runs: of labels of each kind, by group, from kept predictions, and selecting."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pyarrow.parquet as parquet
import pytest
import torch
from label_datasets import KINDS, RegressionVectors

from domainbed.config.run_fields import RunOptions
from domainbed.core.names import record_key
from domainbed.datasets import DATASETS, TensorDomain
from domainbed.errors import UserError
from domainbed.metrics import METRICS, get_metric, label_type, measure_predictions, recorded_names
from domainbed.spec import RunSpec
from domainbed.training import run

KEPT = RunOptions(num_workers=0, device="cpu", save_predictions=True)


class Sites(RegressionVectors):
    """Regression whose samples come from two sites; labels of the second one are off by 3."""

    group = "site"

    def __init__(self, root: str, test_envs: Any, hparams: Any) -> None:
        super().__init__(root, test_envs, hparams)
        domains = []
        for dataset in self.datasets:
            x, y = dataset.tensors
            site = torch.arange(len(y)) % 2
            domains.append(TensorDomain(x, y + 3 * site, {"site": site}))
        self.datasets = domains


@pytest.fixture(autouse=True)
def _datasets(monkeypatch: pytest.MonkeyPatch) -> None:
    for cls in (*KINDS.values(), Sites):
        monkeypatch.setitem(DATASETS._entries, cls.__name__, cls)


def trained(dataset: str, folder: Path, options: RunOptions = KEPT, **fields: Any) -> list[Any]:
    """The records of a run with these fields."""
    hparams = {"batch_size": 8, "lr": 0.01}
    spec = RunSpec.create(dataset, "ERM", [1], seed=1, hparams=hparams, **fields)
    run(spec, folder, options)
    return [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]


@pytest.mark.filterwarnings("ignore:.* is a mean over")
@pytest.mark.parametrize("dataset", list(KINDS))
def test_kept_predictions_give_what_was_recorded(dataset: str, tmp_path: Path) -> None:
    labels = label_type(KINDS[dataset].labels)
    metrics = [name for name in METRICS if get_metric(name).suits(labels)]
    last = trained(dataset, tmp_path, metrics=metrics)[-1]
    found = measure_predictions(tmp_path / "predictions.parquet", metrics)
    assert {(v.domain, v.split) for v in found} == {(d, s) for d in range(3) for s in ("in", "out")}
    assert len(found) == 6 * len(metrics)
    for value in found:
        recorded = last[record_key(value.domain, value.split, value.metric)]
        if recorded is None:
            assert math.isnan(value.value)
        else:
            assert value.value == pytest.approx(recorded, rel=1e-6), value
    other = "rmse" if labels.kind != "regression" else "auroc"
    with pytest.raises(UserError, match=f"{other!r} is not defined"):
        measure_predictions(tmp_path / "predictions.parquet", [other])


def test_by_group(tmp_path: Path) -> None:
    wanted = ["rmse", "mae_by_group"]
    last = trained("Sites", tmp_path, metrics=wanted)[-1]
    predicted = parquet.read_table(tmp_path / "predictions.parquet").to_pandas()
    here = predicted[(predicted["domain"] == 1) & (predicted["split"] == "in")]
    error = (here["logits"].map(lambda outputs: outputs[0]) - here["label"]).abs()
    of_sites = error.groupby(here["group"]).mean()
    assert list(of_sites.index) == ["0", "1"]
    assert last["env1_in_mae_worst_group"] == pytest.approx(of_sites.max(), rel=1e-6)
    assert last["env1_in_mae_mean_group"] == pytest.approx(of_sites.mean(), rel=1e-6)
    assert last["env1_in_mae_group_gap"] == pytest.approx(of_sites.max() - of_sites.min(), rel=1e-4)
    values = measure_predictions(tmp_path / "predictions.parquet", wanted)
    assert {v.metric for v in values} == set(recorded_names(wanted))
    assert {record_key(*v[:3]): pytest.approx(v.value, rel=1e-6) for v in values} == {
        key: last[key] for key in last if key.startswith("env")
    }


def test_samples_without_groups_are_refused_at_the_start(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"'mae_by_group' needs the group .* 'group' in their ex"):
        trained("RegressionVectors", tmp_path, metrics=["mae_by_group"])
    assert not (tmp_path / "results.jsonl").exists()
    trained("RegressionVectors", tmp_path)
    with pytest.raises(UserError, match="by group need samples with a group"):
        measure_predictions(tmp_path / "predictions.parquet", ["mae_by_group"])


def test_the_lowest_error_is_kept(tmp_path: Path) -> None:
    """`eval_splits: best` reads the test domain, and keeps weights, where the error is lowest."""
    fields = {"steps": 30, "checkpoint_freq": 3, "hparams": {"batch_size": 8, "lr": 0.3}}
    spec = RunSpec.create("RegressionVectors", "ERM", [1], seed=1, eval_splits="best", **fields)
    options = RunOptions(
        num_workers=0, device="cpu", keep="selected", selection=("training-domain",)
    )
    run(spec, tmp_path, options)
    records = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    best, lowest = None, float("inf")
    for record in records[:-1]:
        validation = (record["env0_out_rmse"] + record["env2_out_rmse"]) / 2
        is_lower = validation < lowest
        assert (record["env1_in_rmse"] is not None) == is_lower
        if is_lower:
            best, lowest = record["step"], validation
    assert 0 < best < 27  # it rose again
    assert [file.name for file in tmp_path.glob("model_step*.pkl")] == [f"model_step{best}.pkl"]
