"""Image folders: discovery, errors, and the published preprocessing on real images."""

from __future__ import annotations

import errno
import os

import numpy as np
import pytest
import torch
from PIL import Image

from domainbed.datasets import DATASETS, PACS, get_dataset_class, load_dataset
from domainbed.download.verify import verify_dataset
from domainbed.errors import UserError
from domainbed.spec import RunSpec
from domainbed.training import RunOptions, build

MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])


def write_images(root, domains=("a", "b"), classes=("cat", "dog"), per_class=2):
    random = np.random.RandomState(0)
    for domain in domains:
        for name in classes:
            folder = root / domain / name
            folder.mkdir(parents=True)
            for i in range(per_class):
                image = random.randint(0, 256, (20, 30, 3), dtype=np.uint8)
                Image.fromarray(image).save(folder / f"{i}.png")
    return root


def by_hand(file):
    """Resize to 224 × 224 bilinearly, scale, normalise: PIL and NumPy alone."""
    with Image.open(file) as image:
        resized = image.convert("RGB").resize((224, 224), Image.Resampling.BILINEAR)
    values = (np.asarray(resized) / 255 - MEAN) / STD
    return torch.from_numpy(values.transpose(2, 0, 1)).float()


@pytest.fixture(scope="module")
def pacs(pacs_dir):
    return PACS(str(pacs_dir), [0], {})


class TestPACS:
    def test_counts(self, pacs, pacs_dir):
        assert pacs.domain_names == ["art_painting", "cartoon", "photo", "sketch"]
        assert pacs.classes == list(PACS.info.classes)
        assert (pacs.num_classes, pacs.input_shape) == (7, (3, 224, 224))
        assert sum(len(domain) for domain in pacs) == 840
        for domain, name in zip(pacs, pacs.domain_names, strict=True):
            files = [p for p in (pacs_dir / "PACS" / name).rglob("*") if p.is_file()]
            assert sorted(domain.files) == sorted(files)
            for file, label in zip(domain.files, domain.targets, strict=True):
                assert file.parent.name == pacs.classes[label]

    def test_evaluation(self, pacs):
        for domain in pacs:
            for index in (0, len(domain) - 1):
                x, y = domain[index]
                difference = (x - by_hand(domain.files[index])).permute(1, 2, 0) * torch.tensor(STD)
                assert difference.abs().max() < 1.01 / 255
                assert y == domain.targets[index]

    def test_augmentation(self, pacs):
        domain = pacs[0]
        images = []
        for seed in (1, 1, 2):
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                images.append(domain.read(0, augment=True)[0])
        assert torch.equal(images[0], images[1])
        assert not torch.equal(images[0], images[2])
        assert images[0].shape == (3, 224, 224)
        assert not torch.equal(images[0], domain[0][0])

    def test_a_tenth_of_the_augmented_images_is_grey(self, pacs):
        grey = 0
        mean, std = (torch.tensor(v).float()[:, None, None] for v in (MEAN, STD))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            for _ in range(100):
                x = pacs[0].read(0, augment=True)[0][:, ::16, ::16] * std + mean
                grey += torch.allclose(x[0], x[1], atol=1e-4) and torch.allclose(
                    x[1], x[2], atol=1e-4
                )
        assert 2 <= grey <= 22


def test_folder(tmp_path):
    root = write_images(tmp_path / "photos", domains=("x", "m"), per_class=3)
    cls = get_dataset_class(f"folder:{root}")
    dataset = cls("ignored", [0], {})
    assert cls.ENVIRONMENTS == ("m", "x")
    assert (cls.N_STEPS, cls.CHECKPOINT_FREQ) == (5001, 300)
    assert dataset.classes == ["cat", "dog"]
    assert [domain.targets for domain in dataset] == [[0, 0, 0, 1, 1, 1]] * 2
    assert RunSpec.create(f"folder:{root}", "ERM", [1]).dataset_label == "photos"


def test_yaml(tmp_path, monkeypatch):
    write_images(tmp_path / "photos")
    file = tmp_path / "mine.yaml"
    file.write_text("path: photos\nsteps: 70\ncheckpoint_freq: 10\n")
    monkeypatch.chdir(tmp_path.parent)
    dataset = load_dataset(str(file), "ignored", [0], {}, 0)
    assert (dataset.N_STEPS, dataset.CHECKPOINT_FREQ) == (70, 10)
    assert [len(domain) for domain in dataset] == [4, 4]
    assert RunSpec.create(str(file), "ERM", [1]).dataset_label == "mine"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("steps: 3", "expected the field 'path'"),
        ("path: photos\nstep: 3", "'step'"),
        ("[", "line 1: no valid YAML"),
        ("path: nowhere", "does not exist"),
    ],
)
def test_bad_yaml(text, message, tmp_path):
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(UserError, match=message):
        get_dataset_class(str(tmp_path / "mine.yaml"))


