"""What speed rests on, counted and not timed: what a run imports, starts, loads and evaluates."""

from __future__ import annotations

import multiprocessing.process
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from domainbed.datasets import ColoredDigits, _shared
from domainbed.datasets.small_images import _digits
from domainbed.spec import RunSpec
from domainbed.training import RunOptions, run
from domainbed.training.evaluation import Evaluator, Value


def digits(**changes: Any) -> RunSpec:
    fields = {"test_envs": [1], "steps": 3, "checkpoint_freq": 2, **changes}
    hparams = {"batch_size": 4}
    return RunSpec.create(
        "ColoredDigits", fields.pop("algorithm", "ERM"), hparams=hparams, **fields
    )


def test_training_imports_nothing_slow_that_it_does_not_need() -> None:
    code = (
        "import sys, domainbed.training, domainbed.algorithms, domainbed.datasets\n"
        "slow = {'pandas', 'torchvision', 'torch._dynamo', 'sklearn', 'scipy', 'matplotlib'}\n"
        "assert not slow & set(sys.modules), slow & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_tensors_are_read_by_nobody_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def starts(self: Any) -> None:
        raise AssertionError(f"{self} was started")

    monkeypatch.setattr(multiprocessing.process.BaseProcess, "start", starts)
    before = threading.active_count()
    seen = []
    run(digits(), tmp_path, RunOptions(num_workers=4), on_step=lambda _: seen.append(before))
    assert len(seen) == 3
    assert threading.active_count() == before


def test_a_process_loads_its_data_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = []

    def counting(root: str) -> tuple[torch.Tensor, torch.Tensor]:
        loaded.append(root)
        return _digits(root)

    monkeypatch.setattr(ColoredDigits, "read", staticmethod(counting))
    _shared.clear()
    for number, changes in enumerate(
        ({}, {"algorithm": "CORAL"}, {"test_envs": [0, 2]}, {"hparams_seed": 1})
    ):
        run(digits(**changes), tmp_path / str(number), RunOptions(keep="none"))
    assert len(loaded) == 1
    run(digits(trial_seed=1), tmp_path / "other", RunOptions(keep="none"))
    assert len(loaded) == 2
    _shared.clear()


@pytest.mark.parametrize(
    ("eval_splits", "expected"),
    [
        ("all", [3 * 599, 3 * 599]),
        ("needed", [599 + 2 * 119, 3 * 599]),
        ("selection", [480 + 2 * 119, 3 * 599]),
    ],
)
def test_images_of_a_record(
    eval_splits: str, expected: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluate: Callable[..., list[Value]] = Evaluator.evaluate
    images: list[int] = []

    def counting(self: Evaluator, algorithm: Any, splits: Any, *others: Any) -> list[Value]:
        images.append(0)
        predict = algorithm.predict

        def counted(x: torch.Tensor) -> torch.Tensor:
            images[-1] += len(x)
            return predict(x)

        with monkeypatch.context() as patched:
            patched.setattr(algorithm, "predict", counted)
            return evaluate(self, algorithm, splits, *others)

    monkeypatch.setattr(Evaluator, "evaluate", counting)
    run(digits(eval_splits=eval_splits), tmp_path, RunOptions(keep="none"))
    assert images == expected
