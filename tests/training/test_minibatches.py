"""Minibatches: a pure function of seed, domain and step, and uniform."""

from __future__ import annotations

import pytest
import torch
from hparams_reference import naive_seed_hash
from torch.utils.data import Dataset

from domainbed.datasets.base import ForeignDomain
from domainbed.datasets.domain import TensorDomain
from domainbed.spec import RunSpec
from domainbed.training import build
from domainbed.training.sampling import EpochDraws, IndexDraws, minibatches

INDICES = list(range(100, 120))


def draws(seed=0, domain=0, batch_size=8, **more):
    return IndexDraws(INDICES, batch_size, seed, domain, **more)


def epochs(seed=0, domain=0, batch_size=6, **more):
    return EpochDraws(INDICES, batch_size, seed, domain, **more)


def drawn(source, steps):
    return torch.stack([source.at(step) for step in steps])


def test_deterministic_and_different():
    steps = range(130)
    first = drawn(draws(), steps)
    assert first.shape == (130, 8)
    assert torch.equal(drawn(draws(), steps), first)
    for other in (draws(seed=1), draws(domain=1)):
        assert not torch.equal(drawn(other, steps), first)
    assert len({tuple(row) for row in first.tolist()}) == 130


def test_any_order_of_steps():
    source = draws()
    forward = drawn(source, range(200))
    for step in (199, 0, 64, 63, 128, 127):
        assert torch.equal(source.at(step), forward[step])


def test_uniform_with_replacement():
    """χ² with 19 degrees of freedom: below 43.8 with probability 0.999."""
    counts = drawn(draws(), range(1000)).flatten().sub(100).bincount(minlength=20).double()
    expected = 8000 / 20
    assert counts.numel() == 20
    assert ((counts - expected) ** 2 / expected).sum() < 43.8
    assert any(len(set(row)) < 8 for row in drawn(draws(), range(50)).tolist())


def test_an_epoch_holds_no_image_twice_and_each_has_its_own_order():
    """Of 20 images three minibatches of 6; the two others come another time."""
    rows = drawn(epochs(), range(300)).reshape(100, 18)
    assert all(len(set(epoch)) == 18 and set(epoch) <= set(INDICES) for epoch in rows.tolist())
    assert len({tuple(epoch) for epoch in rows.tolist()}) == 100
    counts = rows.flatten().sub(100).bincount(minlength=20)
    assert counts.sum() == 1800
    assert (counts - 90).abs().max() < 4 * (100 * 0.9 * 0.1) ** 0.5


def test_epochs_are_a_pure_function_of_seed_domain_and_step():
    forward, source = drawn(epochs(), range(50)), epochs()
    for step in (49, 0, 3, 2, 30):
        assert torch.equal(source.at(step), forward[step])
    for other in (epochs(seed=1), epochs(domain=1)):
        assert not torch.equal(drawn(other, range(50)), forward)


def test_balanced_epochs_hold_no_image_twice_in_a_minibatch():
    """One image of class 0 and nineteen of class 2: how often it is left out follows by hand."""
    labels = torch.tensor([0] + [2] * 19)
    rows = drawn(epochs(labels=labels), range(400)).tolist()
    assert all(len(set(row)) == 6 for row in rows)
    without = sum(100 not in row for row in rows) / 400
    expected = 1.0
    for place in range(6):  # 19 − place images of weight 1/19 are left, and the one of weight 1
        rest = (19 - place) / 19
        expected *= rest / (rest + 1)
    assert without == pytest.approx(expected, abs=4 * (expected / 400) ** 0.5)


def test_fewer_images_than_a_minibatch_takes_are_drawn_with_replacement():
    """Also by an algorithm that draws without it."""
    hparams = {"batch_size": 40}
    experiment = build(RunSpec.create("Debug28", "ERMPlusPlus", [0], steps=1, hparams=hparams))
    for x, _ in next(experiment.minibatches(range(1))):
        assert len(x) == 40 > len(set(map(float, x.flatten(1).sum(dim=1))))


def test_class_balance():
    """One image of class 0 and nineteen of class 2: each class half of the time."""
    labels = torch.tensor([0] + [2] * 19)
    chosen = drawn(draws(labels=labels), range(1000)).flatten()
    rare = (chosen == 100).sum().item()
    assert abs(rare - 4000) < 4 * (8000 * 0.25) ** 0.5
    counts = chosen[chosen != 100].sub(101).bincount(minlength=19).double()
    expected = counts.sum() / 19
    assert ((counts - expected) ** 2 / expected).sum() < 42.3  # 18 degrees of freedom, 0.999


