"""One run over several processes: as one process does it, but for rounding."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from ranks_worker import OPTIONS, SELECTED, SIZES, batch_norm_spec, spec_of
from torch.nn import functional as F
from torch.utils.data import default_collate

from domainbed.datasets.base import ForeignDomain
from domainbed.errors import UserError
from domainbed.runs.folder import RunFolder
from domainbed.runs.states import DONE, INTERRUPTED
from domainbed.training import ranks
from domainbed.training.ranks import add_up, joined, own_device
from domainbed.training.shared_passes import _DrawsOfAll, share_reading
from domainbed.training.trainer import run

WORKER = Path(__file__).with_name("ranks_worker.py")
FEW = ["ERM", "Fish", "Fishr", "MLDG, second derivatives", "DANN, gradient penalty"]
FEW += ["IRM, vectors and dropout", "IGA, vectors and dropout", "ERM, nests"]


def torchrun(processes: int, *words: Any) -> list[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    return [*command, f"--nproc-per-node={processes}", *map(str, words)]


def environment(folder: Path) -> dict[str, str]:
    modules = os.pathsep.join([str(WORKER.parents[1]), *sys.path])
    return {**os.environ, "PYTHONPATH": modules, "DOMAINBED_CACHE_DIR": str(folder / "cache")}


def told(folder: Path, processes: int, *what: str) -> list[dict[str, Any]]:
    """What each process of the worker wrote."""
    subprocess.run(
        torchrun(processes, WORKER, folder, *what), env=environment(folder), check=True, timeout=550
    )
    return [json.loads((folder / f"{n}.json").read_text()) for n in range(processes)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ranks")


@pytest.fixture(scope="module")
def both(folder: Path) -> list[dict[str, Any]]:
    return told(folder, 2, "runs", *FEW)


def lines(folder: Path) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]
    for record in found:
        del record["step_time"], record["args"]["output_dir"]
    return found


def too_different(told: dict[str, Any]) -> dict[str, float]:
    return {n: c["difference"] for n, c in told["cases"].items() if not c["difference"] < 1e-10}


def test_updates_are_those_of_one_process(both: list[dict[str, Any]]) -> None:
    assert [list(each["cases"]) for each in both] == [FEW, FEW]
    assert [too_different(each) for each in both] == [{}, {}]
    for name in ("ERM", "ERM, nests"):
        assert [each["cases"][name]["rows"] for each in both] == [7, 8]
    assert sum(SIZES) == 15


def test_a_run_has_the_records_of_one_process(
    both: list[dict[str, Any]], folder: Path, tmp_path: Path
) -> None:
    run(spec_of(), tmp_path, OPTIONS)
    assert [r["step"] for r in lines(folder / "whole")] == [0, 3, 6, 7]
    require_equal_records(tmp_path, folder / "whole")
    kept = [sorted(f.name for f in path.glob("*.p*")) for path in (tmp_path, folder / "whole")]
    assert kept[0] == kept[1]
    assert "predictions.parquet" in kept[0]
    written = json.loads((folder / "whole" / "environment.json").read_text())
    assert written["processes"] == 2
    assert json.loads((tmp_path / "environment.json").read_text())["processes"] == 1


def require_equal_records(first: Path, second: Path) -> None:
    for one, other in zip(lines(first), lines(second), strict=True):
        assert one.pop("args") == other.pop("args")
        assert one.pop("hparams") == other.pop("hparams")
        assert other == pytest.approx(one, rel=1e-3, abs=5e-3)


def test_averages_with_batch_norm_are_kept_and_decisions_are_the_first_process_s(
    both: list[dict[str, Any]], folder: Path, tmp_path: Path
) -> None:
    run(batch_norm_spec(), tmp_path, SELECTED)
    require_equal_records(tmp_path, folder / "selected")
    one, other = (torch.load(at / "model.ema.pkl") for at in (tmp_path, folder / "selected"))
    torch.testing.assert_close(one["model_dict"], other["model_dict"], rtol=1e-3, atol=1e-3)
    first, second = (each["said"]["recorded"] for each in both)
    assert [record["step"] for record in first] == [0, 3, 6, 7]
    assert first == second


def test_a_stop_asked_of_one_process_stops_all_and_nothing_is_lost(
    both: list[dict[str, Any]], folder: Path
) -> None:
    assert [each["said"]["stopped at"] for each in both] == [5, 5]
    assert both[0]["said"]["stopped"] == INTERRUPTED
    assert "Stopping at step 5 of 8" in (folder / "pieces" / "out.txt").read_text()
    assert "Resuming at step 5 of 8" in (folder / "pieces" / "out.txt").read_text()
    assert lines(folder / "pieces") == lines(folder / "whole")
    assert RunFolder(folder / "pieces").state() == DONE


def test_one_process_says_what_is_refused(both: list[dict[str, Any]]) -> None:
    first, second = (each["said"] for each in both)
    assert "holds another run (trial_seed is 0 there and 1 here)" in first["another run"]
    assert "set the hyper-parameter 'freeze_bn' to true" in first["batch norm"]
    assert "MixStyle+CORAL looks into the network at all images of a batch" in first["styles"]
    assert second["another run"] == second["batch norm"] == second["styles"] == ""


def test_image_files_are_read_in_parts(both: list[dict[str, Any]]) -> None:
    assert [each["said"]["read"] for each in both] == [[True] * 6] * 2
    assert [each["said"]["reads"] for each in both] == [2 + 1 + 1, 3 + 1 + 1]


def test_only_batches_of_single_tensors_are_read_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.zeros(2)
    of_kinds = {
        "plain": ForeignDomain([(x, 0)]),
        "nest": ForeignDomain([({"x": x}, 0)]),
        "extras": ForeignDomain([(x, 0, {"group": "a"})]),
        "collated": ForeignDomain([(x, 0)], collate=default_collate),
        "empty": ForeignDomain([]),
    }
    assert share_reading(of_kinds["plain"]).own_rows is None
    monkeypatch.setattr(ranks, "_count", 2)
    shared = {name: bool(share_reading(domain).own_rows) for name, domain in of_kinds.items()}
    assert [name for name, is_shared in shared.items() if is_shared] == ["plain"]


def test_values_that_are_dropped_must_be_of_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranks, "_count", 2)
    with _DrawsOfAll(4):
        assert F.dropout(torch.ones(2, 3)).shape == (2, 3)
        with pytest.raises(UserError, match="drops values of a tensor of 3 rows that are no sampl"):
            F.dropout(torch.ones(3, 2))


def test_weights_that_differ_are_those_of_the_first_process(both: list[dict[str, Any]]) -> None:
    weights = [torch.tensor(each["said"]["weights"]) for each in both]
    assert [w.unique().tolist() for w in weights] == [[1.0], [1.0]]


def test_several_processes_without_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(UserError, match="WORLD_SIZE is 2, and RANK is not set"), joined(None):
        pass
    assert (ranks._number, ranks.count()) == (0, 1)


def start_one_of_two(monkeypatch: pytest.MonkeyPatch, **variables: object) -> None:
    """Sets the variables of torchrun."""
    usual = {"WORLD_SIZE": 2, "RANK": 0, "LOCAL_RANK": 0}
    usual |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": 29500}
    for name, value in {**usual, **variables}.items():
        monkeypatch.setenv(name, str(value))


@pytest.mark.parametrize(
    ("variable", "value", "expected"),
    [
        ("WORLD_SIZE", "two", "a whole number from 1 on"),
        ("WORLD_SIZE", "0", "a whole number from 1 on"),
        ("RANK", "x", "a whole number from 0 to 1"),
        ("RANK", "2", "a whole number from 0 to 1"),
        ("LOCAL_RANK", "-1", "a whole number from 0 to 1"),
        ("MASTER_PORT", "http", "a whole number from 0 to 65535"),
    ],
)
def test_variables_that_are_wrong(
    variable: str, value: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    start_one_of_two(monkeypatch, **{variable: value})
    said = f"environment variable {variable} is '{value}': expected {expected}; start several"
    with pytest.raises(UserError, match=said), joined("cpu"):
        pass
    assert (ranks._number, ranks.count()) == (0, 1)


def test_processes_that_cannot_meet(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        start_one_of_two(monkeypatch, MASTER_PORT=port)
        said = rf"process 0 of this run cannot meet the others at 127.0.0.1:{port} \(.*EADDRINUSE"
        with pytest.raises(UserError, match=said), joined("cpu"):
            pass


def test_each_process_tries_its_own_gpu_only(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[object] = []

    def chooses(name: str | None) -> torch.device:
        done.append(name)
        raise UserError("no device")

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", done.append)
    monkeypatch.setattr(ranks, "choose_device", chooses)
    start_one_of_two(monkeypatch, LOCAL_RANK=1)
    for name in ("cuda", None, "cpu"):
        with pytest.raises(UserError, match="no device"), joined(name):
            pass
    assert done == [1, "cuda", 1, None, "cpu"]


def test_only_errors_of_the_communication_mean_that_another_process_ended(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fails_with(error: RuntimeError) -> None:
        def fails(*arguments: object) -> None:
            raise error

        monkeypatch.setattr(torch.distributed, "all_reduce", fails)
        add_up(torch.zeros(1))

    with pytest.raises(RuntimeError, match="out of memory"):
        fails_with(torch.OutOfMemoryError("CUDA out of memory"))
    closed = RuntimeError("[/pytorch/third_party/gloo/gloo/pair.cc:561] Connection closed by peer")
    for error in (closed, torch.distributed.DistBackendError("NCCL error")):
        with pytest.raises(UserError, match="process 0 of this run ends, because another one did"):
            fails_with(error)


def test_devices_of_several_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranks, "_count", 2)
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert own_device(torch.device("cuda")) == torch.device("cuda:1")
    assert own_device(torch.device("cpu")) == torch.device("cpu")
    with pytest.raises(UserError, match="'cuda:0', and 2 processes train the run: choose cuda"):
        own_device(torch.device("cuda:0"))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(UserError, match="process 1 of this machine has no GPU, as there are 1"):
        own_device(torch.device("cuda"))


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 3])
def test_all_algorithms(processes: int, tmp_path: Path) -> None:
    found = told(tmp_path, processes, "all")
    assert len(found[0]["cases"]) > 40
    assert [too_different(each) for each in found] == [{}] * processes
    rows = [each["cases"]["ERM"]["rows"] for each in found]
    assert rows == {2: [7, 8], 3: [5, 5, 5]}[processes]


@pytest.mark.slow
def test_where_one_process_fails_none_waits_for_it(tmp_path: Path) -> None:
    first, second = (each["said"]["error"] for each in told(tmp_path, 2, "fails"))
    assert first == "process 0 of this run ends, because another one did: its line says why"
    assert second == "no such image"
    assert RunFolder(tmp_path / "failed").state() == INTERRUPTED


@pytest.mark.slow
def test_the_command_is_stopped_by_a_signal_and_goes_on(tmp_path: Path) -> None:
    words = ["-m", "domainbed", "train", "--device", "cpu", "--steps", 60, "--checkpoint_freq", 50]
    words += ["--hparams", '{"batch_size": 64}', "--algorithm", "IRM", "--output_dir"]

    def started(folder: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            torchrun(2, *words, tmp_path / folder),
            env=environment(tmp_path),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    whole, pieces = started("whole"), started("pieces")
    results = tmp_path / "pieces" / "results.jsonl"
    while not (results.exists() and results.stat().st_size) and pieces.poll() is None:
        time.sleep(0.2)
    pieces.send_signal(signal.SIGTERM)
    said = pieces.communicate(timeout=200)[0]
    assert said.count("Interrupted; the same command resumes from") == 1
    assert RunFolder(tmp_path / "pieces").state() == INTERRUPTED
    assert "Finished:" in whole.communicate(timeout=200)[0]
    assert started("pieces").communicate(timeout=200)[0].count("Finished:") == 1
    assert lines(tmp_path / "pieces") == lines(tmp_path / "whole")
    assert started("pieces").communicate(timeout=200)[0].count("Was finished before") == 1
