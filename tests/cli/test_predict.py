"""The command `model predict`: what its help names, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import pytest

from domainbed.cli import main
from domainbed.core.record_keys import AVERAGES


def test_the_help_names_all_averages(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["model", "predict", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert f"averaged weights of the run: {', '.join(AVERAGES)} (default: the last" in text


@pytest.mark.parametrize("words", [["predict", "--domain", "0"], ["diagnose"]])
def test_a_sweep_is_told_from_a_run_before_anything_is_printed(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "plan.json").touch()
    command, *flags = words
    with pytest.raises(SystemExit) as exit:
        main(["model", command, str(tmp_path), *flags])
    out, err = capsys.readouterr()
    assert (exit.value.code, out) == (2, "")
    assert f"{tmp_path} is a sweep and holds no run.json: name one of its runs" in err
