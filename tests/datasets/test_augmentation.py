"""The fast path's augmentation: its law is torchvision's, and its pixels are the exact path's."""

from __future__ import annotations

import math
from itertools import permutations

import pytest
import torch
from image_files import smooth_pixels
from PIL import Image
from torchvision import transforms
from torchvision.transforms import RandomResizedCrop

from domainbed.datasets.images import transforms as colour
from domainbed.datasets.images.transforms import (
    CROP_AREA,
    CROP_RATIO,
    Augmentation,
    draw_crops,
    resize,
    scale_boxes,
)

DRAWS = 20_000
MEAN = torch.tensor((0.485, 0.456, 0.406))[:, None, None]
STD = torch.tensor((0.229, 0.224, 0.225))[:, None, None]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def drawn(height=227, width=227, count=DRAWS, stored=None, seed=0):
    sizes = torch.tensor([[height, width]]).expand(count, 2)
    return Augmentation.draw(sizes, stored or (height, width), generator(seed))


def augment_each(images, augmentation):
    """B × (H, W, 3) uint8 to (B, 3, 224, 224), augmented and normalised."""
    augmented = [augmentation.applied(x.permute(2, 0, 1), n) for n, x in enumerate(images)]
    return torch.stack(list(map(colour.normalised, augmented)))


def assert_same_law(sample, reference):
    """Means and variances within four standard errors of their difference."""
    a, b = sample.double(), reference.double()
    error = ((a.var() / len(a)) + (b.var() / len(b))).sqrt()
    assert abs(a.mean() - b.mean()) <= 4 * error + 1e-9
    squares = [(v - v.mean()) ** 2 for v in (a, b)]
    error = sum(s.var() / len(s) for s in squares).sqrt()
    assert abs(squares[0].mean() - squares[1].mean()) <= 4 * error + 1e-9


def assert_uniform(sample, low, high, step=0.0):
    """Mean and variance of the uniform law, within four standard errors; nothing outside."""
    n, width = len(sample), high - low
    assert sample.min() >= low - step
    assert sample.max() <= high + step
    assert abs(sample.mean() - (low + high) / 2) < 4 * width / math.sqrt(12 * n) + step
    variance_error = width**2 * math.sqrt(1 / 180 / n)
    assert abs(sample.var() - width**2 / 12) < 4 * variance_error + step


def assert_probability(flags, p):
    assert abs(flags.double().mean() - p) < 4 * math.sqrt(p * (1 - p) / flags.numel())


# In the last nothing fits, and torchvision crops centrally.
@pytest.mark.parametrize("size", [(227, 227), (200, 300), (480, 300), (400, 100)])
def test_crops_have_torchvisions_law(size):
    count = 4000
    image = torch.empty(3, *size, dtype=torch.uint8)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        crops = [RandomResizedCrop.get_params(image, CROP_AREA, CROP_RATIO) for _ in range(count)]
    reference = torch.tensor(crops).double()
    ours = draw_crops(torch.tensor([size]).expand(DRAWS, 2), generator()).double()
    for statistic in (
        lambda c: c[:, 2] * c[:, 3],
        lambda c: (c[:, 3] / c[:, 2]).log(),
        lambda c: c[:, 0] + c[:, 2] / 2,
        lambda c: c[:, 1] + c[:, 3] / 2,
    ):
        assert_same_law(statistic(ours), statistic(reference))
    assert (ours[:, :2] >= 0).all()
    assert (ours[:, 0] + ours[:, 2] <= size[0]).all()
    assert (ours[:, 1] + ours[:, 3] <= size[1]).all()


@pytest.mark.parametrize("size", [(300, 360), (300, 500)])
def test_crops_of_squeezed_images_keep_area_and_ratio(size):
    """In original coordinates a border moves by half a stored pixel at most."""
    stored = torch.tensor([256, 256])
    sizes = torch.tensor([size]).expand(DRAWS, 2)
    original = draw_crops(sizes, generator())
    boxes = scale_boxes(original, sizes, (256, 256))
    back = (boxes * (torch.tensor(size) / stored).repeat(2)).double()
    half = torch.tensor(size) / stored / 2 + 1e-4
    assert ((back[:, :2] - original[:, :2]).abs() <= half).all()
    assert ((back[:, 2:] - original[:, 2:]).abs() <= 2 * half).all()
    assert (boxes[:, :2] + boxes[:, 2:] <= 256).all()
    assert (boxes >= torch.tensor([0, 0, 1, 1])).all()
    if size == (300, 360):  # in the other one most crops are the same central one
        assert_same_law(back[:, 2] * back[:, 3], original[:, 2] * original[:, 3])
        assert_same_law((back[:, 3] / back[:, 2]).log(), (original[:, 3] / original[:, 2]).log())


def test_jitter_flip_and_grey_have_torchvisions_law():
    a = drawn()
    for column in range(3):
        assert_uniform(a.factors[:, column], 0.7, 1.3)
    shift = a.factors[:, 3]
    assert torch.equal(shift, shift.round())
    turn = torch.where(shift > 127, shift - 256, shift) / 255  # torchvision cuts towards 0
    assert_uniform(turn, -0.3, 0.3, step=1 / 255)
    assert_probability(a.flip, 0.5)
    assert_probability(a.grey, 0.1)
    seen = (a.order * torch.tensor([1000, 100, 10, 1])).sum(dim=1)
    for order in permutations(range(4)):
        number = int("".join(map(str, order)))
        assert_probability(seen == number, 1 / 24)


