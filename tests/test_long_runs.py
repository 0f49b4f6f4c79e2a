"""Longer trainings, whose accuracy or loss must show that something was learned."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from domainbed.spec import RunSpec
from domainbed.training import RunOptions, run

pytestmark = pytest.mark.slow


def records(spec: RunSpec, folder: Path, data_dir: str = "data") -> list[dict]:
    run(spec, folder, RunOptions(data_dir=data_dir))
    return [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]


def test_rotated_digits_are_learned(tmp_path: Path) -> None:
    """Digits turned by 30 degrees, from five other angles: one in ten would be chance."""
    last = records(RunSpec.create("RotatedDigits", "ERM", [2]), tmp_path)[-1]
    assert last["step"] == 300
    assert last["env2_in_acc"] > 0.9


def test_colored_digits_fool_erm(tmp_path: Path) -> None:
    """ERM follows the colour, which is wrong nine times of ten in the last domain."""
    last = records(RunSpec.create("ColoredDigits", "ERM", [2], steps=101), tmp_path)[-1]
    assert last["env0_in_acc"] > 0.8
    assert last["env2_in_acc"] < 0.3


def test_loss_falls_on_pacs_from_scratch(pacs_dir: Path, tmp_path: Path) -> None:
    spec = RunSpec.create(
        "PACS",
        "ERM",
        [3],
        steps=41,
        checkpoint_freq=20,
        hparams={"resnet18": True, "weights": "none", "batch_size": 8, "lr": 1e-3},
    )
    losses = [record["loss"] for record in records(spec, tmp_path, str(pacs_dir))]
    assert losses[-1] < losses[0] - 0.1
