"""Datasets whose images have an attribute beside the label, and whose groups are of unequal size.

Waterbirds and CelebA as in Sagawa et al., ICLR 2020 (arXiv 1911.08731), MetaShift and NICO++ as in
Yang et al., ICML 2023 (SubpopBench, arXiv 2302.12254), whose numbers of steps these are, but that
NICO++'s contexts are domains.

The first three have two domains: `train`, whose out-split are the published validation images, and
`test`, all of whose images test. So they have no split by the trial, and no oracle.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from domainbed.config.run_fields import DataFields
from domainbed.core.image_files import images
from domainbed.core.names import TEST_DOMAINS
from domainbed.datasets.base import published
from domainbed.datasets.image_folders import Contents, ImageFolderDataset
from domainbed.datasets.published_trees import PublishedTree, listed_contents, read_columns

BY_GROUP_AND_CLASS = ("accuracy", "accuracy_by_group", "accuracy_by_class")


class _Subpopulations(PublishedTree):
    """What the datasets with two domains share.

    Attributes:
        values: of the attribute, by their numbers in `rows`.
    """

    CHECKPOINT_FREQ = 300
    test_domains = TEST_DOMAINS["Waterbirds"]
    metrics = BY_GROUP_AND_CLASS
    values: ClassVar[Sequence[str]]

    @classmethod
    def contents(cls, folder: Path) -> Contents:
        assert cls.info is not None
        rows = cls.rows(folder)
        named = [(path, label, cls.ENVIRONMENTS[split == 2]) for path, label, _, split in rows]
        classes = cls.info.classes or ()
        found = listed_contents(folder, cls.files[0], named, cls.ENVIRONMENTS, classes)
        domains = [[row for row in rows if (row[3] == 2) == is_test] for is_test in (False, True)]
        roles = {
            "attribute": [[cls.values[value] for _, _, value, _ in own] for own in domains],
            "split": [["out" if split == 1 else "in" for *_, split in own] for own in domains],
        }
        return replace(found, roles=roles)

    @classmethod
    def rows(cls, folder: Path) -> Sequence[tuple[str, int, int, int]]:
        """Of each image the path, the label, the attribute, and 0, 1, 2: train, val or test."""
        raise NotImplementedError


@published
class Waterbirds(_Subpopulations):
    """Birds cut out and pasted on places, most of them where such birds live."""

    layout = "metadata.csv and the images that it lists, in folders of species"
    values, files = ("land", "water"), ("metadata.csv",)

    @classmethod
    def rows(cls, folder: Path) -> Sequence[tuple[str, int, int, int]]:
        columns = {"img_filename": str, "y": int, "place": int, "split": int}
        table = read_columns(folder / "metadata.csv", columns)
        return list(zip(*(table[name] for name in columns)))


@published
class CelebA(_Subpopulations):
    """Faces: is the hair blond? Few of the men's is."""

    N_STEPS, CHECKPOINT_FREQ = 30_001, 1000
    layout = "list_attr_celeba.txt, list_eval_partition.txt and the folder img_align_celeba"
    values, files = ("female", "male"), ("list_attr_celeba.txt", "list_eval_partition.txt")

    @classmethod
    def rows(cls, folder: Path) -> Sequence[tuple[str, int, int, int]]:
        columns = {"Blond_Hair": int, "Male": int}
        table = read_columns(folder / cls.files[0], columns, sep=r"\s+", skiprows=1)
        splits = read_columns(folder / cls.files[1], {1: int}, sep=" ", header=None)[1]
        paths = [f"img_align_celeba/{name}" for name in table.index]
        is_blond, is_male = (table[name] == 1 for name in columns)
        return list(zip(paths, is_blond.astype(int), is_male.astype(int), splits))


@published
class MetaShift(_Subpopulations):
    """Cats, most of them indoors, and dogs, most of them outdoors."""

    layout = "the folders train and test with <cat or dog>/<class>(<indoor or outdoor>)"
    values, files = ("outdoor", "indoor"), ("train/cat/cat(indoor)", "test/dog/dog(indoor)")

    @classmethod
    def rows(cls, folder: Path) -> Sequence[tuple[str, int, int, int]]:
        found = [
            (file.relative_to(folder).as_posix(), int(name == "cat"), int(place == "indoor"))
            for part, name, place in (
                ("train", "cat", "indoor"),
                ("train", "dog", "outdoor"),
                ("test", "cat", "outdoor"),
                ("test", "dog", "indoor"),
            )
            for file in images(folder / part / name / f"{name}({place})")
        ]
        n, random = len(found), np.random.RandomState(42)
        split = np.zeros(n, int)
        split[random.choice(np.arange(n), int(n / 4), replace=False)] = 2
        split[random.choice(np.flatnonzero(split == 0), int(n / 10), replace=False)] = 1
        return [(*row, number) for row, number in zip(found, split.tolist())]


@published
class NICOpp(ImageFolderDataset):
    """NICO++: objects in six contexts, which are both the domains and the attribute."""

    N_STEPS, CHECKPOINT_FREQ = 30_001, 1000
    names = DataFields(missing_classes="allow")
    metrics = BY_GROUP_AND_CLASS

    def __init__(self, root: str, test_envs: Sequence[int], hparams: Mapping[str, Any]) -> None:
        super().__init__(root, test_envs, hparams)
        self.attribute_names = self.domain_names
        self.attributes = [[e] * len(own) for e, own in enumerate(self.datasets)]  # type: ignore[arg-type]
