"""Spawrious (Lynch et al. 2023, arXiv 2303.05470): dogs whose background gives them away.

The image folders are `<0 or 1>/<location>/<breed>`. In the two training groups a breed goes with
a location; in the test domain it goes with one of the others. In the one-to-one sets (O2O) both
groups show a breed in the same place, with a share of images in a place that all breeds have in
common; in the many-to-many sets (M2M) two breeds change places between the groups.

Where a part of a folder is used, it is the first images in name order. DomainBed takes the first
that the file system happens to list, which differs from disk to disk.
"""

from __future__ import annotations

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
    """What the six sets share.

    Attributes:
        training: the location of each breed in the training groups.
        testing: the location of each breed in the test domain.
        common: of the one-to-one sets the location of all other images.
        correlated: of the one-to-one sets the images of a breed at its own location, in either
            group.
    """

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
    testing: ClassVar[Sequence[str]]
    common: ClassVar[str | None]
    correlated: ClassVar[tuple[int, int]] = (3072, 2756)

    @classmethod
    def parts(cls) -> Sequence[Sequence[Part]]:
        """What each domain is made of, in order."""
        test: list[Part] = []
        groups: list[list[Part]] = []
        for k, own in enumerate(cls.correlated):
            if cls.common is None:  # the second time, neighbours change places
                order = [number ^ k for number in range(len(BREEDS))]
                test += _parts(0, [cls.testing[i] for i in order], None)
                groups.append(_parts(0, [cls.training[i] for i in order], IN_FOLDER))
            else:
                rest = _parts(k, [cls.common] * len(BREEDS), IN_FOLDER - own)
                test += _parts(k, cls.testing, None)
                groups.append(_parts(k, cls.training, own) + rest)
        return [test, *groups]

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


def _parts(folder: int, locations: Sequence[str], number: int | None) -> list[Part]:
    """Each breed at its location."""
    return [
        (f"{folder}/{location}/{breed}", breed, number)
        for location, breed in zip(locations, BREEDS)
    ]


def _spawrious(
    name: str, training: str, testing: str, common: str | None = None
) -> type[_Spawrious]:
    """Registers one of the sets; locations are separated by spaces, in the order of the breeds."""
    kind = "many to many" if common is None else "one to one"
    attributes = {
        "__doc__": f"Spawrious, {kind}, {name.rpartition('_')[2]}.",
        "__module__": __name__,
        "training": training.split(),
        "testing": testing.split(),
        "common": common,
    }
    return DATASETS.register(type(name, (_Spawrious,), attributes))


SpawriousO2O_easy = _spawrious(
    "SpawriousO2O_easy", "desert jungle dirt snow", "dirt snow desert jungle", "beach"
)
SpawriousO2O_medium = _spawrious(
    "SpawriousO2O_medium", "mountain beach dirt jungle", "jungle dirt beach snow", "desert"
)
SpawriousO2O_hard = _spawrious(
    "SpawriousO2O_hard", "jungle mountain snow desert", "mountain snow desert jungle", "beach"
)
SpawriousM2M_easy = _spawrious(
    "SpawriousM2M_easy", "desert mountain dirt jungle", "dirt jungle mountain desert"
)
SpawriousM2M_medium = _spawrious(
    "SpawriousM2M_medium", "beach snow mountain desert", "desert mountain beach snow"
)
SpawriousM2M_hard = _spawrious(
    "SpawriousM2M_hard", "dirt jungle snow beach", "snow beach dirt jungle"
)
