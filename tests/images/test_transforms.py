"""The exact path against the published transforms over PIL images, seed by seed."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from image_files import smooth_pixels
from PIL import Image
from torchvision import transforms

from domainbed.images.decode import UnreadableImage, decode_image, read_image
from domainbed.images.transforms import evaluation_transform, training_transform

_NORMALISE = transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
PUBLISHED = transforms.Compose(
    [
        transforms.RandomResizedCrop(224, scale=(0.7, 1.0)),
        transforms.RandomHorizontalFlip(),
        transforms.ColorJitter(0.3, 0.3, 0.3, 0.3),
        transforms.RandomGrayscale(0.1),
        transforms.ToTensor(),
        _NORMALISE,
    ]
)
STD = torch.tensor((0.229, 0.224, 0.225))[:, None, None]


def levels(difference):
    """Of normalised images, in grey levels."""
    return (difference * STD * 255).abs()


@pytest.mark.parametrize("size", [(227, 227), (180, 400), (500, 230)])
def test_the_same_seed_gives_the_published_augmentation(size):
    with torch.random.fork_rng(devices=[]):
        for seed in range(12):
            pixels = smooth_pixels(*size, seed)
            torch.manual_seed(seed)
            expected = PUBLISHED(Image.fromarray(pixels))
            torch.manual_seed(seed)
            actual = training_transform(torch.from_numpy(pixels).permute(2, 0, 1))
            difference = levels(actual - expected)
            assert difference.mean() < 0.5
            assert (difference > 2.5).float().mean() < 0.02


def test_on_photographs_and_drawings(pacs_dir):
    files = sorted((pacs_dir / "PACS").glob("*/dog/*"))[::12]
    difference = []
    with torch.random.fork_rng(devices=[]):
        for seed, file in enumerate(files):
            torch.manual_seed(seed)
            with Image.open(file) as image:
                expected = PUBLISHED(image.convert("RGB"))
            torch.manual_seed(seed)
            difference.append(levels(training_transform(read_image(file)) - expected))
    assert torch.stack(difference).mean() < 0.05


@pytest.mark.parametrize("size", [(227, 227), (20, 30), (700, 300)])
def test_evaluation_is_within_one_level_of_pil(size):
    pixels = smooth_pixels(*size)
    resized = Image.fromarray(pixels).resize((224, 224), Image.Resampling.BILINEAR)
    expected = _NORMALISE(transforms.functional.to_tensor(resized))
    actual = evaluation_transform(torch.from_numpy(pixels).permute(2, 0, 1))
    assert levels(actual - expected).max() < 1.01


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "1", "RGBA", "LA", "CMYK"])
def test_all_modes_are_read_as_pil_converts_them(mode, tmp_path):
    suffix = "jpg" if mode == "CMYK" else "png"
    file = tmp_path / f"image.{suffix}"
    Image.fromarray(smooth_pixels(20, 30)).convert(mode).save(file)
    with Image.open(file) as image:
        expected = np.array(image.convert("RGB"))
    assert torch.equal(read_image(file), torch.from_numpy(expected).permute(2, 0, 1))


def test_what_cannot_be_read_is_named(tmp_path):
    file = tmp_path / "image.jpg"
    Image.fromarray(smooth_pixels(100, 100)).save(file)
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UnreadableImage, match=r"image\.jpg cannot be read \(cut off\)"):
        read_image(file)
    with pytest.raises(UnreadableImage, match="image x cannot be read"):
        decode_image(b"no image", "x")
    with pytest.raises(UnreadableImage, match="No such file"):
        read_image(tmp_path / "nowhere.png")
