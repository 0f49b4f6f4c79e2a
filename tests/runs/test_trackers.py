"""What trackers get is what results.jsonl has, and none of them harms a run."""

from __future__ import annotations

import json
import logging
import random
import struct
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "training"))
from vectors import Killed, Vectors, records, run_until

from domainbed.config.run_fields import RunOptions
from domainbed.core.settings import make
from domainbed.datasets import DATASETS
from domainbed.errors import UserError
from domainbed.runs.folder import RunFolder
from domainbed.runs.trackers import TRACKERS, TrackedRun, Tracker
from domainbed.spec import RunSpec
from domainbed.sweeps.config import SweepConfig
from domainbed.training import run


class Noted(Tracker):
    """Keeps all that it is told, by run."""

    told: list[tuple[Any, ...]]

    def __init__(self) -> None:
        random.random(), torch.rand(3)  # what a library might draw

    def begin(self, run: TrackedRun) -> None:
        self.told.append(("begin", run))

    def record(self, step: int, values: Mapping[str, float]) -> None:
        random.random(), torch.rand(3)
        self.told.append((step, dict(values)))

    def end(self, state: str) -> None:
        self.told.append(("end", state))


@pytest.fixture(autouse=True)
def noted(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    monkeypatch.setitem(DATASETS._entries, "Vectors", Vectors)
    monkeypatch.setitem(TRACKERS._entries, "noted", Noted)
    Noted.told = []
    return Noted.told


SPEC_FIELDS: dict[str, Any] = {"steps": 7, "checkpoint_freq": 2, "hparams": {"batch_size": 4}}


def spec_of(**fields: Any) -> RunSpec:
    return RunSpec.create("Vectors", "ERM", [2], **{**SPEC_FIELDS, **fields})


def tracked(*names: str) -> RunOptions:
    return RunOptions(device="cpu", keep="none", trackers=names)


def numbers(folder: Path) -> dict[int, dict[str, float]]:
    """All numbers of results.jsonl, by step."""
    found = [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]
    return {
        record["step"]: {
            name: value
            for name, value in record.items()
            if isinstance(value, (int, float)) and name != "step"
        }
        for record in found
    }


def test_a_tracker_of_ones_own(tmp_path: Path, noted: list[tuple[Any, ...]]) -> None:
    spec, folder = spec_of(), tmp_path / "sweep" / "run"
    run(spec, folder, tracked("noted"))
    (_, begun), *sent, end = noted
    assert (begun.run_id, begun.sweep, begun.folder) == (spec.run_id, "sweep", folder)
    assert begun.spec["algorithm"] == "ERM"
    assert dict(sent) == numbers(folder)
    assert [step for step, _ in sent] == [0, 2, 4, 6]
    assert end == ("end", "done")
    run(spec, tmp_path / "without", tracked())
    assert records(tmp_path / "without") == records(folder)  # no random draw was taken


def test_an_interrupted_run_goes_on(tmp_path: Path, noted: list[tuple[Any, ...]]) -> None:
    run_until(spec_of(), tmp_path, 4, tracked("noted"))
    assert noted[-1] == ("end", "failed")
    run(spec_of(), tmp_path, tracked("noted"))
    begun = [told[1].next_step for told in noted if told[0] == "begin"]
    assert begun == [0, 3]
    sent = [told[0] for told in noted if told[0] not in ("begin", "end")]
    assert sent == [0, 2, 4, 6]


@pytest.mark.parametrize("method", ["__init__", "begin", "record", "end"])
def test_one_that_fails_harms_no_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, method: str
) -> None:
    def fail(*arguments: Any) -> None:
        raise SystemExit("no route to host\nat all")

    failing = type("Failing", (Noted,), {method: fail})
    monkeypatch.setitem(TRACKERS._entries, "failing", failing)
    with caplog.at_level(logging.WARNING):
        run(spec_of(), tmp_path, tracked("failing", "noted"))
    assert RunFolder(tmp_path).state() == "done"
    (line,) = [each.getMessage() for each in caplog.records if "tracker" in each.getMessage()]
    assert line == (
        "warning: tracker failing gets no more records of this run, which continues "
        "(SystemExit: no route to host)"
    )
    assert [told for told in Noted.told if told == ("end", "done")][-1:]  # the other went on


