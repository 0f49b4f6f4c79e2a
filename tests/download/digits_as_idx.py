"""Small files in MNIST's format."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np

IMAGES = {"train": 24, "t10k": 6}


def write_idx_files(folder):
    """The four files, with IMAGES many images of 28 × 28 pixels, unpacked."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    source = np.random.default_rng(0)
    for part, number in IMAGES.items():
        pixels = source.integers(0, 256, (number, 28, 28), dtype=np.uint8)
        digits = np.arange(number, dtype=np.uint8) % 10
        header = np.array([2051, number, 28, 28], ">i4").tobytes()
        (folder / f"{part}-images-idx3-ubyte").write_bytes(header + pixels.tobytes())
        header = np.array([2049, number], ">i4").tobytes()
        (folder / f"{part}-labels-idx1-ubyte").write_bytes(header + digits.tobytes())


def checksums(folder):
    """As those of the published files are kept: of the files in `folder`."""
    return {
        file.name: hashlib.md5(file.read_bytes()).hexdigest() for file in Path(folder).iterdir()
    }
