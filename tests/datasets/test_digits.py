"""Coloured and rotated digits: the construction, on scikit-learn's digits and small files."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
import torch
from digit_files import write_small_mnist
from PIL import Image
from sklearn.datasets import load_digits

from domainbed.core.seeding import data_seed
from domainbed.datasets import (
    ColoredDigits,
    ColoredMNIST,
    RotatedDigits,
    RotatedMNIST,
    load_dataset,
    small_images,
)
from domainbed.errors import UserError
from domainbed.spec import RunSpec


def as_bytes(images):
    """A multiset of images given as floats in [0, 1]."""
    pixels = (images * 255).round().to(torch.uint8)
    return Counter(image.numpy().tobytes() for image in pixels)


def original_digits():
    return torch.from_numpy(load_digits().images * (255 / 16)).round() / 255


def same_data(first, second):
    return all(
        torch.equal(t, u)
        for a, b in zip(first.datasets, second.datasets, strict=True)
        for t, u in zip(a.tensors, b.tensors, strict=True)
    )


def test_the_file_is_read_without_the_library():
    source = "import sys; from domainbed.datasets.small_images import _digits; _digits('')"
    command = [sys.executable, "-c", f"{source}; print('sklearn' in sys.modules)"]
    assert subprocess.run(command, capture_output=True, text=True).stdout == "False\n"
    images, digits = small_images._digits("")
    assert (images.dtype, digits.dtype, len(digits)) == (torch.uint8, torch.int64, 1797)
    assert torch.equal(images / 255, original_digits().float())
    assert digits.tolist() == load_digits().target.tolist()


@pytest.mark.parametrize("cls", [ColoredDigits, RotatedDigits])
def test_same_domains_for_the_same_trial_whatever_else(cls):
    first = cls("", [0], {}, trial_seed=1)
    torch.manual_seed(12345)
    np.random.seed(5)
    second = cls("elsewhere", [1, 2], {"lr": 3}, trial_seed=1)
    assert same_data(first, second)
    assert not same_data(first, cls("", [0], {}, trial_seed=2))


@pytest.mark.parametrize(
    ("cls", "shape", "classes", "steps"),
    [(ColoredDigits, (2, 8, 8), 2, 301), (RotatedDigits, (1, 8, 8), 10, 301)],
)
def test_facts(cls, shape, classes, steps):
    dataset = cls("", [0], {})
    assert dataset.input_shape == shape
    assert (dataset.num_classes, cls.N_STEPS, cls.CHECKPOINT_FREQ) == (classes, steps, 50)
    assert tuple(len(d) for d in dataset) == cls.info.images
    assert sum(cls.info.images) == 1797
    for domain in dataset:
        x, y = domain.tensors
        assert x.shape[1:] == shape
        assert (x.dtype, y.dtype) == (torch.float32, torch.int64)
        assert x.min() == 0
        assert 0.9 < x.max() <= 1
        assert set(y.tolist()) == set(range(classes))


def test_colour_is_one_channel_and_the_images_are_kept():
    dataset = ColoredDigits("", [0], {})
    kept = []
    for domain in dataset:
        x, _ = domain.tensors
        sums = x.sum(dim=(2, 3))
        assert ((sums == 0).sum(dim=1) == 1).all()
        kept.append(x.sum(dim=1))
    assert as_bytes(torch.cat(kept)) == as_bytes(original_digits())


@pytest.mark.parametrize(("domain", "noise"), [(0, 0.1), (1, 0.2), (2, 0.9)])
def test_colour_noise(domain, noise):
    """Five standard deviations of a binomial, over five trials."""
    disagree = n = 0
    for trial in range(5):
        x, y = ColoredDigits("", [0], {}, trial_seed=trial).datasets[domain].tensors
        color = x[:, 1].flatten(1).any(dim=1).long()
        disagree, n = disagree + (color != y).sum().item(), n + len(y)
    assert abs(disagree / n - noise) < 5 * (noise * (1 - noise) / n) ** 0.5


def test_label_noise_and_which_digits_are_one():
    digits = load_digits()
    by_image = {
        (image * (255 / 16)).round().astype(np.uint8).tobytes(): digit
        for image, digit in zip(digits.images, digits.target, strict=True)
    }
    agree = n = 0
    for domain in ColoredDigits("", [0], {}):
        x, y = domain.tensors
        for image, label in zip((x.sum(1) * 255).round().to(torch.uint8), y, strict=True):
            agree += label.item() == int(by_image[image.numpy().tobytes()] < 5)
            n += 1
    assert abs(agree / n - 0.75) < 5 * (0.75 * 0.25 / n) ** 0.5


def test_rotation_is_that_of_pil():
    plain = RotatedDigits("", [0], {}).datasets[0].tensors[0]
    originals = as_bytes(original_digits())
    assert all(originals[key] >= 1 for key in as_bytes(plain.squeeze(1)))
    images = (original_digits() * 255).round().to(torch.uint8).numpy()
    for domain, angle in enumerate((0, 15, 30, 45, 60, 75)):
        turned = Counter(
            np.asarray(Image.fromarray(i).rotate(angle, Image.Resampling.BILINEAR)).tobytes()
            for i in images
        )
        actual = RotatedDigits("", [0], {}).datasets[domain].tensors[0]
        assert not as_bytes(actual.squeeze(1)) - turned


def test_runs_share_one_object():
    first = load_dataset("ColoredDigits", "", [0], {}, 0)
    assert load_dataset("ColoredDigits", "", [1], {"lr": 1}, 0) is first
    other = load_dataset("ColoredDigits", "", [1], {}, 1)
    assert not same_data(first, other)


@pytest.mark.parametrize("cls", [ColoredMNIST, RotatedMNIST])
def test_missing_mnist_offline(cls, tmp_path, monkeypatch):
    import torchvision.datasets

    monkeypatch.setattr(torchvision.datasets.MNIST, "mirrors", ["http://127.0.0.1:9/"])
    with pytest.raises(UserError, match="could not be downloaded") as caught:
        cls(str(tmp_path), [0], {})
    assert str(tmp_path / "MNIST" / "raw") in str(caught.value)


def build_rotated(root):
    dataset = RotatedMNIST(str(root), [0], {})
    return [t.numpy() for domain in dataset for t in domain.tensors]


def test_rotated_mnist_has_every_image_in_one_domain(tmp_path):
    domains = build_rotated(write_small_mnist(tmp_path / "data"))
    assert [len(part) for part in domains[::2]] == [12, 12, 12, 12, 11, 11]


def drawn_from_the_global_source(images, digits, seed):
    """ColoredMNIST's domains as DomainBed makes them in a run with that seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        order = torch.randperm(len(images))
        images, digits, domains = images[order], digits[order], []
        for i, noise in enumerate((0.1, 0.2, 0.9)):
            x = images[i::3].float().div(255).unsqueeze(1).repeat(1, 2, 1, 1)
            labels = (digits[i::3] < 5).float()
            labels = (labels - (torch.rand(len(labels)) < 0.25).float()).abs()
            colors = (labels - (torch.rand(len(labels)) < noise).float()).abs()
            x[range(len(x)), (1 - colors).long()] = 0
            domains.append((x, labels.long()))
    return domains


