"""`domainbed data verify`: what it prints, and its exit status."""

import json

import numpy as np
import pytest
from PIL import Image

from domainbed.cli import run as run_command
from domainbed.errors import UserError


def run(*words):
    return run_command(["data", "verify", *map(str, words)])


@pytest.fixture
def pets(tmp_path):
    """Two domains of two images in each of two classes."""
    random = np.random.RandomState(0)
    for domain in ("photo", "sketch"):
        for name in ("cat", "dog"):
            folder = tmp_path / "pets" / domain / name
            folder.mkdir(parents=True)
            for k in range(2):
                pixels = random.randint(0, 256, (9, 8, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{k}.png")
    return tmp_path / "pets"


def test_text(pets, capsys):
    assert run(f"folder:{pets}") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"folder:{pets} in {pets}: ok"
    assert [line.split() for line in lines[1:]] == [
        ["domain", "images", "published", "classes", "cat", "dog"],
        ["photo", "4", "-", "2", "2", "2"],
        ["sketch", "4", "-", "2", "2", "2"],
    ]
    (pets / "photo" / "cat" / "0.png").write_bytes(b"")
    assert run(f"folder:{pets}") == 1
    out = capsys.readouterr().out
    assert f"in {pets}: 1 problem(s)" in out
    assert "problem: photo/cat/0.png cannot be read: it has no bytes" in out


def test_json(pets, capsys, tmp_path):
    (pets / "photo" / "cat" / "0.png").write_bytes(b"")
    assert run(f"folder:{pets}", "PACS", "--format", "json", "--data_dir", tmp_path) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["ok"] is False
    first, second = found["datasets"]
    assert (first["ok"], first["images"], first["edition"]) == (False, 8, "")
    assert first["counts"]["sketch"] == {"cat": 2, "dog": 2}
    assert first["problems"] == [
        {
            "kind": "unreadable",
            "where": "photo/cat/0.png",
            "message": "photo/cat/0.png cannot be read: it has no bytes",
        }
    ]
    assert second["problems"][0]["kind"] == "missing"


def test_all_that_are_there(pacs_dir, capsys, tmp_path):
    (tmp_path / "PACS").symlink_to(pacs_dir / "PACS")
    assert run("--data_dir", tmp_path) == 1
    out = capsys.readouterr().out
    assert out.startswith(f"PACS in {tmp_path / 'PACS'}: 4 problem(s)\n")
    assert "problem: domain 'sketch' has 210 images, published 3,929" in out
    with pytest.raises(UserError, match=r"no dataset in .*: get one with `domainbed data download"):
        run("--data_dir", tmp_path / "none")
