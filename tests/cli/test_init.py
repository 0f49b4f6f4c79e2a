"""`domainbed init`: what it writes runs as it is."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest

from domainbed.algorithms import ALGORITHMS
from domainbed.cli import main
from domainbed.cli.launching import launch_sweep
from domainbed.sweeps.config import load_config


def test_a_sweep_to_start_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for part in ("_entries", "_modules"):
        monkeypatch.setattr(ALGORITHMS, part, dict(getattr(ALGORITHMS, part)))
    monkeypatch.chdir(tmp_path)
    for status in (0, 2):
        with pytest.raises(SystemExit) as exit:
            main(["init", "my study"])
        assert exit.value.code == status
    out, err = capsys.readouterr()
    assert f"cd {shlex.quote('my study')} && domainbed sweep launch sweep.yaml" in out
    assert "error: 'my study' exists: name a new folder" in err
    monkeypatch.chdir("my study")
    assert sorted(each.name for each in Path().iterdir()) == [
        *("images", "images.csv", "my_method.py", "sweep.yaml")
    ]
    assert len(load_config("sweep.yaml").plan()) == 12
    few = {"algorithms": ["MyMethod"], "steps": 2, "checkpoint_freq": 2, "device": "cpu"}
    assert launch_sweep(load_config("sweep.yaml", few), skip_confirmation=True) == 0
    for run in Path("results").glob("*/results.jsonl"):
        first, last = map(json.loads, run.read_text().splitlines())
        assert first["loss"] != last["loss"]
        # Of six patients of two images a third validates: two of them, one of each class.
        environment = json.loads((run.parent / "environment.json").read_text())
        assert environment["data"]["images"] == [12, 12, 12]
        assert (run.parent / "predictions.parquet").is_file()