@pytest.mark.parametrize("seed", [0, 1981683110])
def test_a_data_seed_gives_the_domains_of_the_original(seed):
    images, digits = ColoredDigits.read("")
    dataset = load_dataset("ColoredDigits", "", [0], {}, 5, data_seed=seed)
    for domain, (x, y) in zip(
        dataset, drawn_from_the_global_source(images, digits, seed), strict=True
    ):
        assert torch.equal(domain.tensors[0], x)
        assert torch.equal(domain.tensors[1], y)


def test_a_data_seed_takes_the_place_of_the_trials():
    seeded = [load_dataset("RotatedDigits", "", [0], {}, trial, data_seed=4) for trial in (0, 1)]
    assert same_data(*seeded)
    assert seeded[0] is not seeded[1]
    assert not same_data(seeded[0], load_dataset("RotatedDigits", "", [0], {}, 0))
    assert not same_data(seeded[0], load_dataset("RotatedDigits", "", [0], {}, 0, data_seed=5))
    assert same_data(
        load_dataset("RotatedDigits", "", [0], {}, 0, data_seed=data_seed(0)),
        load_dataset("RotatedDigits", "", [0], {}, 0),
    )


def test_bicubic_rotation_is_that_of_pil():
    plain = load_dataset("RotatedDigits", "", [0], {}, 0)
    bicubic = load_dataset("RotatedDigits", "", [0], {"rotation": "bicubic"}, 0)
    usual = load_dataset("RotatedDigits", "", [0], {"rotation": "bilinear"}, 0)
    assert same_data(plain, usual)
    assert not same_data(plain, bicubic)
    images, _ = RotatedDigits.read("")
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(data_seed(0)))
    for domain, angle in enumerate((0, 15, 30, 45, 60, 75)):
        for k in range(5):
            image = Image.fromarray(images[order[domain + 6 * k]].numpy())
            turned = torch.from_numpy(np.array(image.rotate(angle, Image.Resampling.BICUBIC)))
            assert torch.equal(bicubic[domain].tensors[0][k, 0], turned / 255)


def test_another_rotation_is_refused():
    with pytest.raises(UserError, match="'rotation' of ERM cannot be 'cubic'") as caught:
        RunSpec.create("RotatedDigits", "ERM", [0], hparams={"rotation": "cubic"})
    assert caught.value.where == ("hparams", "rotation")


def test_data_dir_may_be_mnists_own_folder(tmp_path):
    """As in DomainBed's README."""
    root = write_small_mnist(tmp_path / "data")
    assert same_data(*(RotatedMNIST(f"{path}/", [0], {}, 0) for path in (root, root / "MNIST")))


def test_rotations_and_seeds_give_other_images(tmp_path):
    root = str(write_small_mnist(tmp_path / "data"))
    variants = [({}, None), ({"rotation": "bicubic"}, None), ({}, 3)]
    built = [RotatedMNIST(root, [0], hparams, 0, seed) for hparams, seed in variants]
    assert not same_data(built[0], built[1])
    assert not same_data(built[0], built[2])
