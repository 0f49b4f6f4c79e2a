"""The functions of the package do what the commands do."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import pytest

import domainbed
from domainbed.cli import run
from domainbed.errors import UserError
from domainbed.runs.folder import RunFolder

SHORT = {"steps": 3, "checkpoint_freq": 2, "hparams": {"batch_size": 8}}


def test_importing_imports_no_pytorch():
    names = ", ".join(
        f"domainbed.{name}" for name in ("collect", "report", "plot", "sweep", "train")
    )
    program = f"import sys, domainbed; {names}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_training_a_finished_run_returns_its_records(tmp_path):
    asked = ("ColoredDigits", "ERM", [2], tmp_path / "one")
    records = domainbed.train(*asked, **SHORT, progress=False)
    written = [json.loads(line) for line in RunFolder(tmp_path / "one").results.open()]
    assert records["step"].tolist() == [record["step"] for record in written] == [0, 2]
    assert records["env2_in_acc"].tolist() == [record["env2_in_acc"] for record in written]
    began = RunFolder(tmp_path / "one").results.stat().st_mtime_ns
    again = domainbed.train(*asked, **SHORT, progress=False)
    assert again.equals(records)
    assert RunFolder(tmp_path / "one").results.stat().st_mtime_ns == began
    with pytest.raises(UserError, match="stepz"):
        domainbed.train(*asked, stepz=3)


def test_a_sweep_its_report_and_figures(tmp_path, capsys):
    folder = domainbed.sweep(
        datasets=["ColoredDigits"], algorithms=["ERM", "CORAL"], trials=1, hparams_seeds=1,
        selection=["oracle"], launcher="debug", output_dir=str(tmp_path / "sweep"), **SHORT,
    )  # fmt: skip
    assert set(domainbed.collect(folder)["algorithm"]) == {"ERM", "CORAL"}
    file = domainbed.report(folder)
    assert file == folder / "report.html"
    assert "not told apart from ERM: CORAL" in file.read_text()
    figures = domainbed.plot(folder, "curves", tmp_path / "curves.pdf", width="column")
    assert [figure.get_figwidth() for figure in figures.values()] == [3.25]
    content = (tmp_path / "curves.pdf").read_bytes()
    assert re.search(rb"/FontFile2", content)  # TrueType, as publishers ask for
    assert b"/Type3" not in content
    with pytest.raises(UserError, match="no records of algorithm 'Fish', the baseline"):
        domainbed.plot(folder, "curves", baseline="Fish")
    capsys.readouterr()
    run(["plot", str(folder), "curves", "-o", str(tmp_path / "c.svg")])
    assert capsys.readouterr().out == f"Figure: {tmp_path / 'c.svg'}\n"
    assert "<text" not in (tmp_path / "c.svg").read_text()  # letters are shapes: none can be absent
