"""MNIST is downloaded when it is missing, here from a server on this machine."""

from __future__ import annotations

import functools
import gzip
import hashlib
import http.server
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from torchvision.datasets import MNIST

from domainbed.datasets import ColoredMNIST
from domainbed.errors import UserError

IMAGES = {"train": 24, "t10k": 6}


def write_idx(folder: Path) -> list[tuple[str, str]]:
    """Small files in MNIST's format, and their names and checksums."""
    source, resources = np.random.default_rng(0), []
    for part, count in IMAGES.items():
        pixels = source.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        digits = np.arange(count, dtype=np.uint8) % 10
        images_header = np.array([2051, count, 28, 28], ">i4").tobytes()
        labels_header = np.array([2049, count], ">i4").tobytes()
        for name, content in (
            (f"{part}-images-idx3-ubyte.gz", images_header + pixels.tobytes()),
            (f"{part}-labels-idx1-ubyte.gz", labels_header + digits.tobytes()),
        ):
            packed = gzip.compress(content)
            (folder / name).write_bytes(packed)
            resources.append((name, hashlib.md5(packed).hexdigest()))
    return resources


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    folder = tmp_path / "mirror"
    folder.mkdir()
    monkeypatch.setattr(MNIST, "resources", write_idx(folder))
    handler = functools.partial(QuietHandler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        monkeypatch.setattr(MNIST, "mirrors", [f"http://127.0.0.1:{server.server_port}/"])
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield
        server.shutdown()


@pytest.mark.usefixtures("mirror")
def test_missing_mnist_is_downloaded(tmp_path: Path) -> None:
    dataset = ColoredMNIST(str(tmp_path / "data"), [0], {})
    assert [len(domain) for domain in dataset] == [10, 10, 10]
    assert (tmp_path / "data" / "MNIST" / "raw" / "train-images-idx3-ubyte").is_file()


def _without_images(raw: Path) -> None:
    (raw / "train-images-idx3-ubyte").unlink()
    os.mkfifo(raw / "train-images-idx3-ubyte")


def _labels_of(content: bytes) -> Callable[[Path], None]:
    return lambda raw: (raw / "train-labels-idx1-ubyte").write_bytes(content) and None


@pytest.mark.usefixtures("mirror")
@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (_without_images, "no regular file"),
        (_labels_of(b"garbage, as it comes"), ""),
        (_labels_of(b"\0"), ""),
        (_labels_of(np.array([2049, 24], ">i4").tobytes() + bytes(10)), ""),
        (_labels_of(np.array([2049, 10], ">i4").tobytes() + bytes(10)), "16 labels"),
        (_labels_of(np.array([2049, 24], ">i4").tobytes() + b"\xc8" * 24), "labels to 200"),
    ],
)
def test_damaged_files_are_called_so(
    damage: Callable[[Path], None], reason: str, tmp_path: Path
) -> None:
    ColoredMNIST(str(tmp_path / "data"), [0], {})
    damage(tmp_path / "data" / "MNIST" / "raw")
    with pytest.raises(UserError, match=f"raw' is damaged .*{reason}.*: remove that folder"):
        ColoredMNIST(str(tmp_path / "data"), [0], {})
