"""Seeds: known values, and independence from what a seed must not depend on."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from hparams_reference import naive_seed_hash

from domainbed.core import seeding


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        ((1, 2), 1981683110),
        (("PACS", "ERM", [0], 3, 1), 1704687671),
        ((0,), 1003224347),
        ((5, "lr"), 90576525),
    ],
)
def test_known_values(args, expected):
    assert seeding.seed_hash(*args) == expected
    assert naive_seed_hash(*args) == expected


def test_range():
    seeds = [seeding.seed_hash(i) for i in range(200)]
    assert min(seeds) >= 0
    assert max(seeds) < 2**31
    assert len(set(seeds)) == 200


@pytest.mark.parametrize("test_envs", [[0], (0,)])
def test_run_seed(test_envs):
    assert seeding.run_seed("PACS", "ERM", test_envs, 3, 1) == 1704687671


def test_draw_seed_and_its_shared_variant():
    assert seeding.hparams_draw_seed(1, 2) == 1981683110
    assert seeding.hparams_draw_seed(1, 2, shared_draws=True) == naive_seed_hash(1, 0)
    assert seeding.split_seed(1, 2) == 1981683110


def test_derived_seeds_differ():
    seeds = {
        seeding.data_seed(0),
        *(seeding.split_seed(0, domain) for domain in range(4)),
        *(seeding.seed_hash(0, "minibatch", d, block) for d in range(4) for block in range(4)),
        *(
            seeding.seed_hash(0, "augmentation", d, s, p)
            for d in range(3)
            for s in range(3)
            for p in (0, 1)
        ),
    }
    assert len(seeds) == 1 + 4 + 16 + 18


def test_the_seed_of_a_hyper_parameter():
    actual = np.random.RandomState(seeding.seed_hash(5, "lr")).uniform()
    assert actual == np.random.RandomState(90576525).uniform()


def test_seed_everything():
    def draws():
        return random.random(), np.random.rand(), torch.rand(1).item()

    with torch.random.fork_rng(devices=[]):
        seeding.seed_everything(2**31 - 1)
        first = draws()
        seeding.seed_everything(2**31 - 1)
        assert draws() == first
        seeding.seed_everything(3)
        assert all(a != b for a, b in zip(draws(), first, strict=True))
