"""Longer trainings, whose accuracy or loss must show that something was learned."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from helpers import switching_at

from domainbed.algorithms import ALGORITHMS
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


SUITED: dict[str, dict] = {
    "IRM": {"irm_lambda": 10.0},
    "IB_ERM": {"ib_lambda": 0.1},
    "IB_IRM": {"ib_lambda": 0.1, "irm_lambda": 1.0},
    "CAD": {"lmbda": 1e-3},
    "CondCAD": {"lmbda": 1e-3},
    "ERMPlusPlus": {"linear_steps": 20, "sma_start": 100},
}
"""In place of defaults that are meant for 5,000 steps: penalties that dominate at first, and the
warm-up of the head alone."""

NO_ROTATION = {
    "IGA": "the gradients of all parameters differ least between domains where nothing is learned",
}
ONE_CLASS = (
    "ends with one class for all images: the training domains' colours contradict each other"
)
NO_COLOUR = {
    **dict.fromkeys(["IRM", "Fishr", "Mixup", "MLDG", "MMD", "ARM", "RSC", "IGA"], ONE_CLASS),
    **dict.fromkeys(["TRM", "IB_ERM", "IB_IRM", "CAD", "CondCAD", "Transfer"], ONE_CLASS),
    **dict.fromkeys(["CausIRL_MMD", "EQRM", "ADRMX"], ONE_CLASS),
    "ERMPlusPlus": "trains its head alone for 501 updates",
    "JTT": "repeats those whose colour is wrong until they outweigh the rest, and so inverts it",
}
"""Methods that so short a training does not lead to a domain that nobody has seen, and why."""


@pytest.mark.parametrize("algorithm", list(ALGORITHMS))
def test_rotated_digits_by_every_algorithm(algorithm: str, tmp_path: Path) -> None:
    """Digits turned by 30 degrees, from five other angles: one in ten would be chance."""
    if algorithm in NO_ROTATION:
        pytest.skip(f"{algorithm}: {NO_ROTATION[algorithm]}")
    hparams = {"batch_size": 32, **switching_at(100, algorithm), **SUITED.get(algorithm, {})}
    spec = RunSpec.create(
        "RotatedDigits", algorithm, [2], steps=301, checkpoint_freq=300, hparams=hparams
    )
    assert records(spec, tmp_path)[-1]["env2_in_acc"] > 0.3


@pytest.mark.parametrize("algorithm", list(ALGORITHMS))
def test_colored_digits_by_every_algorithm(algorithm: str, tmp_path: Path) -> None:
    """Two classes, coloured rightly in 80 %, from domains with 90 % and 10 %: chance is 0.5."""
    if algorithm in NO_COLOUR:
        pytest.skip(f"{algorithm}: {NO_COLOUR[algorithm]}")
    hparams = {"batch_size": 16, **switching_at(80, algorithm)}
    spec = RunSpec.create(
        "ColoredDigits", algorithm, [1], steps=201, checkpoint_freq=200, hparams=hparams
    )
    assert records(spec, tmp_path)[-1]["env1_in_acc"] > 0.55


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
