"""What counts as an image: the same as in training."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from source_files import image_bytes, write

from domainbed.datasets import get_dataset_class
from domainbed.download.catalogue import plain, published_name
from domainbed.download.verify import scan

NAMES = ("1.jpg", "2.JPG", "3.jpeg", "4.png", "5.PPM", "6.bmp", "7.webp", "8.tif", "deep/9.tiff")
OTHERS = ("Thumbs.db", ".DS_Store", "._1.jpg", "list.txt", "1.jpg.part", "video.mp4")


def test_the_images_are_those_of_training(tmp_path):
    for domain in "ab":
        for label in "xy":
            place = tmp_path / "mine" / domain / label
            write(dict.fromkeys((*NAMES, *OTHERS), image_bytes(1)), place)
    write({"__MACOSX/x/1.jpg": b"", "notes.txt": b"", ".hidden/x/1.jpg": b""}, tmp_path / "mine")
    (tmp_path / "mine" / "__MACOSX" / "x" / "1.jpg").unlink()
    found = scan(tmp_path / "mine")
    assert list(found) == ["a", "b"]
    expected = sorted(Path(tmp_path / "mine" / "a" / "x" / name) for name in NAMES)
    assert found["a"]["x"] == expected
    (tmp_path / "mine" / "__MACOSX" / "x").rmdir()
    (tmp_path / "mine" / "__MACOSX").rmdir()
    dataset = get_dataset_class(f"folder:{tmp_path / 'mine'}")("", [0], {})
    assert [domain.files for domain in dataset] == [
        found[domain]["x"] + found[domain]["y"] for domain in "ab"
    ]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        *(("Real World", "Real World"), ("real_world", "Real World"), ("RealWorld", "Real World")),
        *(("rw", "Real World"), ("Real", None), ("ART", "Art")),
    ],
)
def test_names(name, expected):
    assert published_name(name, ("Art", "Real World"), {"rw": "Real World"}) == expected
    assert plain("Real_World-2") == "realworld2"


def test_downloads_are_imported_without_pytorch():
    program = "import sys, domainbed.download; sys.exit('torch' in sys.modules)"
    root = str(Path(__file__).parents[2])
    assert subprocess.run([sys.executable, "-c", program], cwd=root).returncode == 0
