"""Colour operations have the arithmetic of PIL."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from image_files import smooth_pixels
from PIL import Image
from torchvision.transforms import functional as torchvision

from domainbed.datasets.images import transforms as colour

FACTORS = (0.7, 0.93, 1.0, 1.3)
HUES = (-0.3, -0.11, 0.0, 0.2, 0.3)


@pytest.fixture(scope="module")
def pictures():
    greys = np.arange(256, dtype=np.uint8).reshape(16, 16, 1).repeat(3, axis=2)
    random = np.random.RandomState(0).randint(0, 256, (90, 70, 3), dtype=np.uint8)
    return [smooth_pixels(60, 80), random, greys]


def tensor(pixels):
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1).float().contiguous()


def differences(operation, reference, pictures, values):
    """|here − PIL| of all pixels; `operation` gets a tensor, `reference` an image of PIL."""
    found = []
    for pixels in pictures:
        for value in values:
            expected = tensor(np.asarray(reference(Image.fromarray(pixels), value)))
            found.append((operation(tensor(pixels), value) - expected).abs().flatten())
    return torch.cat(found)


@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation"])
def test_as_pil(name, pictures):
    operation = getattr(colour, f"{name}_")
    reference = getattr(torchvision, f"adjust_{name}")
    difference = differences(operation, reference, pictures, FACTORS)
    assert difference.max() <= 1
    assert (difference > 0).double().mean() < 1e-3


def test_hue_as_pil(pictures):
    def operation(x, turn):
        return colour.hue_(x, int(turn * 255) % 256)

    difference = differences(operation, torchvision.adjust_hue, pictures, HUES)
    assert difference.max() <= 6  # one of 255 steps at full chroma
    assert (difference > 0).double().mean() < 0.01


def test_grey_as_pil(pictures):
    for pixels in pictures:
        expected = np.asarray(Image.fromarray(pixels).convert("L"))
        assert torch.equal(
            colour.luma(tensor(pixels))[0], torch.from_numpy(expected.copy()).float()
        )


@pytest.mark.parametrize("name", ["brightness_", "contrast_", "saturation_", "hue_"])
def test_a_factor_for_each_image(name):
    operation = getattr(colour, name)
    images = torch.stack([tensor(smooth_pixels(20, 30, seed)) for seed in range(3)])
    factors = torch.tensor([10.0, 200.0, 90.0] if name == "hue_" else [0.7, 1.0, 1.3])
    together = operation(images.clone(), factors[:, None, None, None])
    alone = [operation(x.clone(), f) for x, f in zip(images, factors.tolist())]
    assert (together - torch.stack(alone)).abs().max() <= (6 if name == "hue_" else 1)
    assert torch.equal(together, together.round())


def test_normalised():
    x = torch.stack([torch.full((2, 2), v) for v in (0.0, 127.5, 255.0)])
    expected = [
        (v - m) / s for v, m, s in zip((0, 0.5, 1), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    ]
    actual = colour.normalised(x)
    torch.testing.assert_close(actual, torch.tensor(expected)[:, None, None].expand(3, 2, 2))
