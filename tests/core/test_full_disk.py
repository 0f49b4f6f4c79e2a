"""Disks that are full or may only be read: nothing is lost, and the same command goes on."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from domainbed.algorithms import ERM
from domainbed.cli import main

RUN = ["--steps", "4", "--checkpoint_freq", "2", "--hparams", '{"batch_size": 8}']
TRAIN = ["train", *RUN]
SWEEP = [
    *("sweep", "launch", "--datasets", "ColoredDigits", "--algorithms", "ERM", *RUN),
    *("--test_envs", "[[0], [1]]", "--trials", "1", "--hparams_seeds", "1", "--launcher", "debug"),
]


def mount(*words: object) -> None:
    done = subprocess.run(["mount", *map(str, words)], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"cannot mount a disk here: {done.stderr.strip()}")


def unmount(place: Path) -> None:
    subprocess.run(["umount", "--lazy", str(place)], check=True)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 40 MB: two runs and their checkpoints fit, four checkpoints do not."""
    if sys.platform != "linux" or shutil.which("mount") is None:
        pytest.skip("needs Linux's mount")
    place = tmp_path / "disk"
    place.mkdir()
    mount("-t", "tmpfs", "-o", "size=40m", "tmpfs", place)
    yield place
    unmount(place)


def fill(disk: Path, left: int) -> Path:
    """Leaves so many bytes free; returns the file to remove for the rest."""
    file = disk / "others"
    with file.open("wb") as stream:
        stream.write(bytes(shutil.disk_usage(disk).free - left))
    return file


def said(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[object, str, str]:
    with pytest.raises(SystemExit) as exit:
        main([str(word) for word in words])
    return exit.value.code, *capsys.readouterr()


def losses(root: Path) -> list[float]:
    files = sorted(root.rglob("results.jsonl"))
    return [json.loads(line)["loss"] for f in files for line in f.read_text().splitlines()]


@pytest.mark.parametrize("left", [20_000, pytest.param(8_000_000, marks=pytest.mark.slow)])
def test_a_full_disk_ends_a_run_that_goes_on_when_it_is_not(
    left: int, disk: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    others = fill(disk, left)
    status, _, err = said(capsys, *TRAIN, "--output_dir", disk / "run")
    assert (status, err.count("\n")) == (2, 1)
    assert str(disk / "run") in err
    assert "No space left on device" in err
    others.unlink()
    assert said(capsys, *TRAIN, "--output_dir", disk / "run")[0] == 0
    said(capsys, *TRAIN, "--output_dir", tmp_path / "undisturbed")
    assert losses(disk / "run") == losses(tmp_path / "undisturbed") != []


@pytest.mark.slow
def test_a_full_disk_fails_the_runs_of_a_sweep_which_are_done_when_it_is_not(
    disk: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    others = fill(disk, 3_000_000)
    status, out, err = said(capsys, *SWEEP, "--output_dir", disk / "sweep")
    assert (status, err) == (1, "")
    assert "0 of 2 runs are done, 2 failed." in out
    assert out.partition("Failed:")[2].count("No space left on device") == 2
    others.unlink()
    said(capsys, "sweep", "retry", disk / "sweep")
    status, out, _ = said(capsys, "sweep", "launch", disk / "sweep")
    assert (status, "All runs are done (2)" in out) == (0, True)
    said(capsys, *SWEEP, "--output_dir", tmp_path / "undisturbed")
    assert losses(disk / "sweep") == losses(tmp_path / "undisturbed") != []


def test_a_disk_without_room_for_a_plan(disk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fill(disk, 0)
    status, _, err = said(capsys, *SWEEP, "--output_dir", disk / "sweep")
    assert (status, err.count("\n")) == (2, 1)
    assert "No space left on device" in err


@pytest.mark.parametrize(
    "command", [TRAIN, pytest.param(SWEEP, marks=pytest.mark.slow)], ids=["train", "sweep"]
)
def test_a_disk_that_may_only_be_read(
    command: list[str],
    disk: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """From the third update of the first run on, and then from the start."""
    updates = 0
    update = ERM.update

    def locking(self: ERM, *minibatches: object) -> object:
        nonlocal updates
        updates += 1
        if updates == 3:
            mount("--bind", disk, disk)
            mount("-o", "remount,bind,ro", disk)
        return update(self, *minibatches)  # type: ignore[arg-type]

    monkeypatch.setattr(ERM, "update", locking)
    for _ in range(2):
        status, out, err = said(capsys, *command, "--output_dir", disk / "out")
        told = err or out.partition("Failed:")[2]
        assert status in (1, 2)
        assert "Read-only file system" in told
        assert err.count("\n") <= 1
    unmount(disk)
    if command is SWEEP:
        said(capsys, "sweep", "retry", disk / "out")
    assert said(capsys, *command, "--output_dir", disk / "out")[0] == 0
    said(capsys, *command, "--output_dir", tmp_path / "undisturbed")
    assert losses(disk / "out") == losses(tmp_path / "undisturbed") != []
