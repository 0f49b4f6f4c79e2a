"""The command for when a launch has ended."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "training"))
from vectors import Vectors

from domainbed.cli.launching import launch_sweep
from domainbed.datasets import DATASETS
from domainbed.sweeps.config import SweepConfig, load_config


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(DATASETS._entries, "Vectors", Vectors)


def config(root: Path, command: str) -> SweepConfig:
    return SweepConfig(
        datasets=("Vectors",), algorithms=("ERM", "ARM"), test_envs=((2,),), trials=(0,),
        hparams_seeds=(0,), steps=1, output_dir=str(root / "sweep"), device="cpu", keep="none",
        launcher={"name": "debug"}, on_finish=command, hparams={"ERM": {"batch_size": 4}},
    )  # fmt: skip


def test_it_is_told_what_came_of_the_sweep(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """One run is done and one fails, since its folder is another's."""
    monkeypatch.chdir(tmp_path)
    command = 'echo "$DOMAINBED_SWEEP: $DOMAINBED_DONE done, $DOMAINBED_FAILED failed" > said'
    wanted = config(tmp_path, command)
    from domainbed.sweeps.launch import prepare

    failing = prepare(wanted).store.folder([*prepare(wanted).runs][1])
    failing.path.mkdir(parents=True)
    failing.results.write_text("{}\n")
    failing.spec.write_text("{}")
    assert launch_sweep(wanted, dry_run=True) == 0
    assert not Path("said").exists()
    assert launch_sweep(wanted) == 1
    assert Path("said").read_text() == f"{tmp_path / 'sweep'}: 1 done, 1 failed\n"
    # A node's own, which does not lead to the environment of this Python.
    monkeypatch.setenv("PATH", os.defpath)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "bin" / "python"))
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "domainbed").touch(0o755)
    assert launch_sweep(config(tmp_path, "command -v domainbed > said")) == 1
    assert Path("said").read_text() == f"{tmp_path / 'bin' / 'domainbed'}\n"
    assert launch_sweep(config(tmp_path, "exit 3")) == 1
    assert "warning: on_finish ended with status 3" in capfd.readouterr().err


def test_no_folder_brings_a_command_along(tmp_path: Path) -> None:
    """Neither one that a launch wrote, nor one that somebody else made."""
    wanted = config(tmp_path, "true")
    assert "on_finish" not in wanted.as_yaml_value()
    file = tmp_path / "sweep.yaml"
    file.write_text("{datasets: ColoredDigits, algorithms: ERM, on_finish: ls}\n")
    assert load_config(file).on_finish == "ls"
    (tmp_path / "plan.json").write_text("{}")
    assert load_config(file).on_finish is None
    assert load_config(file, {"on_finish": "mine"}).on_finish == "mine"
