"""`domainbed data download` and scripts/download.py."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from domainbed.cli import run as run_command
from domainbed.core.names import SPAWRIOUS
from domainbed.download import download as sources_download
from domainbed.errors import UserError

ROOT = Path(__file__).parents[2]


def run(*words):
    return run_command(["data", "download", *map(str, words)])


def test_part_of_pacs(pacs_dir, tmp_path, capsys):
    words = ("PACS", "--data-dir", tmp_path / "data", "--from", pacs_dir / "PACS")
    with pytest.raises(UserError, match="domain 'art_painting' has 210 images, published 2,048"):
        run(*words)
    assert capsys.readouterr().out == ""
    assert run(*words, "--accept_incomplete") == 0
    assert capsys.readouterr().out.startswith("PACS: 840 images in 4 domains are in ")
    assert run(*words, "--accept_incomplete") == 0
    assert capsys.readouterr().out.endswith("already: 840 images; nothing to do\n")


def test_several_names(monkeypatch, capsys, tmp_path):
    """One that fails does not keep the others from coming."""
    asked = []

    def get(name, data_dir, copy, *, accept_checksum, accept_incomplete, say):
        asked.append((name, data_dir, copy, accept_checksum, accept_incomplete))
        if name == "VLCS":
            raise UserError("no source delivers")

    monkeypatch.setattr(sources_download, "download_dataset", get)
    assert run("all", "--data_dir", "d", "--accept_checksum") == 2
    names = ["ColoredMNIST", "RotatedMNIST", "VLCS", "PACS", "OfficeHome"]
    names += ["TerraIncognita", "DomainNet", "SVIRO", "WILDSCamelyon", "WILDSFMoW", *SPAWRIOUS]
    names += ["Waterbirds", "CelebA", "MetaShift", "NICOpp"]
    assert asked == [(name, "d", None, True, False) for name in names]
    assert capsys.readouterr().err == "error: VLCS: no source delivers\n"
    assert run("PACS", "PACS", "--accept-incomplete") == 0
    assert asked[len(names) :] == [("PACS", "data", None, False, True)]


def test_wrong_words():
    with pytest.raises(UserError, match="'x' goes with one dataset, not with 2"):
        run("PACS", "VLCS", "--from", "x")
    with pytest.raises(UserError, match="unknown dataset 'PAKS'"):
        run("PAKS")


def test_script(tmp_path):
    """As a process of its own: an error is one line."""
    (tmp_path / "PACS.zip").write_bytes(b"no archive")
    words = ["PACS", "--data_dir", tmp_path / "data", "--from", tmp_path / "PACS.zip"]
    result = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "download.py"), *map(str, words)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert (result.returncode, result.stdout) == (2, "")
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: --from ")
    assert "PACS.zip is damaged" in line
