"""Packed images: all of a dataset in one file of one size, mapped into memory by every run."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch

from domainbed.datasets.images.decode import decode_image
from domainbed.errors import UserError

INDEX, TABLE, IMAGES = "index.json", "images.csv", "images.bin"
RAW, JPEG = "raw", "jpeg"


class Pack:
    """The folder that `packing.make_pack` writes, opened.

    Attributes:
        folder: where it lies.
        shape: height and width of the stored images.
        sizes: (N, 2) heights and widths of the original ones.
        unreadable: numbers of the images that could not be read when it was made.
    """

    def __init__(self, folder: Path) -> None:
        damaged = UserError(f"{folder} is damaged: remove it, and it will be packed again")
        columns = ["height", "width", "bytes"]
        try:
            index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
            table = _table(folder / TABLE, columns)
            stored = (folder / IMAGES).stat().st_size
        except (OSError, ValueError) as error:
            raise damaged from error
        if len(table) != index["images"] or table["bytes"].sum() != stored:
            raise damaged
        self.folder, self._encoded = folder, index["format"] == JPEG
        self.shape: tuple[int, int] = (index["height"], index["width"])
        self.sizes = torch.from_numpy(table[columns[:2]].to_numpy().copy())
        self._ends = table["bytes"].cumsum().to_numpy()
        self.unreadable = [int(n) for n in np.flatnonzero(table["bytes"] == 0)]
        self._bytes: torch.Tensor | None = None

    def __len__(self) -> int:
        return len(self.sizes)

    def image(self, number: int) -> torch.Tensor:
        """(H, W, 3) uint8, `shape` in size; to be read only."""
        start, end = (int(self._ends[number - 1]) if number else 0), int(self._ends[number])
        stored = self._mapped()[start:end]
        if not self._encoded:
            return stored.view(*self.shape, 3)
        name = f"{number} of {self.folder}"
        return decode_image(stored.numpy().tobytes(), name).permute(1, 2, 0)

    def _mapped(self) -> torch.Tensor:
        """The file as a tensor; each process maps it for itself, and memory is shared by all."""
        if self._bytes is None:
            mapped = np.memmap(self.folder / IMAGES, dtype=np.uint8, mode="r")
            with warnings.catch_warnings():  # that it cannot be written to is what we want
                warnings.simplefilter("ignore")
                self._bytes = torch.from_numpy(mapped)
        return self._bytes

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_bytes": None}


def _table(file: Path, columns: list[str]) -> Any:
    import pandas

    return pandas.read_csv(file, usecols=columns, encoding_errors="surrogateescape")
