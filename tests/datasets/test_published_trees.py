"""WILDS and Spawrious from small copies: which image is of which domain and class, in order."""

from __future__ import annotations

import csv
import shutil
from collections import Counter

import pytest
import small_copies
import torch
from small_copies import (
    BREEDS,
    CAMELYON_IMAGES,
    COPIES,
    FMOW_IMAGES,
    SPAWRIOUS_CORRELATED,
    SPAWRIOUS_IN_FOLDER,
    SPAWRIOUS_SETS,
    fmow_rows,
    write_copy,
)

from domainbed.algorithms import Algorithm
from domainbed.datasets import DATASETS, load_dataset
from domainbed.datasets.images.dataset_files import read_image
from domainbed.datasets.images.transforms import evaluation_transform, training_transform
from domainbed.errors import UserError
from domainbed.spec import RunSpec
from domainbed.sweeps.config import load_config
from domainbed.training.experiment import Experiment
from domainbed.training.sampling import split_domains


@pytest.fixture(autouse=True)
def small_numbers(monkeypatch):
    small_copies.shrink(monkeypatch)


def load(name, data_dir, **hparams):
    return load_dataset(name, str(data_dir), [0], hparams, trial_seed=0)


def images_of(dataset, root):
    """Per domain: paths below `root`, and the names of the classes."""
    return [
        [
            (file.relative_to(root).as_posix(), dataset.classes[label])
            for file, label in zip(domain.files, domain.targets, strict=True)
        ]
        for domain in dataset
    ]


@pytest.mark.parametrize("name", list(COPIES))
def test_shapes_labels_and_splits(name, tmp_path):
    write_copy(name, tmp_path)
    dataset, cls = load(name, tmp_path), DATASETS[name]
    assert len(dataset) == len(cls.ENVIRONMENTS) == len(dataset.domain_names)
    assert (dataset.num_classes, dataset.input_shape) == (cls.info.num_classes, (3, 224, 224))
    numbers = {"Waterbirds": (5001, 300), "CelebA": (30_001, 1000), "MetaShift": (5001, 300)}
    assert numbers.get(name, (5001, 100)) == (cls.N_STEPS, cls.CHECKPOINT_FREQ)
    if cls.info.images:
        assert tuple(map(len, dataset)) == cls.info.images
    splits = split_domains(dataset.datasets, [0], 0.2, 0) if dataset.out_splits is None else []
    for domain, split in zip(dataset, splits):
        assert len(split.out) == len(domain) // 5
        assert len(split.inside) == len(domain) - len(domain) // 5
    x, y = dataset[0][0]
    assert x.shape == dataset.input_shape
    assert torch.equal(x, evaluation_transform(read_image(dataset[0].files[0])))
    assert y == dataset[0].targets[0]


def test_camelyon_domains_are_hospitals_in_the_order_of_the_table(tmp_path):
    root = write_copy("WILDSCamelyon", tmp_path)
    dataset = load("WILDSCamelyon", tmp_path)
    assert [len(domain) for domain in dataset] == list(CAMELYON_IMAGES)
    expected = [[] for _ in range(5)]
    with (root / "metadata.csv").open() as stream:
        for row in csv.DictReader(stream):
            scan = f"patient_{row['patient']}_node_{row['node']}"
            path = f"patches/{scan}/patch_{scan}_x_{row['x_coord']}_y_{row['y_coord']}.png"
            label = ("normal", "tumor")[int(row["tumor"])]
            expected[int(row["center"])].append((path, label))
    assert images_of(dataset, root) == expected
    assert "patient_004" in expected[0][0][0]


def test_fmow_domains_are_regions_by_their_first_appearance(tmp_path):
    """Sequestered rows are no images, and count when images and regions are numbered."""
    root = write_copy("WILDSFMoW", tmp_path)
    dataset = load("WILDSFMoW", tmp_path)
    assert dataset.domain_names == ["Asia", "Europe", "Americas", "Africa", "Oceania", "Other"]
    for name, images in zip(dataset.domain_names, images_of(dataset, root), strict=True):
        assert images == [
            (f"images/rgb_img_{k}.png", category)
            for k, (split, category, _, region) in enumerate(fmow_rows())
            if split != "seq" and region == name
        ]
        assert len(images) == FMOW_IMAGES[name]
    assert dataset.classes == sorted(dataset.classes)
    assert len({label for domain in dataset for label in domain.targets}) == 62


