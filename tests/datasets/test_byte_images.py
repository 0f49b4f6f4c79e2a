"""Images kept as bytes: the same batches, to the last bit and in the same layout, as tensors."""

import pytest
import torch
from torch.utils.data import TensorDataset

from domainbed.datasets import domains_of, load_dataset
from domainbed.datasets.domain import TensorDomain
from domainbed.datasets.small_images import ByteImages

CPU = torch.device("cpu")


def images(channels):
    generator = torch.Generator().manual_seed(0)
    levels = torch.randint(256, (50, 28, 28), dtype=torch.uint8, generator=generator)
    shown = None if channels is None else torch.rand(50, channels, generator=generator) < 0.5
    return ByteImages(levels, torch.arange(50), shown)


@pytest.mark.parametrize("channels", [None, 1, 2, 3])
def test_batches_are_those_of_tensors(channels):
    kept = images(channels)
    x = kept.x.float().div(255).unsqueeze(1)
    if channels:
        x = x * kept.shown[:, :, None, None]
    domains = domains_of([kept, TensorDataset(x, kept.labels)])
    assert [type(domain) for domain in domains] == [ByteImages, TensorDomain]
    order = torch.randperm(50, generator=torch.Generator().manual_seed(1)).tolist()
    ours, theirs = (domain.to(CPU).evaluation_batches(order, 9) for domain in domains)
    for (x, y), (z, labels) in zip(ours, theirs, strict=True):
        assert torch.equal(x, z)
        assert torch.equal(y, labels)
        assert (x.dtype, x.stride()) == (z.dtype, z.stride())  # a layout decides how it rounds
    assert torch.equal(domains[0].labels, domains[1].labels)


@pytest.mark.parametrize("channels", [None, 2])
def test_elements_are_pairs(channels):
    kept = images(channels)
    x, y = kept.tensors
    assert len(kept) == len(x) == 50
    for index in (0, 7, 49):
        assert torch.equal(kept[index][0], x[index])
        assert kept[index][1] == y[index]


@pytest.mark.parametrize("name", ["ColoredDigits", "RotatedDigits"])
def test_digits_are_kept_as_bytes(name):
    dataset = load_dataset(name, "", [0], {}, trial_seed=0)
    for kept in dataset.datasets:
        assert kept.x.dtype == torch.uint8
        assert kept.x.untyped_storage().nbytes() == kept.x.nbytes  # of no other images
