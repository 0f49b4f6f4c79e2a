"""Metrics of updates: read at once on the CPU, and late from a device that works on its own."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from domainbed.errors import UserError
from domainbed.training import progress
from domainbed.training.progress import History


@pytest.fixture
def far(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tensors are taken for ones of another device."""
    monkeypatch.setattr(
        progress, "_is_far", lambda value: isinstance(value, torch.Tensor) and value.numel() == 1
    )


def losses() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return list(torch.rand(301, generator=generator) * 3)


def means(values: list[torch.Tensor]) -> dict[str, float]:
    taken = History("ERM", tolerant=False)
    for step, loss in enumerate(values):
        taken.add({"loss": loss, "penalty": loss.double() / 3, "weight": 0.1}, step)
        taken.add_time(0.5)
    taken.settle()
    return taken.means()


def test_means_are_those_of_numbers_to_the_last_bit(far: None) -> None:
    values = losses()
    expected = {
        "step_time": 0.5,
        "loss": np.mean([value.item() for value in values]),
        "penalty": np.mean([(value.double() / 3).item() for value in values]),
        "weight": np.mean([0.1] * len(values)),
    }
    found = means(values)
    assert found == expected
    assert list(found) == list(expected)  # the order of the columns


def test_late_and_early_means_are_equal(monkeypatch: pytest.MonkeyPatch) -> None:
    early = means(losses())
    monkeypatch.setattr(
        progress, "_is_far", lambda value: isinstance(value, torch.Tensor) and value.numel() == 1
    )
    assert means(losses()) == early


def test_nothing_is_asked_for_before_a_record(far: None, monkeypatch: pytest.MonkeyPatch) -> None:
    taken, value = History("ERM", tolerant=False), torch.tensor(2.0, requires_grad=True)

    def asked(*_: Any) -> float:
        raise AssertionError("waited for the device")

    with monkeypatch.context() as patched:
        for name in ("item", "tolist", "__float__", "__bool__", "cpu"):
            patched.setattr(torch.Tensor, name, asked)
        for step in range(3):
            taken.add({"loss": value * 1, "buffer": value}, step)
    with torch.no_grad():
        value += 1  # the algorithm goes on with its own tensor
    taken.settle()
    assert taken.means() == {"loss": 2.0, "buffer": 2.0}
    assert taken.means() == {}


def test_the_first_metric_that_is_not_finite_is_named(far: None) -> None:
    taken = History("ERM", tolerant=False)
    for step, (loss, penalty) in enumerate([(1.0, 1.0), (1.0, math.inf), (math.nan, math.nan)]):
        taken.add({"loss": torch.tensor(loss), "penalty": torch.tensor(penalty)}, step)
    with pytest.raises(UserError, match="training diverged at step 1: penalty is inf"):
        taken.settle()


def test_divergence_is_seen_at_once_on_the_cpu() -> None:
    taken = History("ERM", tolerant=False)
    with pytest.raises(UserError, match="training diverged at step 7: loss is nan"):
        taken.add({"loss": torch.tensor(math.nan)}, 7)


def test_a_tolerant_one_goes_on_and_tells(far: None) -> None:
    taken = History("ERM", tolerant=True)
    taken.add({"loss": torch.tensor(1.0)}, 0)
    taken.settle()
    assert not taken.diverged
    taken.add({"loss": torch.tensor(math.nan)}, 1)
    taken.settle()
    assert taken.diverged
    resumed = History("ERM", tolerant=True)
    resumed.restore(taken.values())
    assert resumed.diverged
    assert math.isnan(resumed.means()["loss"])


@pytest.mark.parametrize("metrics", [{"loss": torch.ones(3)}, {"loss": "low"}, None, {"step": 1}])
def test_what_is_no_metric_is_refused_at_once(metrics: Any, far: None) -> None:
    with pytest.raises(UserError, match="the update of Mine returned"):
        History("Mine", tolerant=True).add(metrics, 0)