def test_a_run_that_fails_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, noted: list[tuple[Any, ...]]
) -> None:
    def on_step(taken: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(spec_of(), tmp_path, tracked("noted"), on_step=on_step)
    assert noted[-1] == ("end", "interrupted")


def test_what_cannot_be_named() -> None:
    config = {"datasets": "ColoredDigits", "algorithms": "ERM", "trackers": "tensorbord"}
    with pytest.raises(
        UserError, match=r"trackers\[0\]: unknown tracker 'tensorbord'\. Did you mean"
    ):
        make(SweepConfig, config)
    with pytest.raises(UserError, match="unknown tracker 'tensorbord'"):
        make(RunOptions, {"trackers": "tensorbord"})


def test_what_is_not_installed_is_told_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lacking = type("Lacking", (Noted,), {"packages": ("no_such_package",)})
    monkeypatch.setitem(TRACKERS._entries, "lacking", lacking)
    with pytest.raises(UserError, match="tracker 'lacking' needs no_such_package: pip install"):
        run(spec_of(), tmp_path, tracked("lacking"))


def test_tensorboard_reads_what_was_recorded(tmp_path: Path) -> None:
    """Also of a run that was killed after a record that it makes again."""
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    def kill(taken: int) -> None:
        if taken == 5:
            (tmp_path / "checkpoint.pt").unlink()  # as if it was not written at step 4
            raise Killed

    with pytest.raises(Killed):
        run(spec_of(), RunFolder(tmp_path), tracked("tensorboard"), on_step=kill)
    run(spec_of(), tmp_path, tracked("tensorboard"))
    read = EventAccumulator(str(tmp_path / "tensorboard"))
    read.Reload()
    expected = numbers(tmp_path)
    assert set(read.Tags()["scalars"]) == {name for of in expected.values() for name in of}
    for name in ("loss", "env2_in_acc", "env0_out_acc"):
        values = {event.step: event.value for event in read.Scalars(name)}
        assert len(read.Scalars(name)) == len(values)
        assert values == pytest.approx({step: of[name] for step, of in expected.items()})


def test_mlflow_keeps_what_was_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mlflow")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    spec, folder = spec_of(), tmp_path / "sweep" / "run"
    run_until(spec, folder, 4, tracked("mlflow"))
    run(spec, folder, tracked("mlflow"))
    from mlflow import MlflowClient

    client = MlflowClient((tmp_path / "sweep" / "mlruns").as_uri())
    experiment = client.get_experiment_by_name("sweep")
    (found,) = client.search_runs([experiment.experiment_id])
    assert found.info.status == "FINISHED"
    assert found.data.params["algorithm"] == "ERM"
    for name in ("loss", "env2_in_acc"):
        history = client.get_metric_history(found.info.run_id, name)
        expected = {step: of[name] for step, of in numbers(folder).items()}
        assert {each.step: each.value for each in history} == pytest.approx(expected)


def leveldb_records(log: bytes) -> Iterator[bytes]:
    """The records of a LevelDB log, which W&B's files are: the package has no reader of its own.

    Blocks of 32 KiB, counted with the header; a record is there whole (1), or in parts (2, 3, 4).
    """
    place, parts = 0, b""
    while place + 7 <= len(log):
        if (rest := 32768 - (place + 7) % 32768) < 7:
            place += rest
            continue
        _, length, kind = struct.unpack_from("<IHB", log, place)
        if place + 7 + length > len(log):  # it is being written
            return
        parts += log[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):
            yield parts
            parts = b""


def wandb_records(folder: Path) -> list[Any]:
    """Those of the run, to its end: W&B's own process writes on after the run was finished."""
    from wandb.proto import wandb_internal_pb2

    records: list[Any] = []
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        (file,) = folder.glob("wandb/offline-run-*/*.wandb")
        logged = leveldb_records(file.read_bytes()[7:])  # after W&B's own header
        records = [wandb_internal_pb2.Record.FromString(data) for data in logged]
        if records and records[-1].WhichOneof("record_type") == "exit":
            break
        time.sleep(0.1)
    return records


def test_wandb_keeps_what_was_recorded_offline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    spec, folder = spec_of(), tmp_path / "sweep" / "run"
    run(spec, folder, tracked("wandb"))
    found: dict[int, dict[str, float]] = {}
    project = ""
    for record in wandb_records(folder):
        project = record.run.project or project
        if record.WhichOneof("record_type") == "history":
            items = {
                item.key or "/".join(item.nested_key): json.loads(item.value_json)
                for item in record.history.item
            }
            found[items.pop("_step")] = items
    assert project == "sweep"
    expected = numbers(folder)
    assert set(found) == set(expected)
    for step, of in expected.items():
        assert {name: found[step][name] for name in of} == pytest.approx(of)
