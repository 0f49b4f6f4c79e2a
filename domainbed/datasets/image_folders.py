"""Datasets of natural images in a folder: the published ones, and any folder of a user's own.

Most are stored as `<folder>/<domain>/<class>/<image>`.
"""

import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import Field

from domainbed.config.run_fields import DataFields
from domainbed.core.image_files import (
    IMAGE_EXTENSIONS,
    class_folders,
    folder_names,
    ignored,
    images,
)
from domainbed.core.names import dataset_label
from domainbed.core.settings import Listed, Settings, load
from domainbed.datasets.base import MultipleDomainDataset, published
from domainbed.datasets.image_domains import ImageDomain
from domainbed.datasets.images.transforms import IMAGE_SIZE, Crop
from domainbed.datasets.rows import by_roles
from domainbed.errors import UserError, in_shell


@dataclass(frozen=True)
class Contents:
    """The images that lie in a folder.

    Attributes:
        domains: names, in order.
        classes: names, in order.
        images: per domain the files that are there, and their labels.
        missing: what is missing, in one line; "" for nothing.
        roles: what is known of the images beside their labels, see `rows.by_roles`.
    """

    domains: Sequence[str]
    classes: Sequence[str]
    images: Sequence[Sequence[tuple[Path, int]]]
    missing: str = ""
    roles: Mapping[str, Sequence[Sequence[str]]] = field(default_factory=dict)

    def by_class(self) -> dict[str, dict[str, list[Path]]]:
        """The files of each class that a domain has images of."""
        found: dict[str, dict[str, list[Path]]] = {name: {} for name in self.domains}
        for name, own in zip(self.domains, self.images):
            for file, label in own:
                found[name].setdefault(self.classes[label], []).append(file)
        return found


class ImageDataset(MultipleDomainDataset):
    """A dataset of image files, with their published preprocessing.

    Attributes:
        crop: what the training augmentation crops.
    """

    shareable = True
    reads_images = True
    input_shape = (3, IMAGE_SIZE, IMAGE_SIZE)
    crop: ClassVar[Crop] = "image"

    @classmethod
    def locate(cls, root: str) -> Path:
        """Where the dataset lies below the data folder `root`."""
        assert cls.info is not None
        return Path(root) / cls.info.folder

    def _absent(self, folder: Path, found: str, expected: str) -> UserError:
        found = found if os.path.isdir(folder) else "no such folder"
        return UserError(
            f"dataset {type(self).__name__} is not in {str(folder)!r} ({found}): expected "
            f"{expected}; {self._remedy(folder)}"
        )

    def _take(self, folder: Path, contents: Contents, remedy: str = "") -> None:
        """Makes the domains, if there are as many of them, and of classes, as were published."""
        place = f"dataset {type(self).__name__} in {str(folder)!r}"
        if contents.missing:
            raise UserError(f"{place} is incomplete: {contents.missing}; {remedy}")
        if self.info is not None:
            for what, here, published in (
                ("domains", contents.domains, len(self.info.domains)),
                ("classes", contents.classes, self.info.num_classes),
            ):
                if len(here) != published:
                    raise UserError(
                        f"{place} has {len(here)} {what} ({', '.join(here[:12])}), but {published} "
                        f"were published: {remedy}"
                    )
        self.domain_names, self.classes = list(contents.domains), list(contents.classes)
        self.num_classes = len(self.classes)
        vars(self).update(by_roles(contents.roles))
        self.datasets = [
            ImageDomain([file for file, _ in own], [label for _, label in own], self.crop)
            for own in contents.images
        ]

    def _remedy(self, folder: Path) -> str:
        if self.info is None:
            return "give the folder that holds two or more domains"
        return (
            f"get it with `domainbed data download {type(self).__name__} --data_dir "
            f"{in_shell(folder.parent)}`, or give the folder that holds it as --data_dir"
        )


class ImageFolderDataset(ImageDataset):
    """Images in `<domain>/<class>/`; domains and classes are the sorted names of the folders.

    Raises:
        UserError: no such folder, fewer than two domains, domains with different classes, a
            class without images, or more or fewer domains or classes than were published.
    """

    CHECKPOINT_FREQ = 300
    names: ClassVar[DataFields] = DataFields()

    def __init__(self, root: str, test_envs: Sequence[int], hparams: Mapping[str, Any]) -> None:
        folder = self.locate(root)
        domains, options = folder_names(folder) if os.path.isdir(folder) else [], self.names
        if len(domains) < 2:
            found = f"found {len(domains)} domain folder(s)"
            raise self._absent(folder, found, "<domain>/<class>/<image> below it")
        places = class_places(folder, domains, options.meant)
        classes = _common_classes(folder, places, options.missing_classes == "allow")
        listed = [_listed(folder / name, places[name], classes) for name in domains]
        remedy = f"complete it, or use it as --dataset {in_shell(f'folder:{folder}')}"
        self._take(folder, Contents(domains, classes, listed), remedy)
        if self.info is None and (others := ignored(folder)):
            warnings.warn(f"ignored in {str(folder)!r}: {others}", stacklevel=2)


