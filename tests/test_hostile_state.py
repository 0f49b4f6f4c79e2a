"""A run of any algorithm that goes on from a file equals one that was never interrupted."""

from __future__ import annotations

import pytest
import torch
from helpers import assert_same_tensors, random_minibatches, resumed
from hostile_algorithms import HOSTILE

SIZES, SHAPE = (4, 3), (6,)


def fresh(cls, seed=0):
    torch.manual_seed(seed)
    return cls(SHAPE, 3, 2, {"lr": 0.1})


def updates(algorithm, steps):
    return [algorithm.update(random_minibatches(SIZES, step, SHAPE)) for step in steps]


@pytest.mark.parametrize("done", [1, 2, 4])
@pytest.mark.parametrize("cls", HOSTILE, ids=lambda cls: cls.__name__)
def test_resumes_bit_for_bit(cls, done):
    original = fresh(cls)
    updates(original, range(done))
    copy = resumed(original, fresh(cls, seed=0))
    expected = updates(original, range(done, done + 4))
    assert updates(copy, range(done, done + 4)) == expected
    assert_same_tensors(copy, original)


@pytest.mark.parametrize("cls", HOSTILE, ids=lambda cls: cls.__name__)
def test_state_matters(cls):
    """Without it the next updates would differ: the test above can fail."""
    original, forgetful = fresh(cls), fresh(cls)
    updates(original, range(3))
    forgetful.load_state_dict(original.state_dict(), strict=False)
    assert updates(forgetful, range(3, 7)) != updates(original, range(3, 7))


@pytest.mark.parametrize("cls", HOSTILE, ids=lambda cls: cls.__name__)
def test_restoring_twice(cls):
    """A file is read into an instance that has gone on in the meantime."""
    original = fresh(cls)
    updates(original, range(3))
    copy = resumed(original, fresh(cls))
    updates(copy, range(3))
    again = resumed(original, copy)
    assert updates(again, range(3, 6)) == updates(original, range(3, 6))
