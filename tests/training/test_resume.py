"""A run that is killed at any moment ends as one that was never interrupted."""

from __future__ import annotations

import errno
import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import edit_json, switching_at

from domainbed.algorithms import ALGORITHMS
from domainbed.core.stopping import Interrupted, request_stop, stopping_on
from domainbed.errors import UserError, reason_of
from domainbed.runs.folder import RunFolder
from domainbed.runs.states import DONE, FAILED, INTERRUPTED, Busy
from domainbed.spec import RunSpec
from domainbed.training import checkpoint
from domainbed.training.trainer import RunOptions, run

STEPS, EVERY = 10, 2
HPARAMS = {
    "DANN": {"mlp_dropout": 0.5, "grad_penalty": 0.1, "d_steps_per_g_step": 2},
    "ERMPlusPlus": {"linear_steps": 3, "sma_start": 5},
}
SCHEDULED = ("ERM", "CORAL", "DANN", "Fishr", "Fish", "MLDG")
SCHEDULE = {"optimizer": "sgd", "lr_schedule": "cosine", "warmup": 0.2, "gradient_clip": 0.5}


def hparams_of(algorithm: str, switch: int) -> dict[str, Any]:
    chosen = SCHEDULE if algorithm in SCHEDULED else {}
    own = {**switching_at(switch, algorithm), **HPARAMS.get(algorithm, {})}
    return {"batch_size": 8, **chosen, **own}


def spec_of(algorithm: str) -> RunSpec:
    hparams = hparams_of(algorithm, 5)
    return RunSpec.create(
        "ColoredDigits", algorithm, [2], steps=STEPS, checkpoint_freq=EVERY, hparams=hparams
    )


def records(folder: Path) -> list[dict]:
    """All records but for timings and the folder's own path."""
    lines = (folder / "results.jsonl").read_text().splitlines()
    found = [json.loads(line) for line in lines]
    for record in found:
        del record["step_time"], record["args"]["output_dir"]
    return found


class Killed(BaseException):
    """Stands for a kill at a moment that a test chooses."""


def run_until(spec: RunSpec, folder: Path, step: int, options: RunOptions | None = None) -> None:
    def on_step(taken: int) -> None:
        if taken == step:
            raise Killed

    with pytest.raises(Killed):
        run(spec, RunFolder(folder), options, on_step=on_step)


def run_until_stopped(
    spec: RunSpec, folder: Path, step: int, options: RunOptions | None = None
) -> None:
    def on_step(taken: int) -> None:
        if taken == step:
            request_stop()

    with stopping_on([]), pytest.raises(Interrupted):
        run(spec, RunFolder(folder), options, on_step=on_step)
    assert RunFolder(folder).state() == INTERRUPTED
    assert f"Stopping at step {step} of" in (folder / "out.txt").read_text()