class Images(Dataset):
    """Reads one number per image; its augmentation adds noise from PyTorch's global source."""

    def __init__(self, offset):
        self.offset = offset
        self.targets = [i % 3 for i in range(200)]

    def __getitem__(self, index):
        return torch.tensor([float(self.offset + index)]), self.targets[index]

    def augmented(self, index):
        value, label = self[index]
        return value + torch.rand(1), label


def steps_of(kind, steps, augment=False, workers=0):
    own = [draws(7, domain=0, batch_size=3), draws(7, domain=1, batch_size=5)]
    if kind == "tensor":
        x, y = torch.arange(200.0)[:, None], torch.arange(200) % 3
        domains = [TensorDomain(x + offset, y) for offset in (0, 1000)]
    else:
        domains = [ForeignDomain(Images(offset)) for offset in (0, 1000)]
    return list(minibatches(domains, own, steps, (0, 1) if augment else (), workers))


def flat(batches):
    return [(x, y) for step in batches for x, y in step]


def assert_equal(first, second):
    assert len(first) == len(second) > 0
    for (x, y), (other_x, other_y) in zip(first, second, strict=True):
        assert torch.equal(x, other_x)
        assert torch.equal(y, other_y)


@pytest.mark.parametrize("kind", ["tensor", "loaded"])
def test_independent_of_where_iteration_starts(kind):
    whole = steps_of(kind, range(0, 70), augment=True)
    later = steps_of(kind, range(66, 70), augment=True)
    assert_equal(flat(later), flat(whole[66:]))
    assert [len(y) for _, y in whole[0]] == [3, 5]


def test_both_kinds_agree():
    assert_equal(flat(steps_of("tensor", range(5))), flat(steps_of("loaded", range(5))))


def test_workers_change_nothing():
    alone = flat(steps_of("loaded", range(3), augment=True))
    for workers in (1, 4):
        assert_equal(flat(steps_of("loaded", range(3), augment=True, workers=workers)), alone)


@pytest.mark.parametrize(("workers", "each"), [(0, 0), (1, 1), (2, 1), (7, 3)])
def test_workers_are_shared_out(workers, each):
    given = []

    class Spy(TensorDomain):
        def batches(self, draws, workers=0):
            given.append(workers)
            return super().batches(draws, workers)

    domains = [Spy(torch.zeros(200, 1), torch.zeros(200))] * 2
    own = [draws(domain=0), draws(domain=1)]
    assert len(list(minibatches(domains, own, range(2), (), workers))) == 2
    assert given == [each, each]


def test_only_the_named_domains_are_augmented():
    own = [draws(7, domain=0, batch_size=3), draws(7, domain=1, batch_size=5)]
    domains = [ForeignDomain(Images(0)), ForeignDomain(Images(1000))]
    for (plain, _), (noisy, _) in minibatches(domains, own, range(3), augmented=[1]):
        assert torch.equal(plain, plain.round())
        assert not torch.equal(noisy, noisy.round())


def test_augmentation_differs_by_position_and_step_and_leaves_the_global_source():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        expected = torch.rand(1)
        torch.manual_seed(0)
        batches = flat(steps_of("loaded", range(4), augment=True))
        assert torch.equal(torch.rand(1), expected)
    noise = [value % 1 for x, _ in batches for value in x.flatten().tolist()]
    assert len(set(noise)) == len(noise) == 32


def test_augmentation_is_seeded_by_run_domain_step_and_position():
    """A naive computation of one step's images, from the documented derivation of seeds."""
    step = 3
    for domain, (x, _) in enumerate(steps_of("loaded", range(step, step + 1), augment=True)[0]):
        size = len(x)
        chosen = draws(7, domain=domain, batch_size=size).at(step).tolist()
        for position, index in enumerate(chosen):
            seed = naive_seed_hash(7, "augmentation", domain, step, position)
            noise = torch.rand(1, generator=torch.Generator().manual_seed(seed))
            assert torch.equal(x[position], torch.tensor([1000.0 * domain + index]) + noise)