def class_places(
    root: Path, domains: Sequence[str], meant: Mapping[str, str]
) -> dict[str, dict[str, list[str]]]:
    """For each domain the folders of its classes, by the names of the classes that they mean."""
    places: dict[str, dict[str, list[str]]] = {domain: {} for domain in domains}
    for domain, own in class_folders(root, domains).items():
        for name, folder in own.items():
            places[domain].setdefault(meant.get(name, name), []).append(folder)
    return places


def _listed(
    folder: Path, places: Mapping[str, Sequence[str]], classes: Sequence[str]
) -> list[tuple[Path, int]]:
    """The images in the folders of the classes, class by class and within one in name order."""
    found: list[tuple[Path, int]] = []
    for label, name in enumerate(classes):
        files = [file for place in places.get(name, ()) for file in images(folder / place)]
        if name in places and not files:
            raise UserError(
                f"no images of class {name!r} in {folder / name}: expected files ending in "
                + ", ".join(IMAGE_EXTENSIONS)
            )
        found += [(file, label) for file in files]
    return found


def _common_classes(
    root: Path, places: Mapping[str, Mapping[str, Sequence[str]]], may_lack: bool
) -> list[str]:
    """The classes, which every domain must have: labels are positions in this one list."""
    per_domain = {domain: sorted(own) for domain, own in places.items()}
    classes = sorted(set().union(*per_domain.values()))
    lacking = [
        f"domain {domain!r} lacks {', '.join(sorted(set(classes) - set(own)))}"
        for domain, own in per_domain.items()
        if own != classes
    ]
    if lacking and not may_lack:
        raise UserError(
            f"the domains in {str(root)!r} have different classes: {'; '.join(lacking)}. Add the "
            f"missing folders, remove those classes from all domains, {ALLOW_MISSING}"
        )
    if not classes:
        raise UserError(
            f"no class folders in {root / next(iter(places))}: expected <domain>/<class>/<image>"
        )
    return classes


ALLOW_MISSING = "name what means one class in 'classes', or set missing_classes to allow"


class _Folder(Settings):
    """A user's own folder of images, as a YAML file describes it."""

    path: str = Field("", description="from the file's own folder")
    steps: int = Field(ImageFolderDataset.N_STEPS, ge=1)
    checkpoint_freq: int = Field(ImageFolderDataset.CHECKPOINT_FREQ, ge=1)
    test_domains: Listed[Annotated[int, Field(ge=0)]] | None = None


def folder_dataset(name: str, options: DataFields) -> type[ImageFolderDataset]:
    """The dataset class of a user's own images, without code.

    Args:
        name: `folder:PATH`, or the path of a YAML file with `path` (from the file's own folder)
            and, if wanted, `steps`, `checkpoint_freq`, and the list `test_domains`.
        options: the names of classes in the data, and whether domains may lack some.

    Raises:
        UserError: the folder or the file does not exist, or the file has other fields.
    """
    if options.columns:
        raise UserError(f"{name!r} is a folder, which has no columns: leave them out", "columns")
    if name == "folder:":
        raise UserError("dataset 'folder:' names no folder: write 'folder:PATH'", "dataset")
    if name.startswith("folder:"):
        fields, start = _Folder(path=name.removeprefix("folder:")), Path()
    else:
        fields, start = load(_Folder, name), Path(name).parent
        if not fields.path:
            raise UserError(f"{name}: expected the field 'path' with the folder of the images")
    path = (start / Path(fields.path).expanduser()).resolve()
    if not os.path.isdir(path):
        what = "is not a folder" if os.path.exists(path) else "does not exist"
        raise UserError(
            f"dataset folder {str(path)!r} {what}: give the one that holds <domain>/<class>/<image>"
        )
    attributes = {
        "locate": classmethod(lambda cls, root: path),
        "ENVIRONMENTS": tuple(folder_names(path)),
        "N_STEPS": fields.steps,
        "CHECKPOINT_FREQ": fields.checkpoint_freq,
        "test_domains": fields.test_domains,
        "names": options,
        "__doc__": f"The images in {path}.",
    }
    return type(dataset_label(name), (ImageFolderDataset,), attributes)


@published
class VLCS(ImageFolderDataset):
    """Photographs from four collections."""


@published
class PACS(ImageFolderDataset):
    """Photographs and three styles of drawing."""


@published
class OfficeHome(ImageFolderDataset):
    """Everyday objects of office and home."""


@published
class TerraIncognita(ImageFolderDataset):
    """Camera traps at four locations."""


@published
class DomainNet(ImageFolderDataset):
    """Six styles of image, 345 classes."""

    CHECKPOINT_FREQ: ClassVar[int] = 1000


@published
class SVIRO(ImageFolderDataset):
    """Synthetic greyscale images of the rear seats of ten cars: who or what sits there."""
