"""Losses of every algorithm for fixed weights and inputs, update by update.

The numbers were measured once, and the naive implementations gave the same. Weights and inputs
come from closed formulas, so that no random source of any version decides them.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from helpers import build, switching_at
from references import NAIVE
from test_trajectories import input_shape

SIZES, UPDATES = (4, 3, 5), 4
MLP = {"mlp_width": 8, "mlp_depth": 3, "mlp_dropout": 0.0}
FASTER = {"grad_penalty": 0.5, "weight_decay": 0.01, "lr": 0.01, "lr_g": 0.01, "lr_d": 0.01}
LOSSES = json.loads((Path(__file__).parent / "pinned_losses.json").read_text())
"""What each update reports first, by algorithm."""


def fixed_minibatches(name, step):
    """Sines of the position; labels count up."""
    pairs, start, shape = [], 7 * step, input_shape(name)
    for domain, size in enumerate(SIZES):
        positions = torch.arange(size * math.prod(shape), dtype=torch.float64) + start
        x = (1 + domain) * torch.sin(1.7 * positions).reshape(size, *shape)
        pairs.append((x, torch.arange(size) % 3))
        start += 5
    return pairs


@torch.no_grad()
def set_weights(algorithm):
    """The same cosines in all tensors of a size, so that copies of a module stay copies."""
    for parameter in algorithm.parameters():
        positions = torch.arange(parameter.numel(), dtype=torch.float64)
        parameter.copy_(0.4 * torch.cos(2.3 * positions).reshape(parameter.shape))


def fixed(name):
    hparams = {**MLP, **FASTER, **switching_at(2, name)}
    algorithm = build(name, 3, dtype=torch.float64, shape=input_shape(name), **hparams)
    set_weights(algorithm)
    return algorithm


def losses(name):
    algorithm, found = fixed(name), []
    for step in range(UPDATES):
        metrics = algorithm.update(fixed_minibatches(name, step))
        found.append(next(iter(metrics.values())))
    return found


@pytest.mark.parametrize("name", list(LOSSES))
def test_pinned(name):
    assert losses(name) == pytest.approx(LOSSES[name], rel=1e-8)


@pytest.mark.parametrize("name", [name for name in LOSSES if name != "Fish"])
def test_the_naive_implementation_has_the_same_losses(name):
    """Fish's is left out: the naive one returns the last domain's loss, not the mean."""
    naive = NAIVE[name].twin(fixed(name), 3)
    found = [naive.update(fixed_minibatches(name, step)) for step in range(UPDATES)]
    assert found == pytest.approx(LOSSES[name], rel=1e-8)


def test_all_are_pinned():
    assert set(LOSSES) == set(NAIVE)
