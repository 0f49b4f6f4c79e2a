"""The exact path against the published transforms over PIL images, seed by seed."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from image_files import smooth_pixels
from PIL import Image
from torchvision import transforms

from domainbed.datasets.images import transforms as own
from domainbed.datasets.images.dataset_files import UnreadableImage, decode_image, read_image
from domainbed.datasets.images.transforms import evaluation_transform, training_transform

_NORMALISE = transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_RESIZE, _CROP = transforms.Resize((224, 224)), transforms.RandomResizedCrop(224, scale=(0.7, 1.0))


def published(*crop):
    """The published pipeline; what comes before the flip differs between the datasets."""
    return transforms.Compose(
        [
            *crop,
            transforms.RandomHorizontalFlip(),
            transforms.ColorJitter(0.3, 0.3, 0.3, 0.3),
            transforms.RandomGrayscale(0.1),
            transforms.ToTensor(),
            _NORMALISE,
        ]
    )


PUBLISHED = published(_CROP)
PIPELINES = {"image": PUBLISHED, "resized": published(_RESIZE, _CROP), "none": published(_RESIZE)}
STD = torch.tensor((0.229, 0.224, 0.225))[:, None, None]


def levels(difference):
    """Of normalised images, in grey levels."""
    return (difference * STD * 255).abs()


@pytest.mark.parametrize("size", [(227, 227), (180, 400), (500, 230)])
@pytest.mark.parametrize("crop", list(PIPELINES))
def test_the_same_seed_gives_the_published_augmentation(size, crop):
    with torch.random.fork_rng(devices=[]):
        for seed in range(12):
            pixels = smooth_pixels(*size, seed)
            torch.manual_seed(seed)
            expected = PIPELINES[crop](Image.fromarray(pixels))
            torch.manual_seed(seed)
            actual = training_transform(torch.from_numpy(pixels).permute(2, 0, 1), crop)
            difference = levels(actual - expected)
            assert difference.mean() < 0.5
            assert (difference > 2.5).float().mean() < 0.02


@pytest.mark.parametrize(
    ("turn", "shift"),
    [(0.1, 25), (-0.1, 231), (0.0039, 0), (-0.0039, 0), (0.3, 76), (-0.3, 180)],
)
def test_hues_are_truncated_as_torchvision_does(turn, shift, monkeypatch):
    shifts = []
    jitter = (torch.tensor([3]), 1.0, 1.0, 1.0, turn)
    monkeypatch.setattr(transforms.ColorJitter, "get_params", lambda *ranges: jitter)
    operations = (*own.JITTER_OPERATIONS[:3], lambda x, by: shifts.append(by))
    monkeypatch.setattr(own, "JITTER_OPERATIONS", operations)
    training_transform(torch.zeros(3, 8, 8, dtype=torch.uint8))
    assert shifts == [shift]


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


GREYS = [0, 128, 129, 257, 32_768, 65_535]


@pytest.mark.parametrize(
    ("mode", "kind", "suffix"),
    [("I;16", "<u2", "png"), ("I;16", "<u2", "tif"), ("I;16B", ">u2", "tif")],
)
def test_16_bits_become_8(mode, kind, suffix, tmp_path):
    """Not all white above 255, as PIL converts them."""
    file = tmp_path / f"image.{suffix}"
    Image.frombytes(mode, (6, 1), np.array(GREYS, kind).tobytes()).save(file)
    expected = [round(grey / 257) for grey in GREYS]
    assert expected == [0, 0, 1, 1, 128, 255]
    assert read_image(file).tolist() == [[expected]] * 3


@pytest.mark.parametrize(("mode", "kind"), [("I", np.int32), ("F", np.float32)])
def test_32_bits_are_refused(mode, kind, tmp_path):
    file = tmp_path / "image.tif"
    Image.fromarray(np.array([[0, 1, 70_000]], kind)).save(file)
    with pytest.raises(UnreadableImage, match=rf"32 bits \(mode {mode}\).* save it with 8 or 16"):
        read_image(file)


def test_a_decompression_bomb_is_called_one(tmp_path, monkeypatch):
    file = tmp_path / "image.png"
    Image.fromarray(smooth_pixels(20, 30)).save(file)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(UnreadableImage, match=r"600 pixels\) exceeds limit .* bomb"):
        read_image(file)


def test_pipes_and_devices_are_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    for file in (tmp_path / "pipe.png", Path("/dev/zero")):
        with pytest.raises(UnreadableImage, match="it is no regular file"):
            read_image(file)


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