def test_different_classes_are_named(tmp_path):
    root = write_images(tmp_path / "photos")
    (root / "b" / "zebra").mkdir()
    (root / "a" / "ape").mkdir()
    cls = get_dataset_class(f"folder:{root}")
    with pytest.raises(UserError, match=r"domain 'a' lacks zebra; domain 'b' lacks ape"):
        cls("", [0], {})


def test_empty_class_and_no_classes(tmp_path):
    root = write_images(tmp_path / "photos", per_class=0)
    with pytest.raises(UserError, match="no images of class 'cat' in "):
        get_dataset_class(f"folder:{root}")("", [0], {})
    bare = write_images(tmp_path / "bare", classes=())
    for name in "ab":
        (bare / name).mkdir(parents=True)
    with pytest.raises(UserError, match="no class folders"):
        get_dataset_class(f"folder:{bare}")("", [0], {})


def test_ignored_files_are_told(tmp_path, recwarn):
    root = write_images(tmp_path / "photos")
    get_dataset_class(f"folder:{root}")("", [0], {})
    assert not recwarn
    for name in ("a/x.png", "a/cat/1.gif", "b/dog/1.GIF", "b/cat/more/1.svg", "a/cat/.hidden.gif"):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).touch()
    counts = "1 .svg files, 1 images beside the class folders, 2 .gif files"
    with pytest.warns(UserWarning, match="ignored in .*photos': ") as caught:
        get_dataset_class(f"folder:{root}")("", [0], {})
    assert sorted(str(caught[0].message).partition(": ")[2].split(", ")) == sorted(
        counts.split(", ")
    )
    (note,) = verify_dataset(f"folder:{root}", "").notes
    assert sorted(note.partition(": ")[2].split(", ")) == sorted(counts.split(", "))


@pytest.mark.parametrize("target", [".", "..", "../.."])
def test_a_link_that_leads_back_is_named(target, tmp_path):
    root = write_images(tmp_path / "photos")
    (root / "a" / "cat" / "back").symlink_to(target)
    message = r"back\S* leads back to a folder that contains it"
    with pytest.raises(UserError, match=message):
        load_dataset(f"folder:{root}", "", [0], {}, 0)
    with pytest.raises(UserError, match=message):
        verify_dataset(f"folder:{root}", "")


def test_names_that_are_paths(tmp_path, monkeypatch):
    (tmp_path / "photos").mkdir()
    (tmp_path / "file").touch()
    monkeypatch.chdir(tmp_path)
    for name in ("photos", "no/where"):
        with pytest.raises(UserError, match=f"for a folder of your own .* write 'folder:{name}'"):
            get_dataset_class(name)
    with pytest.raises(UserError, match=r"file' is not a folder: give the one that holds"):
        get_dataset_class("folder:file")
    (tmp_path / "photos" / "a").mkdir()
    with pytest.raises(UserError, match="photos has 1 domain: training needs one"):
        RunSpec.create("folder:photos", "ERM", [0])


@pytest.mark.parametrize("below", ["", "b", "b/dog"])
def test_folders_that_may_not_be_read(below, tmp_path, monkeypatch):
    root = write_images(tmp_path / "photos")
    scandir = os.scandir

    def refuse(path):
        if os.path.samefile(path, root / below):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(UserError, match=rf"folder '.*{below}' cannot be read \(Permission denied"):
        get_dataset_class(f"folder:{root}")("", [0], {})


def test_missing_folders(tmp_path):
    with pytest.raises(UserError, match="does not exist: give the one that holds"):
        get_dataset_class(f"folder:{tmp_path / 'none'}")
    for name in ("VLCS", "PACS", "OfficeHome", "TerraIncognita", "DomainNet"):
        with pytest.raises(UserError, match=f"dataset {name} is not in .*--data_dir"):
            DATASETS[name](str(tmp_path), [0], {})


@pytest.mark.parametrize(
    ("domains", "what"), [(("a", "c", "p"), "3 domains"), (("a", "c", "p", "s"), "2 classes")]
)
def test_incomplete_copy(domains, what, tmp_path):
    write_images(tmp_path / "PACS", domains=domains)
    with pytest.raises(UserError, match=f"has {what}"):
        PACS(str(tmp_path), [0], {})