def naive_spawrious(name):
    """Per domain (folder, location, breed, first images), as the published table says."""
    training, common, test = SPAWRIOUS_SETS[name]
    g, t = training.split(), test.split()
    n, own = SPAWRIOUS_IN_FOLDER, SPAWRIOUS_CORRELATED
    if name.startswith("O2O"):
        tested = [(k, t[i], BREEDS[i], n) for k in (0, 1) for i in range(4)]
        groups = [
            [(k, g[i], BREEDS[i], own[k]) for i in range(4)]
            + [(k, common, breed, n - own[k]) for breed in BREEDS]
            for k in (0, 1)
        ]
    else:
        orders = (0, 1, 2, 3), (1, 0, 3, 2)
        tested = [(0, t[order[i]], BREEDS[i], n) for order in orders for i in range(4)]
        groups = [[(0, g[order[i]], BREEDS[i], n) for i in range(4)] for order in orders]
    return [tested, *groups]


@pytest.mark.parametrize("name", list(SPAWRIOUS_SETS))
def test_spawrious_is_the_published_combination(name, tmp_path):
    root = write_copy("SpawriousO2O_easy", tmp_path)
    dataset = load(f"Spawrious{name}", tmp_path)
    expected = [
        [
            (f"{folder}/{location}/{breed}/{breed}_{k}.png", breed)
            for folder, location, breed, number in parts
            for k in range(number)
        ]
        for parts in naive_spawrious(name)
    ]
    assert images_of(dataset, root) == expected
    assert dataset.classes == ["bulldog", "corgi", "dachshund", "labrador"]
    assert dataset.domain_names == ["Test", "SC_group_1", "SC_group_2"]
    for domain in dataset:
        assert set(Counter(domain.targets).values()) == {len(domain) // 4}
    assert not {*dataset[0].files} & {*dataset[1].files, *dataset[2].files}


def test_published_numbers_of_spawrious(monkeypatch):
    monkeypatch.undo()
    for name in SPAWRIOUS_SETS:
        cls = DATASETS[f"Spawrious{name}"]
        assert cls.info.images == (25_344, 12_672, 12_672)
        numbers = [{number for _, _, number in parts} for parts in cls.parts()]
        o2o = [{None}, {3_072, 96}, {2_756, 412}]
        assert numbers == (o2o if name.startswith("O2O") else [{None}, {3_168}, {3_168}])


class TestAugmentation:
    def experiment(self, name, data_dir, test_envs, **fields):
        hparams = {"batch_size": 3, **fields.pop("hparams", {})}
        spec = RunSpec.create(name, "ERM", test_envs, hparams=hparams, **fields)
        dataset = load(name, data_dir)
        splits = split_domains(dataset.datasets, test_envs, 0.2, 0)
        cpu = torch.device("cpu")
        algorithm = Algorithm(dataset.input_shape, dataset.num_classes, 2, {})
        return Experiment(
            *(spec, cpu, dataset, list(dataset), splits, algorithm),
            **{"workers": 0, "facts": algorithm.facts, "data_dir": ""},
        )

    @pytest.mark.parametrize(("test_env", "training"), [(0, (1, 2)), (1, (0, 2)), (2, (0, 1))])
    def test_groups_always_and_the_test_domain_never(self, test_env, training, tmp_path):
        write_copy("SpawriousM2M_hard", tmp_path)
        experiment = self.experiment("SpawriousM2M_hard", tmp_path, [test_env])
        assert experiment.augmented_envs == [1, 2]
        (minibatches,) = experiment.minibatches(range(1))
        for env, (x, _) in zip(training, minibatches, strict=True):
            draws = experiment._draws(env, experiment.splits[env].inside)
            (plain,) = experiment.domains[env].evaluation_batches(draws.at(0).tolist())
            assert torch.equal(x, plain[0]) == (env == 0)

    def test_none_where_it_is_off(self, tmp_path):
        write_copy("SpawriousM2M_hard", tmp_path)
        hparams = {"data_augmentation": False}
        experiment = self.experiment("SpawriousM2M_hard", tmp_path, [0], hparams=hparams)
        assert experiment.augmented_envs == []

    def test_of_wilds_the_training_domains(self, tmp_path):
        write_copy("WILDSCamelyon", tmp_path)
        assert self.experiment("WILDSCamelyon", tmp_path, [1, 3]).augmented_envs == [0, 2, 4]

    @pytest.mark.parametrize(
        ("name", "crop"), [("WILDSFMoW", "resized"), ("SpawriousO2O_hard", "none")]
    )
    @pytest.mark.parametrize("path", ["exact", "fast"])
    def test_what_is_cropped(self, name, crop, path, tmp_path):
        write_copy(name, tmp_path)
        domain = load(name, tmp_path, data_path=path)[1]
        assert domain.crop == crop
        if path == "exact":
            torch.manual_seed(3)
            x, _ = domain.read(0, augment=True)
            torch.manual_seed(3)
            assert torch.equal(x, training_transform(read_image(domain.files[0]), crop))


def test_sweeps_test_on_the_first_domain_of_spawrious():
    fields = {"datasets": ["SpawriousO2O_hard"], "algorithms": ["ERM"], "hparams_seeds": 1}
    runs = load_config(None, {**fields, "trials": 1}).plan()
    assert [run.test_envs for run in runs] == [(0,), (0, 1), (0, 2)]
    chosen = load_config(None, {**fields, "trials": 1, "test_envs": [[1], [1, 2]]}).plan()
    assert [run.test_envs for run in chosen] == [(1,), (1, 2)]


class TestErrors:
    def refused(self, name, data_dir):
        with pytest.raises(UserError) as error:
            load(name, data_dir)
        assert "\n" not in str(error.value)
        return str(error.value)

    @pytest.mark.parametrize("name", list(COPIES))
    def test_not_there(self, name, tmp_path):
        folder = DATASETS[name].info.folder
        text = self.refused(name, tmp_path)
        assert f"dataset {name} is not in {str(tmp_path / folder)!r} (no such folder)" in text
        assert f"`domainbed data download {name} --data_dir {tmp_path}`" in text
        (tmp_path / folder / "other").mkdir(parents=True)
        assert f"(it holds other files): expected {DATASETS[name].layout}" in self.refused(
            name, tmp_path
        )

    def test_images_are_missing(self, tmp_path):
        root = write_copy("WILDSCamelyon", tmp_path)
        lost = sorted(root.glob("patches/*/*.png"))[2:4]
        for file in lost:
            file.unlink()
        text = self.refused("WILDSCamelyon", tmp_path)
        assert f"2 of 35 images that metadata.csv lists are not there, {lost[0].name}" in (
            text.replace(f"{lost[0].parent.relative_to(root)}/", "")
        )
        shutil.rmtree(root / "patches" / lost[0].parent.name)
        assert "of 35 images that metadata.csv lists are not there" in self.refused(
            "WILDSCamelyon", tmp_path
        )

    def test_a_folder_of_spawrious_is_too_small(self, tmp_path):
        root = write_copy("SpawriousM2M_easy", tmp_path)
        (root / "0" / "desert" / "bulldog" / "bulldog_1.png").unlink()
        text = self.refused("SpawriousM2M_easy", tmp_path)
        assert "is incomplete: 0/desert/bulldog has 4 images, expected 5; get it" in text
        load("SpawriousM2M_hard", tmp_path)  # which does not use it
        shutil.rmtree(root / "0" / "jungle")
        assert "0/jungle/dachshund has 0 images, expected 1; " in self.refused(
            "SpawriousM2M_easy", tmp_path
        )
        assert "; and 2 more; get it" in self.refused("SpawriousM2M_easy", tmp_path)

    @pytest.mark.parametrize(
        ("name", "file", "old", "new", "message"),
        [
            ("WILDSCamelyon", "metadata.csv", b"tumor", b"label", "columns patient, .*'tumor'"),
            ("WILDSCamelyon", "metadata.csv", b",004,0,", b",004,left,", "cannot be read"),
            ("WILDSCamelyon", "metadata.csv", b",0,0,0,0\n", b",3,0,0,0\n", "0 or 1 in the"),
            ("WILDSFMoW", "rgb_metadata.csv", b"category_61", b"category_60", "has 61 classes"),
            (
                "WILDSFMoW",
                "country_code_mapping.csv",
                b"Oceania",
                b"Asia",
                "has 5 domains .* but 6 were published",
            ),
            ("WILDSFMoW", "rgb_metadata.csv", b"country_code", b"\xff\xfe", "cannot be read"),
        ],
    )
    def test_damaged_tables(self, name, file, old, new, message, tmp_path):
        table = write_copy(name, tmp_path) / file
        assert old in table.read_bytes()
        table.write_bytes(table.read_bytes().replace(old, new))
        with pytest.raises(UserError, match=message) as error:
            load(name, tmp_path)
        assert "\n" not in str(error.value)

    def test_a_table_is_missing(self, tmp_path):
        root = write_copy("WILDSFMoW", tmp_path)
        (root / "country_code_mapping.csv").unlink()
        assert "country_code_mapping.csv cannot be read as a table" in self.refused(
            "WILDSFMoW", tmp_path
        )
