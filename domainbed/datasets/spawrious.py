"""Spawrious (Lynch et al. 2023, arXiv 2303.05470): dogs whose background gives them away.

The image folders are `<0 or 1>/<location>/<breed>`. In the two training groups a breed goes with
a location; in the test domain it goes with one of the others. In the one-to-one sets (O2O) both
groups show a breed in the same place, with a share of images in a place that all breeds have in
common; in the many-to-many sets (M2M) two breeds change places between the groups.

Where a part of a folder is used, it is the first images in name order. DomainBed takes the first
that the file system happens to list, which differs from disk to disk.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from domainbed.config.dataset_info import DatasetInfo
from domainbed.core.image_files import images
from domainbed.core.names import DATASET_DOMAINS, TEST_DOMAINS
from domainbed.datasets.base import DATASETS
from domainbed.datasets.image_folders import Contents, PublishedTree

BREEDS = ("bulldog", "dachshund", "labrador", "corgi")
"""In the order of the locations below, which is that of the images in a domain."""

CLASSES = ("bulldog", "corgi", "dachshund", "labrador")
LOCATIONS = ("beach", "desert", "dirt", "jungle", "mountain", "snow")
IN_FOLDER = 3168
"""Images of a breed at a location in one of the folders 0 and 1."""


Part = tuple[str, str, int | None]
"""A breed's folder, the breed, and how many of its first images; None for all of them."""


class _Spawrious(PublishedTree):
    """What the six sets share."""

    crop = "none"
    layout = "the folders 0 and 1 with <location>/<breed>/<image>"
    augmented_domains = (1, 2)
    test_domains = TEST_DOMAINS["SpawriousO2O_easy"]
    ENVIRONMENTS = DATASET_DOMAINS["SpawriousO2O_easy"]
    info = DatasetInfo(
        domains=ENVIRONMENTS,
        classes=CLASSES,
        num_classes=4,
        images=(8 * IN_FOLDER, 4 * IN_FOLDER, 4 * IN_FOLDER),
        source="https://www.dropbox.com/s/e40j553480h3f3s/spawrious224.tar.gz",
        licence="MIT (of the authors' repository; of the images not verified)",
        citation="Lynch et al., Spawrious, arXiv 2303.05470",
        folder="spawrious224",
        note="only the domain Test is a test: the groups differ in what misleads, not in the task",
    )
    training: ClassVar[Sequence[str]]
    """The location of each breed."""
    testing: ClassVar[Sequence[str]]

    @classmethod
    @abstractmethod
    def parts(cls) -> Sequence[Sequence[Part]]:
        """What each domain is made of, in order."""

    @classmethod
    def holds(cls, folder: Path) -> bool:
        return any((folder / "0" / location).is_dir() for location in LOCATIONS)

    @classmethod
    def contents(cls, folder: Path) -> Contents:
        found, missing = [], []
        for parts in cls.parts():
            domain: list[tuple[Path, int]] = []
            for place, breed, number in parts:
                files, least = images(folder / place), number or 1
                if len(files) < least:
                    missing.append(f"{place} has {len(files):,} images, expected {least:,}")
                domain += [(file, CLASSES.index(breed)) for file in files[:number]]
            found.append(domain)
        more = f"; and {len(missing) - 3} more" if len(missing) > 3 else ""
        return Contents(cls.ENVIRONMENTS, CLASSES, found, "; ".join(missing[:3]) + more)


class _OneToOne(_Spawrious):
    correlated: ClassVar[tuple[int, int]] = (3072, 2756)
    """Images of a breed at its location, in either group; the others of it are at `common`."""
    common: ClassVar[str]

    @classmethod
    def parts(cls) -> Sequence[Sequence[Part]]:
        test = [part for k in (0, 1) for part in _parts(k, cls.testing, None)]
        groups = [
            _parts(k, cls.training, own) + _parts(k, [cls.common] * 4, IN_FOLDER - own)
            for k, own in enumerate(cls.correlated)
        ]
        return [test, *groups]


class _ManyToMany(_Spawrious):
    @classmethod
    def parts(cls) -> Sequence[Sequence[Part]]:
        test = [part for k in (0, 1) for part in _parts(0, _swapped(cls.testing, k), None)]
        return [test, *(_parts(0, _swapped(cls.training, k), IN_FOLDER) for k in (0, 1))]


def _parts(folder: int, locations: Sequence[str], number: int | None) -> list[Part]:
    """Each breed at its location."""
    return [
        (f"{folder}/{location}/{breed}", breed, number)
        for location, breed in zip(locations, BREEDS)
    ]


def _swapped(locations: Sequence[str], swap: int) -> list[str]:
    """The locations, or with neighbours in each other's place."""
    return [locations[i ^ swap] for i in range(len(locations))]


@DATASETS.register
class SpawriousO2O_easy(_OneToOne):
    """Spawrious, one to one, easy."""

    training = ("desert", "jungle", "dirt", "snow")
    common = "beach"
    testing = ("dirt", "snow", "desert", "jungle")


@DATASETS.register
class SpawriousO2O_medium(_OneToOne):
    """Spawrious, one to one, medium."""

    training = ("mountain", "beach", "dirt", "jungle")
    common = "desert"
    testing = ("jungle", "dirt", "beach", "snow")


@DATASETS.register
class SpawriousO2O_hard(_OneToOne):
    """Spawrious, one to one, hard."""

    training = ("jungle", "mountain", "snow", "desert")
    common = "beach"
    testing = ("mountain", "snow", "desert", "jungle")


@DATASETS.register
class SpawriousM2M_easy(_ManyToMany):
    """Spawrious, many to many, easy."""

    training = ("desert", "mountain", "dirt", "jungle")
    testing = ("dirt", "jungle", "mountain", "desert")


@DATASETS.register
class SpawriousM2M_medium(_ManyToMany):
    """Spawrious, many to many, medium."""

    training = ("beach", "snow", "mountain", "desert")
    testing = ("desert", "mountain", "beach", "snow")


@DATASETS.register
class SpawriousM2M_hard(_ManyToMany):
    """Spawrious, many to many, hard."""

    training = ("dirt", "jungle", "snow", "beach")
    testing = ("snow", "beach", "dirt", "jungle")