def test_a_run_on_scratch_is_resumed_elsewhere_from_its_last_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its folder holds what a kill at that moment leaves, and is written to by its owner alone."""
    spec, node = spec_of("Fishr"), tmp_path / "node"
    node.mkdir()
    monkeypatch.setenv("OF_THE_NODE", str(node))
    options = RunOptions(keep="selected", scratch="$OF_THE_NODE")
    home, killed, taken_over = (RunFolder(tmp_path / n) for n in ("home", "killed", "taken_over"))

    def kill(taken: int) -> None:
        assert len(list(node.iterdir())) == 1
        if taken == 6:
            shutil.copytree(home.path, killed.path)

    def take_over(taken: int) -> None:
        if taken == 6:
            (taken_over.path / "owner.2.json").write_text("{}")

    run(spec, tmp_path / "whole", RunOptions(keep="selected"))
    run(spec, home, options, on_step=kill)
    (killed.path / "owner.1.json").unlink()  # its process is dead
    assert (killed.state(), len(records(killed.path))) == (INTERRUPTED, 3)
    run(spec, killed, RunOptions(keep="selected"))
    with pytest.raises(Busy):
        run(spec, taken_over, options, on_step=take_over)
    assert len(taken_over.results.read_text().splitlines()) == 3
    run_until_stopped(spec, tmp_path / "stopped", 5, options)
    run(spec, tmp_path / "stopped", options)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        run(spec, tmp_path / "other", RunOptions(scratch=f"{tmp_path}/nowhere"))
    assert list(node.iterdir()) == []
    for folder in (home.path, killed.path, tmp_path / "stopped"):
        assert records(folder) == records(tmp_path / "whole")
        weights = {f.name for f in folder.iterdir() if not f.name.startswith("owner.")}
        assert weights == {f.name for f in (tmp_path / "whole").iterdir()} - {"owner.1.json"}
    last = json.loads(home.results.read_text().splitlines()[-1])
    assert last["args"]["output_dir"] == str(home.path)


TRAINED = [name for name in ALGORITHMS if not ALGORITHMS[name].needs_features]


@pytest.mark.parametrize("algorithm", TRAINED)
def test_interrupted_run_equals_uninterrupted(algorithm: str, tmp_path: Path) -> None:
    spec = spec_of(algorithm)
    run(spec, RunFolder(tmp_path / "whole"), RunOptions())
    # Before, at and after the switch of the penalty; the step at which it stops is not recorded.
    run_until(spec, tmp_path / "pieces", 2)
    run_until_stopped(spec, tmp_path / "pieces", 6)
    run_until(spec, tmp_path / "pieces", 8)
    run(spec, RunFolder(tmp_path / "pieces"), RunOptions())
    whole, pieces = records(tmp_path / "whole"), records(tmp_path / "pieces")
    assert [r["step"] for r in whole] == [0, 2, 4, 6, 8, 9]
    assert pieces == whole


def test_random_hparams_and_dropout_resume(tmp_path: Path) -> None:
    spec = RunSpec.create(
        "RotatedDigits",
        "DANN",
        [0, 3],
        hparams_seed=4,
        steps=STEPS,
        checkpoint_freq=EVERY,
        hparams={"batch_size": 4, "mlp_dropout": 0.5, "class_balanced": True},
    )
    run(spec, RunFolder(tmp_path / "whole"), RunOptions())
    run_until(spec, tmp_path / "pieces", 5)
    run(spec, RunFolder(tmp_path / "pieces"), RunOptions())
    assert records(tmp_path / "pieces") == records(tmp_path / "whole")


def test_a_run_of_seconds_writes_no_checkpoint_unless_it_is_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, pieces = spec_of("Fishr"), RunFolder(tmp_path / "pieces")
    options = RunOptions(keep="selected")
    run(spec, RunFolder(tmp_path / "whole"), options)
    monkeypatch.setenv("DOMAINBED_CHECKPOINT_SECONDS", "1000")
    run_until(spec, pieces.path, 5)
    assert len(records(pieces.path)) == 3
    assert not pieces.checkpoint.exists()
    for step in (3, 6):  # at a record, and between two
        run_until_stopped(spec, pieces.path, step, options)
        assert pieces.checkpoint.exists()
    run(spec, pieces, options)
    assert f"Resuming at step 6 of {STEPS}" in pieces.out.read_text()
    monkeypatch.setenv("DOMAINBED_CHECKPOINT_SECONDS", "1e-9")
    run_until(spec, tmp_path / "ended", STEPS, options)  # which has nothing left to record
    run(spec, tmp_path / "ended", options)
    weights = {file.name for file in (tmp_path / "whole").glob("model*")}
    assert len(weights) > 2
    for folder in (pieces.path, tmp_path / "ended"):
        assert records(folder) == records(tmp_path / "whole")
        assert {file.name for file in folder.glob("model*")} == weights


def test_kill_between_record_and_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = spec_of("Fishr")
    run(spec, RunFolder(tmp_path / "whole"), RunOptions())
    save = checkpoint.save

    def dies_at_step_4(*of_run: Any) -> None:
        if of_run[3].next_step == 5:
            raise Killed
        save(*of_run)

    monkeypatch.setattr(checkpoint, "save", dies_at_step_4)
    with pytest.raises(Killed):
        run(spec, RunFolder(tmp_path / "pieces"), RunOptions())
    assert [r["step"] for r in records(tmp_path / "pieces")] == [0, 2, 4]
    monkeypatch.undo()
    run(spec, RunFolder(tmp_path / "pieces"), RunOptions())
    assert records(tmp_path / "pieces") == records(tmp_path / "whole")


def test_torn_record_and_half_written_checkpoint_are_mended(tmp_path: Path) -> None:
    spec = spec_of("IRM")
    run(spec, RunFolder(tmp_path / "whole"), RunOptions())
    pieces = tmp_path / "pieces"
    run_until(spec, pieces, 6)
    with (pieces / "results.jsonl").open("a") as stream:
        stream.write('{"step": 6, "los')
    (pieces / "checkpoint.pt.123-0123abcd.tmp").write_bytes(b"half")
    run(spec, RunFolder(pieces), RunOptions())
    assert records(pieces) == records(tmp_path / "whole")


COMMAND = """
import sys
from domainbed.cli import main
main(sys.argv[1:])
"""


def train_process(algorithm: str, folder: Path) -> subprocess.Popen:
    flags = ["--dataset", "ColoredDigits", "--algorithm", algorithm, "--test_envs", "2"]
    flags += ["--steps", "100", "--checkpoint-freq", "2", "--output_dir", str(folder)]
    hparams = hparams_of(algorithm, 50)
    return subprocess.Popen(
        [sys.executable, "-c", COMMAND, "train", *flags, "--hparams", json.dumps(hparams)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


OFTEN_KILLED = ("Fishr",)  # has a moving average and a switch


@pytest.mark.parametrize(
    "algorithm",
    [
        pytest.param(name, marks=() if name in OFTEN_KILLED else pytest.mark.slow)
        for name in TRAINED
    ],
)
def test_real_process_killed_in_full_flight(algorithm: str, tmp_path: Path) -> None:
    """SIGKILL a training process at random moments after its first records."""
    whole = train_process(algorithm, tmp_path / "whole")
    output, _ = whole.communicate(timeout=120)
    assert whole.returncode == 0, output
    pieces, moments = tmp_path / "pieces", random.Random(algorithm)
    for _ in range(2):
        process = train_process(algorithm, pieces)
        wait_for_new_checkpoint(pieces, process)
        time.sleep(moments.uniform(0, 0.15))
        process.send_signal(signal.SIGKILL)
        process.communicate()
    finish = train_process(algorithm, pieces)
    output, _ = finish.communicate(timeout=120)
    assert finish.returncode == 0, output
    assert "Resuming at step" in output
    assert records(pieces) == records(tmp_path / "whole")


def wait_for_new_checkpoint(folder: Path, process: subprocess.Popen) -> None:
    before = written(folder / "checkpoint.pt")
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        if written(folder / "checkpoint.pt") > before:
            return
        time.sleep(0.01)
    assert process.poll() is None, "the process ended before it could be killed"


def written(file: Path) -> int:
    """When a file was last written; 0 while it is not there, as for a moment between two."""
    try:
        return file.stat().st_mtime_ns
    except FileNotFoundError:
        return 0


def test_finished_run_is_left_alone(tmp_path: Path) -> None:
    spec, folder = spec_of("ERM"), RunFolder(tmp_path)
    run(spec, folder, RunOptions())
    before = folder.results.stat().st_mtime_ns
    run(spec, folder, RunOptions())
    assert folder.results.stat().st_mtime_ns == before
    folder.results.write_text(folder.results.read_text().replace("0.1", "0.2", 1))
    with pytest.raises(UserError, match=r"results\.jsonl is damaged .*: remove .*, and do the run"):
        run(spec, folder, RunOptions())


def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(tmp_path: Path) -> None:
    spec = spec_of("Fishr")
    run(spec, RunFolder(tmp_path / "whole"))
    pieces = RunFolder(tmp_path / "pieces")
    run_until(spec, pieces.path, 6)
    content = bytearray(pieces.checkpoint.read_bytes())
    for position in random.Random(0).sample(range(len(content)), 20):
        flipped = bytearray(content)
        flipped[position] ^= 1
        pieces.checkpoint.write_bytes(flipped)
        with pytest.raises(OSError, match="digest"):
            checkpoint._payload(pieces.checkpoint)
    run(spec, pieces)
    said = pieces.out.read_text()
    assert f"{pieces.checkpoint} is damaged (its content does not have the digest" in said
    assert "resuming from checkpoint.before.pt, the one before\nResuming at step 3 of" in said
    assert records(pieces.path) == records(tmp_path / "whole")


def test_a_checkpoint_that_fits_no_run_is_one_line(tmp_path: Path) -> None:
    run_until(spec_of("ERM"), tmp_path, 6)
    file = tmp_path / "checkpoint.pt"
    rewrite(file, "random", dict.fromkeys(("python", "numpy", "torch", "cuda")))
    with pytest.raises(UserError, match=r"checkpoint\.pt does not fit the run \(TypeError"):
        run(spec_of("ERM"), tmp_path)


def rewrite(file: Path, part: str, value: Any) -> None:
    contents = {**checkpoint._read(file), part: value}
    stream = io.BytesIO()
    torch.save(contents, stream)
    payload = stream.getvalue()
    file.write_bytes(checkpoint._title_of(payload) + b"\n" + payload)


def test_a_checkpoint_that_the_disk_gives_back_no_more_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, pieces = spec_of("ERM"), RunFolder(tmp_path / "pieces")
    run(spec, tmp_path / "whole")
    run_until(spec, pieces.path, 6)
    read = Path.read_bytes
    broken = [pieces.checkpoint]

    def failing(file: Path) -> bytes:
        if file in broken:
            broken.remove(file)  # the next one of this name lies elsewhere on the disk
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(file))
        return read(file)

    monkeypatch.setattr(Path, "read_bytes", failing)
    run(spec, pieces)
    assert "checkpoint.pt is damaged (Input/output error): resuming" in pieces.out.read_text()
    assert records(pieces.path) == records(tmp_path / "whole")


def test_a_checkpoint_that_does_not_read_back_never_takes_the_place_of_a_whole_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, pieces = spec_of("ERM"), RunFolder(tmp_path / "pieces")
    run_until(spec, pieces.path, 6)
    whole = pieces.checkpoint.read_bytes()
    read = Path.read_bytes

    def forgetful(file: Path) -> bytes:
        return read(file)[:-1] if file.name.endswith(".tmp") else read(file)

    monkeypatch.setattr(Path, "read_bytes", forgetful)
    with pytest.raises(OSError, match="does not have the digest") as raised:
        run(spec, pieces)
    assert str(pieces.path) in reason_of(raised.value)
    assert pieces.checkpoint.read_bytes() == whole


def test_a_checkpoint_of_another_version_of_the_program_is_told_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = spec_of("ERM")
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "_VERSION", 1)
        run_until(spec, tmp_path / "pieces", 6)
    run(spec, tmp_path / "pieces")
    run(spec, tmp_path / "whole")
    said = (tmp_path / "pieces" / "out.txt").read_text()
    assert "was written by another version of this program: the run starts again" in said
    assert "earlier records are kept in" in said
    assert records(tmp_path / "pieces") == records(tmp_path / "whole")


def test_a_checkpoint_of_another_run_is_refused(tmp_path: Path) -> None:
    run_until(spec_of("ERM"), tmp_path / "a", 6)
    run_until(spec_of("CORAL"), tmp_path / "b", 6)
    (tmp_path / "a" / "checkpoint.pt").replace(tmp_path / "b" / "checkpoint.pt")
    with pytest.raises(UserError, match="is of another run"):
        run(spec_of("CORAL"), tmp_path / "b")


def test_another_major_version_of_pytorch_is_refused(tmp_path: Path) -> None:
    run_until(spec_of("ERM"), tmp_path, 6)
    edit_json(tmp_path / "environment.json", torch="1.12.0")
    with pytest.raises(UserError, match=r"was started with PyTorch 1\.12\.0"):
        run(spec_of("ERM"), tmp_path)


def test_another_version_of_the_protocol_is_refused(tmp_path: Path) -> None:
    run_until(spec_of("ERM"), tmp_path, 6)
    file = tmp_path / "run.json"
    edit_json(file, identity={**json.loads(file.read_text())["identity"], "protocol_version": 0})
    with pytest.raises(UserError, match="protocol_version is 0 there and 1 here"):
        run(spec_of("ERM"), tmp_path)


def test_a_resumed_run_keeps_its_threads_and_its_first_environment(tmp_path: Path) -> None:
    run_until(spec_of("ERM"), tmp_path, 6)
    file = tmp_path / "environment.json"
    first = json.loads(file.read_text())
    edit_json(file, threads=2, host="elsewhere")
    run(spec_of("ERM"), tmp_path)
    after = json.loads(file.read_text())
    assert (after["threads"], after["host"]) == (2, "elsewhere")
    assert [(session["threads"], session["host"]) for session in after["resumed"]] == [
        (2, first["host"])
    ]


def test_done_without_whole_records_is_done_again(tmp_path: Path) -> None:
    spec = spec_of("ERM")
    run(spec, tmp_path)
    results, folder = tmp_path / "results.jsonl", RunFolder(tmp_path)
    whole = records(tmp_path)
    for number, damage in enumerate(("torn", "empty", "missing"), start=1):
        if damage == "missing":
            results.unlink()
        else:
            results.write_bytes(results.read_bytes()[:-20] if damage == "torn" else b"")
        assert (folder.state(), folder.is_done()) == (FAILED, False)
        assert "marked as done, but its records are not whole" in folder.last_error()
        run(spec, tmp_path)
        assert folder.state() == DONE
        assert records(tmp_path) == whole
        said = folder.out.read_text()
        assert said.count("its records are not whole: the run is done again") == number


def test_a_checkpoint_beside_a_done_run_is_removed(tmp_path: Path) -> None:
    run(spec_of("ERM"), tmp_path)
    folder = RunFolder(tmp_path)
    for file in (folder.checkpoint, folder.checkpoint_before):
        file.write_text("left by a kill")
    run(spec_of("ERM"), tmp_path)
    assert not folder.checkpoint.exists()
    assert not folder.checkpoint_before.exists()


def test_all_random_sources_come_back():
    def drawn() -> list[float]:
        return [random.random(), np.random.rand(), torch.rand(()).item()]

    before = checkpoint._random_state()
    first = drawn()
    checkpoint._set_random_state(before)
    assert drawn() == first
