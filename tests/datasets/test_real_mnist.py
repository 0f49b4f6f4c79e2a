"""ColoredMNIST and RotatedMNIST on MNIST itself."""

from __future__ import annotations

import zlib
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.datasets import MNIST

from domainbed.datasets import ColoredMNIST, RotatedMNIST


@pytest.fixture(scope="module")
def original(mnist_dir):
    parts = [MNIST(str(mnist_dir), train=train) for train in (True, False)]
    return torch.cat([p.data for p in parts]), torch.cat([p.targets for p in parts])


@pytest.fixture(scope="module")
def colored(mnist_dir):
    return ColoredMNIST(str(mnist_dir), [0], {}, trial_seed=0)


@pytest.fixture(scope="module")
def rotated(mnist_dir, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DOMAINBED_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        return RotatedMNIST(str(mnist_dir), [0], {}, trial_seed=0)


def checksums(images):
    return [zlib.crc32(image.tobytes()) for image in images]


def pixels(x):
    return (x * 255).round().to(torch.uint8).numpy()


def test_counts(colored, rotated):
    assert [len(d) for d in colored] == [23334, 23333, 23333]
    assert [len(d) for d in rotated] == [11667] * 4 + [11666] * 2
    assert (colored.input_shape, colored.num_classes) == ((2, 28, 28), 2)
    assert (rotated.input_shape, rotated.num_classes) == ((1, 28, 28), 10)
    assert (ColoredMNIST.N_STEPS, ColoredMNIST.CHECKPOINT_FREQ) == (5001, 100)


def test_colours_and_labels(colored, original):
    images, digits = original
    digit_of = dict(zip(checksums(images.numpy()), digits.tolist(), strict=True))
    seen = Counter()
    for domain, noise in zip(colored, (0.1, 0.2, 0.9), strict=True):
        x, y = domain.tensors
        lit = x.flatten(2).any(dim=2)
        assert (lit.sum(dim=1) == 1).all()
        color = lit[:, 1].long()
        sums = checksums(pixels(x.sum(dim=1)))
        seen.update(sums)
        clean = torch.tensor([digit_of[s] < 5 for s in sums]).long()
        for rate, expected in (((color != y), noise), ((clean != y), 0.25)):
            bound = 4.5 * (expected * (1 - expected) / len(y)) ** 0.5
            assert abs(rate.float().mean().item() - expected) < bound
    assert seen == Counter(checksums(images.numpy()))


def test_a_trial_has_its_own_noise(colored, mnist_dir):
    again = ColoredMNIST(str(mnist_dir), [2], {"lr": 1.0}, trial_seed=0)
    other = ColoredMNIST(str(mnist_dir), [0], {}, trial_seed=1)
    for mine, same, different in zip(colored, again, other, strict=True):
        assert torch.equal(mine.tensors[0], same.tensors[0])
        assert torch.equal(mine.tensors[1], same.tensors[1])
        assert not torch.equal(mine.tensors[1], different.tensors[1])


def test_rotation(rotated, original):
    images, digits = original
    by_angle = {}
    position = {key: i for i, key in enumerate(checksums(images.numpy()))}
    for domain, angle in enumerate((0, 15, 30, 45, 60, 75)):
        x, y = rotated[domain].tensors
        by_angle[angle] = set(checksums(pixels(x.squeeze(1))))
        assert set(y.tolist()) == set(range(10))
    for key, digit in zip(
        checksums(pixels(rotated[0].tensors[0].squeeze(1))), rotated[0].tensors[1], strict=True
    ):
        assert digits[position[key]] == digit
    for angle, keys in by_angle.items():  # about one image in six lies in the domain
        turned = [
            np.asarray(Image.fromarray(i).rotate(angle, Image.Resampling.BILINEAR))
            for i in images[:600].numpy()
        ]
        found = sum(key in keys for key in checksums(turned))
        assert 60 <= found <= 145
