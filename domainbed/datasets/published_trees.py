"""Datasets of natural images that are kept in the folders in which they were published."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from domainbed.core.image_files import entries
from domainbed.datasets.base import MultipleDomainDataset
from domainbed.datasets.image_folders import ImageDomain, how_to_get
from domainbed.datasets.images.resize import IMAGE_SIZE
from domainbed.datasets.images.transforms import Crop
from domainbed.errors import UserError


@dataclass(frozen=True)
class Contents:
    """The images that lie in a folder.

    Attributes:
        domains: names, in order.
        classes: names, in order.
        images: per domain the files that are there, and their labels.
        missing: what is not there although it should, in one line; "" for nothing.
    """

    domains: Sequence[str]
    classes: Sequence[str]
    images: Sequence[Sequence[tuple[Path, int]]]
    missing: str = ""

    def by_class(self) -> dict[str, dict[str, list[Path]]]:
        """The files of each class that a domain has images of."""
        found: dict[str, dict[str, list[Path]]] = {name: {} for name in self.domains}
        for name, images in zip(self.domains, self.images):
            for file, label in images:
                found[name].setdefault(self.classes[label], []).append(file)
        return found


class PublishedTree(MultipleDomainDataset):
    """A subclass knows where images lie, and their domains and classes.

    Raises:
        UserError: the dataset is not there, or images are missing, or it has more or fewer
            domains or classes than were published.
    """

    shareable = True
    reads_images = True
    input_shape = (3, IMAGE_SIZE, IMAGE_SIZE)
    crop: ClassVar[Crop]
    """What the training augmentation cuts a part out of."""
    layout: ClassVar[str]
    """What its folder holds, in words."""

    def __init__(self, root: str, test_envs: Sequence[int], hparams: Mapping[str, Any]) -> None:
        folder, name = self.locate(root), type(self).__name__
        remedy = how_to_get(name, folder.parent)
        if not self.holds(folder):
            found = "it holds other files" if folder.is_dir() else "no such folder"
            raise UserError(
                f"dataset {name} is not in {str(folder)!r} ({found}): expected {self.layout}; "
                f"{remedy}"
            )
        contents = self.contents(folder)
        if problem := contents.missing or self._difference(contents):
            raise UserError(f"dataset {name} in {str(folder)!r} is incomplete: {problem}; {remedy}")
        self.domain_names, self.classes = list(contents.domains), list(contents.classes)
        self.num_classes = len(self.classes)
        self.datasets = [
            ImageDomain([file for file, _ in own], [label for _, label in own], self.crop)
            for own in contents.images
        ]

    @classmethod
    def locate(cls, root: str) -> Path:
        """Where the dataset lies below the data folder `root`."""
        assert cls.info is not None
        return Path(root) / cls.info.folder

    @classmethod
    @abstractmethod
    def holds(cls, folder: Path) -> bool:
        """Whether `folder` looks like the dataset, complete or not."""

    @classmethod
    @abstractmethod
    def contents(cls, folder: Path) -> Contents:
        """What lies in `folder`.

        Raises:
            UserError: it cannot be read, or a file that describes the images is damaged.
        """

    def _difference(self, contents: Contents) -> str:
        assert self.info is not None
        for what, here, published in (
            ("domains", contents.domains, len(self.info.domains)),
            ("classes", contents.classes, self.info.num_classes),
        ):
            if len(here) != published:
                return f"{len(here)} {what}, published {published}"
        return ""


def absent(folder: Path, paths: Iterable[str]) -> set[str]:
    """Those of the paths below `folder` where no file is; lists folders, as files may be many."""
    names: dict[str, set[str]] = {}
    missing = set()
    for path in paths:
        parent, _, name = path.rpartition("/")
        if parent not in names:
            place = folder / parent
            names[parent] = {each for each, _ in entries(place)} if place.is_dir() else set()
        if name not in names[parent]:
            missing.add(path)
    return missing
