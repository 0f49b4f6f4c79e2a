"""MNIST's file format, with a few images: the code that reads the real files reads these."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np

TRAINING, TEST = 60, 10


def write_small_mnist(root: Path, seed: int = 0) -> Path:
    """Writes 60 training and 10 test images under `root`/MNIST/raw."""
    raw = root / "MNIST" / "raw"
    raw.mkdir(parents=True)
    random = np.random.RandomState(seed)
    for part, n in (("train", TRAINING), ("t10k", TEST)):
        images = random.randint(0, 256, (n, 28, 28), dtype=np.uint8)
        labels = random.randint(0, 10, n, dtype=np.uint8)
        header = struct.pack(">IIII", 0x803, n, 28, 28)
        (raw / f"{part}-images-idx3-ubyte").write_bytes(header + images.tobytes())
        header = struct.pack(">II", 0x801, n)
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(header + labels.tobytes())
    return root
