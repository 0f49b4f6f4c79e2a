"""`domainbed irm-colored-mnist` on a few images in MNIST's file format.

Most tests compute in this process, two in real processes with real workers.
"""

from __future__ import annotations

import csv
import io
import json
import os
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from helpers import edit_json

from domainbed.cli import main
from domainbed.core.settings import load
from domainbed.experiments.irm_colored_mnist import results
from domainbed.experiments.irm_colored_mnist.restart import read_images, run_restart
from domainbed.experiments.irm_colored_mnist.settings import Config
from domainbed.launchers import DebugLauncher

REPOSITORY = Path(__file__).parents[2]
PROGRAM = "from domainbed.cli import main; main()"
CONFIG = """\
algorithms: [ERM, Fishr]
restarts: 2
hidden_dim: 4
steps: 3
anneal_step: 1
device: cpu
jobs: 2
"""


def write_mnist(root, n=30):
    raw = root / "MNIST" / "raw"
    raw.mkdir(parents=True)
    random = np.random.RandomState(0)
    for part in ("train", "t10k"):
        images = random.randint(0, 256, (n, 28, 28), dtype=np.uint8)
        digits = random.randint(0, 10, n, dtype=np.uint8)
        header = struct.pack(">IIII", 0x803, n, 28, 28)
        (raw / f"{part}-images-idx3-ubyte").write_bytes(header + images.tobytes())
        header = struct.pack(">II", 0x801, n)
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(header + digits.tobytes())


@pytest.fixture
def folder(tmp_path, monkeypatch):
    write_mnist(tmp_path / "data")
    (tmp_path / "mine.yaml").write_text(CONFIG)
    monkeypatch.chdir(tmp_path)
    read_images.cache_clear()
    return tmp_path


def start(folder, *arguments):
    """A process of its own group, so that only it gets our signals."""
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, "irm-colored-mnist", "mine.yaml", *arguments],
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    )


@pytest.fixture
def run(folder, monkeypatch, capsys):
    """Runs the command in this process: its status, output and errors."""
    monkeypatch.setattr(results, "LocalLauncher", lambda workers: DebugLauncher())

    def run(*arguments):
        with pytest.raises(SystemExit) as exit:
            main(["irm-colored-mnist", "mine.yaml", *arguments])
        return exit.value.code, *capsys.readouterr()

    return run


def result_files(folder):
    return sorted((folder / "results" / "irm_colored_mnist").rglob("*.json"))


def test_computes_what_is_missing(folder, run):
    status, out, err = run("--format", "csv")
    assert status == 0, err
    rows = list(csv.DictReader(io.StringIO(out)))
    assert [(row["algorithm"], row["restarts"]) for row in rows] == [("ERM", "2"), ("Fishr", "2")]
    assert "published_test_acc" not in rows[0]  # the settings are not the paper's
    files = result_files(folder)
    names = ["ERM_0.json", "ERM_1.json", "Fishr_0.json", "Fishr_1.json"]
    assert [file.name for file in files] == names
    lost = json.loads(files[3].read_text())
    edit_json(files[0], test_acc=2.0)
    files[3].unlink()
    status, out, _ = run("--format", "json")
    assert status == 0
    parsed = json.loads(out)
    own = [200.0, 100 * json.loads(files[1].read_text())["test_acc"]]
    assert parsed["table"][0]["test_acc"] == pytest.approx(np.mean(own))
    again = json.loads(files[3].read_text())
    own = {"seconds": 0, "sha256": ""}
    assert {**again, **own} == {**lost, **own}
    assert lost["environment"]["device"] == "cpu"
    assert "host" not in lost["environment"]


def test_other_settings_have_other_results(folder, run):
    flags = ("--restarts", "1", "--algorithms", "Fishr-uncentred", "--jobs", "1")
    assert run(*flags)[0] == 0
    status, out, _ = run(*flags, "--label-flip", "0")
    assert status == 0
    assert out.splitlines()[2].startswith("Fishr-uncentred  1")
    assert "published" not in out.splitlines()[1]
    assert "No published values beside: the settings are not the paper's: steps is 3" in out
    first, second = result_files(folder)
    assert first.name == second.name == "Fishr-uncentred_0.json"
    flips = [json.loads(file.read_text())["settings"]["label_flip"] for file in (first, second)]
    assert sorted(flips) == [0.0, 0.25]


def test_workers_compute_what_this_process_does(folder, run):
    process = start(folder)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    theirs = [json.loads(file.read_text()) for file in result_files(folder)]
    for file in result_files(folder):
        file.unlink()
    assert run()[0] == 0
    for file, their in zip(result_files(folder), theirs, strict=True):
        own = json.loads(file.read_text())
        assert own["test_acc"] == their["test_acc"]


def test_failed_restarts_are_told(folder, run, monkeypatch):
    def fail_once(settings, algorithm, *rest, **options):
        if algorithm == "ERM":
            raise RuntimeError("out of luck")
        return run_restart(settings, algorithm, *rest, **options)

    monkeypatch.setattr(results, "run_restart", fail_once)
    status, out, err = run()
    assert status == 1
    assert err.count("RuntimeError: out of luck") == 2
    assert [line.split()[:2] for line in out.splitlines()[2:3]] == [["Fishr", "2"]]


def test_interrupt(folder):
    (folder / "mine.yaml").write_text(CONFIG.replace("steps: 3", "steps: 1000000"))
    digest = load(Config, folder / "mine.yaml").settings.digest()
    done = folder / "results" / "irm_colored_mnist" / digest
    process = start(folder)
    deadline = time.monotonic() + 240
    while not done.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    (done / "ERM_0.json").write_text("{}")
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=240)
    assert process.returncode == 130
    assert out == ""
    # Lines before it tell how many were at work, which is the machine's choice.
    last = err.strip().splitlines()[-1]
    assert last == "stopped: 1 of 4 restarts are done; the same command computes the others"
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--steps", "0"), "--steps: expected a whole number from 1 on, found 0"),
        (("--algorithms", "IRM", "Irmv2"), "--algorithms: unknown algorithm 'Irmv2'."),
        (("--data_dir", "mine.yaml"), "MNIST is not in 'mine.yaml' and could not be downloaded"),
        (("--output_dir", "mine.yaml/results"), "the folder 'mine.yaml/results"),
        (("--device", "abacus"), "device 'abacus': expected one of cpu, cuda, mps"),
    ],
)
def test_errors_are_one_line(run, flags, message):
    status, out, err = run(*flags)
    assert (status, out) == (2, "")
    assert err.startswith(f"error: {message}")
    assert err.count("\n") == 1


def test_damaged_result(folder, run):
    assert run("--restarts", "1", "--algorithms", "ERM")[0] == 0
    (file,) = result_files(folder)
    for damage in ('{"algorithm"', "{}", "[]"):
        file.write_text(damage)
        status, _, err = run("--restarts", "1", "--algorithms", "ERM")
        assert status == 2
        assert "is damaged" in err
    assert err.count("\n") == 1
