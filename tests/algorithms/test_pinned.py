"""Losses of every algorithm for fixed weights and inputs, update by update.

The numbers were measured once, and the naive implementations gave the same. Weights and inputs
come from closed formulas, so that no random source of any version decides them.
"""

from __future__ import annotations

import pytest
import torch
from helpers import build
from references import NAIVE

SHAPE, SIZES, UPDATES = (6,), (4, 3, 5), 4
MLP = {"mlp_width": 8, "mlp_depth": 3, "mlp_dropout": 0.0}
ANNEALED = {
    **{"irm_penalty_anneal_iters": 2, "vrex_penalty_anneal_iters": 2, "penalty_anneal_iters": 2},
    **{"grad_penalty": 0.5, "weight_decay": 0.01, "lr": 0.01, "lr_g": 0.01, "lr_d": 0.01},
}
LOSSES = {
    "ERM": [1.0998530483985633, 1.0926824813917067, 1.0909683616924548, 1.0894890140081905],
    "CORAL": [1.1049277237746176, 1.0999035826936896, 1.0962104682578246, 1.0922542630642262],
    "IRM": [1.1062618443840717, 1.0953417673508807, 0.7923182972121618, 0.5829693327044834],
    "VREx": [1.1072611124189722, 1.1001554260096573, 1.1127918295188015, 1.0993972477330447],
    "Fish": [1.1002032709425311, 1.0942644648396476, 1.0912248760037548, 1.086027539244759],
    "Fishr": [1.0998530483985633, 1.0926824813917067, 2.651552111809632, 2.6819340948092485],
    "DANN": [-0.03703542063127596, 1.1369804971425617, -0.02670216703296613, 1.1242241234414754],
}


def fixed_minibatches(step):
    """Sines of the position; labels count up."""
    pairs, start = [], 7 * step
    for domain, size in enumerate(SIZES):
        positions = torch.arange(size * 6, dtype=torch.float64) + start
        x = (1 + domain) * torch.sin(1.7 * positions).reshape(size, 6)
        pairs.append((x, torch.arange(size) % 3))
        start += 5
    return pairs


@torch.no_grad()
def set_weights(algorithm):
    for name, module in algorithm.named_children():
        if name in ("featurizer", "classifier", "discriminator"):
            for parameter in module.parameters():
                positions = torch.arange(parameter.numel(), dtype=torch.float64)
                parameter.copy_(0.4 * torch.cos(2.3 * positions).reshape(parameter.shape))


def fixed(name):
    algorithm = build(name, 3, dtype=torch.float64, shape=SHAPE, **{**MLP, **ANNEALED})
    set_weights(algorithm)
    return algorithm


def losses(name):
    algorithm, found = fixed(name), []
    for step in range(UPDATES):
        metrics = algorithm.update(fixed_minibatches(step))
        found.append(next(metrics[k] for k in ("loss", "gen_loss", "disc_loss") if k in metrics))
    return found


@pytest.mark.parametrize("name", list(LOSSES))
def test_pinned(name):
    assert losses(name) == pytest.approx(LOSSES[name], rel=1e-8)


@pytest.mark.parametrize("name", [name for name in LOSSES if name != "Fish"])
def test_the_naive_implementation_has_the_same_losses(name):
    """Fish's is left out: the naive one returns the last domain's loss, not the mean."""
    algorithm = fixed(name)
    parts = [algorithm.featurizer, algorithm.classifier]
    extra = [algorithm.discriminator] if name == "DANN" else []
    naive = NAIVE[name](*parts, algorithm.hparams, 3, *extra)
    found = [naive.update(fixed_minibatches(step)) for step in range(UPDATES)]
    assert found == pytest.approx(LOSSES[name], rel=1e-8)


def test_all_are_pinned():
    assert set(LOSSES) == set(NAIVE)