PUBLISHED = {
    "ColoredMNIST": (("+90%", "+80%", "-90%"), 2, 70_000, 5001, 100, "MNIST"),
    "RotatedMNIST": (("0", "15", "30", "45", "60", "75"), 10, 70_000, 5001, 100, "MNIST"),
    "VLCS": (tuple("CLSV"), 5, 10_729, 5001, 300, "VLCS"),
    "PACS": (tuple("ACPS"), 7, 9_991, 5001, 300, "PACS"),
    "OfficeHome": (tuple("ACPR"), 65, 15_588, 5001, 300, "office_home"),
    "TerraIncognita": (("L100", "L38", "L43", "L46"), 10, 24_788, 5001, 300, "terra_incognita"),
    "DomainNet": (
        ("clip", "info", "paint", "quick", "real", "sketch"),
        *(345, 586_575, 5001, 1000, "domain_net"),
    ),
}


@pytest.mark.parametrize("name", list(DATASETS))
def test_metadata_is_complete(name):
    cls = DATASETS[name]
    info = cls.info
    assert all([info.source, info.licence, info.citation])
    if info.classes is not None:
        assert len(info.classes) == info.num_classes
    assert len(set(info.domains)) == len(info.domains)


@pytest.mark.parametrize("name", list(PUBLISHED))
def test_metadata_is_the_published_one(name):
    cls = DATASETS[name]
    facts = (cls.ENVIRONMENTS, cls.info.num_classes, sum(cls.info.images))
    assert (*facts, cls.N_STEPS, cls.CHECKPOINT_FREQ, cls.info.folder) == PUBLISHED[name]


def test_what_systems_and_tools_leave_is_no_image_domain_or_class(tmp_path):
    root = write_images(tmp_path / "d")
    image = (root / "a/cat/0.png").read_bytes()
    cache = root / "cache"
    for folder in ("a/cat/@eaDir/0.png", "a/$RECYCLE.BIN", "lost+found/x", "b/__MACOSX", "cache/c"):
        (root / folder).mkdir(parents=True)
        (root / folder / "SYNOPHOTO_THUMB_M.png").write_bytes(image)
    (cache / "CACHEDIR.TAG").write_text("")
    dataset = load_dataset(f"folder:{root}", "data", [0], {}, 0)
    assert dataset.ENVIRONMENTS == ("a", "b")
    assert [len(domain) for domain in dataset] == [4, 4]
    assert verify_dataset(f"folder:{root}", tmp_path).images == 8


def test_a_class_in_two_unicode_forms_is_one(tmp_path):
    composed, decomposed = "caf\u00e9", "cafe\u0301"
    root = write_images(tmp_path / "d", ("a",), (composed, "dog"))
    write_images(root, ("b",), (decomposed, "dog"), per_class=3)
    dataset = load_dataset(f"folder:{root}", "data", [0], {}, 0)
    assert dataset.classes == [composed, "dog"]
    assert [domain.targets for domain in dataset] == [[0, 0, 1, 1], [0, 0, 0, 1, 1, 1]]
    counts = verify_dataset(f"folder:{root}", tmp_path).counts
    assert counts == {"a": {composed: 2, "dog": 2}, "b": {composed: 3, "dog": 3}}
    (root / "a" / decomposed).mkdir()
    with pytest.raises(UserError, match="two Unicode forms"):
        get_dataset_class(f"folder:{root}")("data", [0], {})


def test_skipping_corrupt_images_empties_no_class(tmp_path):
    machine = RunOptions(data_dir=str(tmp_path), num_workers=0)
    hparams = {"corrupt_images": "skip", "resnet18": True, "weights": "none"}
    for name, corrupt in (("some", "0"), ("all", "01234")):
        root = write_images(tmp_path / name, per_class=5)
        for image in corrupt:
            (root / f"b/dog/{image}.png").write_bytes(b"")
        spec = RunSpec.create(f"folder:{root}", "ERM", [0], steps=1, hparams=hparams)
        if name == "some":
            assert [domain.unreadable for domain in build(spec, machine).domains] == [[], [5]]
            continue
        with pytest.raises(UserError, match=r"domain 1 .*no image of class 'dog' can be read"):
            build(spec, machine)


def test_nothing_follows_from_the_name_of_a_folder(tmp_path):
    for name in ("RotatedMNIST", "DomainNet", "VLCS", "other"):
        write_images(tmp_path / name)
    specs = [
        RunSpec.create(f"folder:{tmp_path / name}", "RDM", [0], hparams_seed=1)
        for name in ("RotatedMNIST", "DomainNet", "VLCS", "other")
    ]
    for spec in specs:
        assert spec.hparams == specs[-1].hparams
        assert (spec.steps, spec.checkpoint_freq) == (5001, 300)
        assert spec.tolerance_ratio == 1.3
