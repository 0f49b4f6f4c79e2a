"""Runs on a few vectors, which take no time, and kills in the middle of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import TensorDataset

from domainbed.config.run_fields import RunOptions
from domainbed.datasets import MultipleDomainDataset
from domainbed.spec import RunSpec
from domainbed.training import run

IMAGES = 23


class Vectors(MultipleDomainDataset):
    """Three domains of a few vectors of two classes."""

    ENVIRONMENTS = ("a", "b", "c")
    small_images = True

    def __init__(self, root: str, test_envs: Any, hparams: Any) -> None:
        source = torch.Generator().manual_seed(0)
        self.input_shape, self.num_classes = (6,), 2
        y = torch.arange(IMAGES) % 2
        noise = [torch.randn(IMAGES, 6, generator=source) for _ in self.ENVIRONMENTS]
        self.datasets = [TensorDataset(x + y[:, None], y) for x in noise]


def records(folder: Path) -> list[dict[str, Any]]:
    """All records but for timings and the folder's own path."""
    found = [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]
    for record in found:
        del record["step_time"], record["args"]["output_dir"]
    return found


class Killed(BaseException):
    """Stands for a kill at a moment that a test chooses."""


def run_until(spec: RunSpec, folder: Path, call: int, options: RunOptions | None = None) -> None:
    """Stops after so many steps of this session, whatever their stage."""
    steps = iter(range(1, 1000))

    def on_step(taken: int) -> None:
        if next(steps) == call:
            raise Killed

    with pytest.raises(Killed):
        run(spec, folder, options, on_step=on_step)
