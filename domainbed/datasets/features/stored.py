"""Features of all images of a dataset, in one file that every run maps into memory."""

from __future__ import annotations

import json
import math
import warnings
from pathlib import Path

import numpy as np
import torch

from domainbed.errors import UserError

INDEX, FEATURES = "index.json", "features.bin"
DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16}


class StoredFeatures:
    """The folder that `extraction` writes, opened.

    Attributes:
        folder: where it lies.
        values: (n, 1 + views, d) of all images in the dataset's order, each one's own and those
            of its augmented views; to be read only.
        unreadable: numbers of the images that could not be read, whose features mean nothing.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        damaged = UserError(f"{folder} is damaged: remove it, and it will be computed again")
        try:
            index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
            dtype = DTYPES[index["precision"]]
            shape = (index["images"], 1 + index["views"], index["width"])
            self.unreadable: list[int] = index["unreadable"]
            stored = (folder / FEATURES).stat().st_size
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise damaged from error
        if stored != math.prod(shape) * dtype.itemsize:
            raise damaged
        mapped = np.memmap(folder / FEATURES, dtype=np.uint8, mode="r")
        with warnings.catch_warnings():  # that it cannot be written to is what we want
            warnings.simplefilter("ignore")
            self.values = torch.from_numpy(mapped).view(dtype).view(shape)