def test_hues_are_truncated_towards_zero():
    """As torchvision does: to -76 … 76 steps, of which 0 alone stands for two of 153."""
    shift = drawn().factors[:, 3]
    steps = torch.where(shift > 127, shift - 256, shift)
    assert sorted(set(steps.tolist())) == list(range(-76, 77))
    assert_probability(steps == 0, 2 / 153)
    for step in (-76, -1, 1, 76):
        assert_probability(steps == step, (0.5 if abs(step) == 76 else 1) / 153)


def test_parameters_are_independent_of_each_other():
    a = drawn()
    area = (a.boxes[:, 2] * a.boxes[:, 3]).double()
    columns = [area, a.flip, a.grey, a.order[:, 0], *a.factors[:, :3].T]
    correlations = torch.corrcoef(torch.stack([c.double() for c in columns])).fill_diagonal_(0)
    assert correlations.abs().max() < 4.5 / math.sqrt(DRAWS)


def test_a_generator_decides_all():
    first, again, other = (drawn(count=20, seed=seed) for seed in (1, 1, 2))
    for name in ("boxes", "flip", "order", "factors", "grey"):
        assert torch.equal(getattr(first, name), getattr(again, name))
    assert not torch.equal(first.factors, other.factors)


def pictures(count=24, height=120, width=140):
    return torch.stack([torch.from_numpy(smooth_pixels(height, width, i)) for i in range(count)])


def test_each_step_by_hand():
    """One image of known parameters, from the operations themselves."""
    image = pictures(count=1)[0]
    order = torch.tensor([[3, 0, 2, 1]])
    factors = torch.tensor([[0.8, 1.2, 0.9, 30.0]])
    box = torch.tensor([[7, 11, 100, 90]])
    yes = torch.tensor([True])
    actual = augment_each([image], Augmentation(box, yes, order, factors, ~yes))[0]
    x = resize(image.permute(2, 0, 1)[:, 7:107, 11:101]).flip(-1).float().contiguous()
    x = colour.brightness_(colour.hue_(x, 30.0), factors[0, 0].item())
    x = colour.contrast_(colour.saturation_(x, factors[0, 2].item()), factors[0, 1].item())
    assert torch.equal(actual, colour.normalised(x.clone()))
    grey = augment_each([image], Augmentation(box, yes, order, factors, yes))[0]
    assert torch.equal(grey, colour.normalised(colour.luma(x).repeat(3, 1, 1)))


def test_augmented_images_have_the_published_statistics():
    """Brightness, contrast, colourfulness and left-right balance of one picture, many times."""
    pixels, count = smooth_pixels(64, 64, seed=3), 400
    published = transforms.Compose(
        [
            transforms.RandomResizedCrop(224, scale=CROP_AREA),
            transforms.RandomHorizontalFlip(),
            transforms.ColorJitter(0.3, 0.3, 0.3, 0.3),
            transforms.RandomGrayscale(0.1),
            transforms.PILToTensor(),
        ]
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        image = Image.fromarray(pixels)
        reference = torch.stack([statistics(published(image).float()) for _ in range(count)])
    a = drawn(64, 64, count=count)
    normalised = augment_each([torch.from_numpy(pixels)] * count, a)
    ours = torch.stack([statistics((x * STD + MEAN) * 255) for x in normalised])
    for one, other in zip(ours.T, reference.T, strict=True):
        assert_same_law(one, other)


def statistics(x):
    """Mean, standard deviation, chroma, red share and left-right balance of (3, H, W) levels."""
    grey = x.mean(dim=0)
    chroma = (x.amax(dim=0) - x.amin(dim=0)).mean()
    balance = grey[:, :112].mean() - grey[:, 112:].mean()
    return torch.stack([x.mean(), x.std(), chroma, x[0].mean() - x[1].mean(), balance])


def test_crops_of_very_thin_images_keep_a_pixel():
    sizes = torch.tensor([[6, 4000]]).expand(200, 2)
    boxes = scale_boxes(draw_crops(sizes, generator()), sizes, (256, 256))
    assert (boxes[:, 2:] >= 1).all()
    assert (boxes[:, :2] >= 0).all()
    assert (boxes[:, :2] + boxes[:, 2:] <= 256).all()
    thin = scale_boxes(torch.tensor([[0, 3999, 6, 1]]), sizes[:1], (256, 256))
    assert thin.tolist() == [[0, 255, 256, 1]]


def test_crops_of_squeezed_images_and_none():
    """An image of 96×48, as it is or stored as 300×200, is cropped as one of 224×224 would be."""
    sizes = torch.tensor([[96, 48]]).expand(DRAWS, 2)
    squeezed = Augmentation.draw(sizes, (224, 224), generator(), "resized")
    square = draw_crops(torch.tensor([[224, 224]]).expand(DRAWS, 2), generator())
    assert torch.equal(squeezed.boxes, square)
    stored = Augmentation.draw(sizes, (300, 200), generator(), "resized")
    assert torch.equal(stored.flip, squeezed.flip)
    expected = square * torch.tensor([300, 200, 300, 200]) / 224
    assert (stored.boxes - expected).abs().max() <= 1
    whole = Augmentation.draw(sizes, (300, 200), generator(), "none")
    assert whole.boxes.unique(dim=0).tolist() == [[0, 0, 300, 200]]
    assert_same_law(whole.flip, squeezed.flip)
