"""Minibatches: a pure function of seed, domain and step, and uniform."""

from __future__ import annotations

import pytest
import torch
from torch.utils.data import Dataset, TensorDataset

from domainbed.training.minibatches import (
    IndexDraws,
    LoadedMinibatches,
    TensorMinibatches,
    labels_of,
    tensor_domain,
)

INDICES = list(range(100, 120))


def draws(seed=0, domain=0, batch_size=8, **more):
    return IndexDraws(INDICES, batch_size, seed, domain, **more)


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


def sources(kind, augment=False, num_workers=0):
    own = [draws(domain=0, batch_size=3), draws(domain=1, batch_size=5)]
    if kind == "tensor":
        domains = [(torch.arange(200.0)[:, None] + o, torch.arange(200) % 3) for o in (0, 1000)]
        return TensorMinibatches(domains, own)
    domains = [Images(0), Images(1000)]
    return LoadedMinibatches(domains, own, 7, torch.device("cpu"), num_workers, augment)


def flat(batches):
    return [(x, y) for step in batches for x, y in step]


def assert_equal(first, second):
    assert len(first) == len(second) > 0
    for (x, y), (other_x, other_y) in zip(first, second, strict=True):
        assert torch.equal(x, other_x)
        assert torch.equal(y, other_y)


@pytest.mark.parametrize("kind", ["tensor", "loaded"])
def test_independent_of_where_iteration_starts(kind):
    whole = list(sources(kind, augment=True).iterate(range(0, 70)))
    later = list(sources(kind, augment=True).iterate(range(66, 70)))
    assert_equal(flat(later), flat(whole[66:]))
    assert [len(y) for _, y in whole[0]] == [3, 5]


def test_both_sources_agree():
    tensor, loaded = sources("tensor"), sources("loaded")
    assert_equal(flat(tensor.iterate(range(5))), flat(loaded.iterate(range(5))))


def test_workers_change_nothing():
    alone = flat(sources("loaded", augment=True).iterate(range(3)))
    assert_equal(flat(sources("loaded", augment=True, num_workers=2).iterate(range(3))), alone)


def test_augmentation_differs_by_position_and_step_and_leaves_the_global_source():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        expected = torch.rand(1)
        torch.manual_seed(0)
        batches = flat(sources("loaded", augment=True).iterate(range(4)))
        assert torch.equal(torch.rand(1), expected)
    noise = [value % 1 for x, _ in batches for value in x.flatten().tolist()]
    assert len(set(noise)) == len(noise) == 32


def test_labels():
    data = TensorDataset(torch.zeros(4, 1), torch.tensor([3, 1, 2, 0]))
    assert labels_of(data, [2, 0]).tolist() == [2, 3]
    assert labels_of(Images(0), [4, 5]).tolist() == [1, 2]
    assert labels_of([(None, 5), (None, 6)], [1]).tolist() == [6]


def test_tensor_domain():
    data = TensorDataset(torch.rand(3, 2, 4, 4), torch.tensor([0, 1, 0]))
    x, _ = tensor_domain(data, torch.device("cpu"))
    assert x.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(x, data.tensors[0])
    assert tensor_domain(Images(0), torch.device("cpu")) is None
