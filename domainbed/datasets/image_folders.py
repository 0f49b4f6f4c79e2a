"""Datasets of natural images that lie as `<folder>/<domain>/<class>/<image>`.

The five published ones, and any folder of a user's own.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch.utils.data import Dataset

from domainbed.config.dataset_info import DatasetInfo
from domainbed.core.image_files import IMAGE_EXTENSIONS, folder_names, ignored, images
from domainbed.core.names import DATASET_DOMAINS, dataset_label
from domainbed.core.yaml_file import read_yaml
from domainbed.datasets.base import DATASETS, MultipleDomainDataset
from domainbed.datasets.images.decode import read_image
from domainbed.datasets.images.resize import IMAGE_SIZE
from domainbed.datasets.images.transforms import Crop, evaluation_transform, training_transform
from domainbed.datasets.loaded_domain import LoadedDomain
from domainbed.errors import UserError


class ImageDomain(LoadedDomain, Dataset[tuple[torch.Tensor, int]]):
    """The images of one domain; also a PyTorch dataset of them, not augmented.

    Attributes:
        files: their paths.
        targets: their labels.
        crop: what the training augmentation cuts a part out of.
    """

    def __init__(self, files: Sequence[Path], targets: Sequence[int], crop: Crop = "image") -> None:
        self.files, self.targets, self.crop = list(files), list(targets), crop

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.read(index, augment=False)

    @cached_property
    def labels(self) -> torch.Tensor:
        return torch.tensor(self.targets)

    def augmented(self, index: int) -> tuple[torch.Tensor, int]:
        """As `[index]`, with the training augmentation."""
        return self.read(index, augment=True)

    def read(self, index: int, augment: bool) -> tuple[torch.Tensor, int]:
        image = read_image(self.files[index])
        x = training_transform(image, self.crop) if augment else evaluation_transform(image)
        return x, self.targets[index]


def _folder_domain(folder: Path, classes: Sequence[str]) -> ImageDomain:
    """The images in `folder/<class>/`, class by class and within a class in name order."""
    per_class = [images(folder / name) for name in classes]
    for name, files in zip(classes, per_class):
        if not files:
            raise UserError(
                f"no images of class {name!r} in {folder / name}: expected files ending in "
                + ", ".join(IMAGE_EXTENSIONS)
            )
    targets = [label for label, files in enumerate(per_class) for _ in files]
    return ImageDomain([file for files in per_class for file in files], targets)


class ImageFolderDataset(MultipleDomainDataset):
    """Domains and classes are the sorted names of the folders.

    Raises:
        UserError: no such folder, fewer than two domains, domains with different classes, a
            class without images, or more or fewer domains or classes than were published.
    """

    CHECKPOINT_FREQ = 300
    shareable = True
    reads_images = True
    input_shape = (3, IMAGE_SIZE, IMAGE_SIZE)

    def __init__(self, root: str, test_envs: Sequence[int], hparams: Mapping[str, Any]) -> None:
        self.root = self.locate(root)
        self.domain_names = folder_names(self.root) if os.path.isdir(self.root) else []
        if len(self.domain_names) < 2:
            raise UserError(self._not_here())
        self.classes = _common_classes(self.root, self.domain_names)
        self.num_classes = len(self.classes)
        self._compare_with_published()
        self.datasets = [
            _folder_domain(self.root / name, self.classes) for name in self.domain_names
        ]
        if self.info is None and (others := ignored(self.root)):
            warnings.warn(f"ignored in {str(self.root)!r}: {others}", stacklevel=2)

    @classmethod
    def locate(cls, root: str) -> Path:
        """Where the dataset lies below the data folder `root`."""
        assert cls.info is not None
        return Path(root) / cls.info.folder

    def _not_here(self) -> str:
        found = (
            f"found {len(self.domain_names)} domain folder(s)" if os.path.isdir(self.root) else ""
        )
        name = type(self).__name__
        remedy = "give the folder that holds two or more domains"
        if self.info is not None:
            remedy = how_to_get(name, self.root.parent)
        return (
            f"dataset {name} is not in {str(self.root)!r} ({found or 'no such folder'}): expected "
            f"<domain>/<class>/<image> below it; {remedy}"
        )

    def _compare_with_published(self) -> None:
        if self.info is None:
            return
        for what, here, published in (
            ("domains", self.domain_names, len(self.info.domains)),
            ("classes", self.classes, self.info.num_classes),
        ):
            if len(here) != published:
                raise UserError(
                    f"dataset {type(self).__name__} in {str(self.root)!r} has {len(here)} {what} "
                    f"({', '.join(here[:12])}), but {published} were published: complete it, or "
                    f"use it as --dataset folder:{self.root}"
                )


def how_to_get(name: str, data_dir: Path) -> str:
    """What to do where a published dataset is not in the data folder."""
    return (
        f"get it with `domainbed data download {name} --data_dir {data_dir}`, or give the folder "
        "that holds it as --data_dir"
    )


def _common_classes(root: Path, domains: Sequence[str]) -> list[str]:
    """The classes, which every domain must have: labels are positions in this one list."""
    per_domain = {domain: folder_names(root / domain) for domain in domains}
    classes = sorted(set().union(*per_domain.values()))
    lacking = [
        f"domain {domain!r} lacks {', '.join(sorted(set(classes) - set(own)))}"
        for domain, own in per_domain.items()
        if own != classes
    ]
    if lacking:
        raise UserError(
            f"the domains in {str(root)!r} have different classes: {'; '.join(lacking)}. Add the "
            "missing folders, or remove those classes from all domains"
        )
    if not classes:
        raise UserError(
            f"no class folders in {root / domains[0]}: expected <domain>/<class>/<image>"
        )
    return classes


def folder_dataset(name: str) -> type[ImageFolderDataset]:
    """The dataset class of a user's own images, without code.

    Args:
        name: `folder:PATH`, or the path of a YAML file with `path` (from the file's own folder)
            and, if wanted, `steps`, `checkpoint_freq`, and the list `test_domains`.

    Raises:
        UserError: the folder or the file is not there, or the file has other fields.
    """
    if name == "folder:":
        raise UserError("dataset 'folder:' names no folder: write 'folder:PATH'", "dataset")
    if name.startswith("folder:"):
        return _folder_class(dataset_label(name), {"path": Path(name.removeprefix("folder:"))})
    fields, lines = read_yaml(name)
    if not isinstance(fields, dict) or not isinstance(fields.get("path"), str):
        raise UserError(f"{name}: expected the field 'path' with the folder of the images")
    for field, value in fields.items():
        counts = field in ("steps", "checkpoint_freq") and _is_count(value, 1)
        lists = field == "test_domains" and isinstance(value, list) and value
        if field != "path" and not counts and not (lists and all(_is_count(v, 0) for v in value)):
            raise UserError(
                f"{name}, line {lines[(field,)]}: {field!r} is {value!r}: expected 'path', "
                "'steps' and 'checkpoint_freq' with whole numbers from 1 on, and 'test_domains' "
                "with a list of numbers of domains"
            )
    path = Path(name).parent / Path(fields["path"]).expanduser()
    return _folder_class(dataset_label(name), {**fields, "path": path})


def _is_count(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _folder_class(name: str, fields: Mapping[str, Any]) -> type[ImageFolderDataset]:
    path = fields["path"].expanduser().resolve()
    if not os.path.isdir(path):
        what = "is no folder" if os.path.exists(path) else "does not exist"
        raise UserError(
            f"dataset folder {str(path)!r} {what}: give the one that holds <domain>/<class>/<image>"
        )
    attributes = {
        "locate": classmethod(lambda cls, root: path),
        "ENVIRONMENTS": tuple(folder_names(path)),
        "N_STEPS": fields.get("steps", ImageFolderDataset.N_STEPS),
        "CHECKPOINT_FREQ": fields.get("checkpoint_freq", ImageFolderDataset.CHECKPOINT_FREQ),
        "test_domains": fields.get("test_domains"),
        "__doc__": f"The images in {path}.",
    }
    return type(name, (ImageFolderDataset,), attributes)


@DATASETS.register
class VLCS(ImageFolderDataset):
    """Photographs from four collections."""

    ENVIRONMENTS = DATASET_DOMAINS["VLCS"]
    info = DatasetInfo(
        domains=("Caltech101", "LabelMe", "SUN09", "VOC2007"),
        classes=("bird", "car", "chair", "dog", "person"),
        num_classes=5,
        images=(1_415, 2_656, 3_282, 3_376),
        source="Google Drive file 1skwblH1_okBwxWxmRsp9_qi15hyPpxg8 (VLCS.tar.gz)",
        licence="terms of the four source datasets; research use",
        citation="Fang, Xu, Rockmore, Unbiased Metric Learning, ICCV 2013",
        folder="VLCS",
    )


@DATASETS.register
class PACS(ImageFolderDataset):
    """Photographs and three styles of drawing."""

    ENVIRONMENTS = DATASET_DOMAINS["PACS"]
    info = DatasetInfo(
        domains=("art_painting", "cartoon", "photo", "sketch"),
        classes=("dog", "elephant", "giraffe", "guitar", "horse", "house", "person"),
        num_classes=7,
        images=(2_048, 2_344, 1_670, 3_929),
        source="Google Drive file 1JFr8f805nMUelQWWmfnJR3y4_SYoN5Pd (PACS.zip, folder kfold)",
        licence="none stated; research use",
        citation="Li et al., Deeper, Broader and Artier Domain Generalization, ICCV 2017",
        folder="PACS",
    )


@DATASETS.register
class OfficeHome(ImageFolderDataset):
    """Everyday objects of office and home."""

    ENVIRONMENTS = DATASET_DOMAINS["OfficeHome"]
    info = DatasetInfo(
        domains=("Art", "Clipart", "Product", "Real World"),
        classes=None,
        num_classes=65,
        images=(2_427, 4_365, 4_439, 4_357),
        source="Google Drive file 1uY0pj7oFsjMxRwaD3Sxy0jgel0fsYXLC "
        "(zip, folder OfficeHomeDataset_10072016)",
        licence="non-commercial research and education",
        citation="Venkateswara et al., Deep Hashing Network for Unsupervised Domain Adaptation, "
        "CVPR 2017",
        folder="office_home",
    )


@DATASETS.register
class TerraIncognita(ImageFolderDataset):
    """Camera traps at four locations."""

    ENVIRONMENTS = DATASET_DOMAINS["TerraIncognita"]
    info = DatasetInfo(
        domains=("location_100", "location_38", "location_43", "location_46"),
        classes=(
            *("bird", "bobcat", "cat", "coyote", "dog"),
            *("empty", "opossum", "rabbit", "raccoon", "squirrel"),
        ),
        num_classes=10,
        images=(4_879, 9_767, 4_020, 6_122),
        source="https://storage.googleapis.com/public-datasets-lila/caltechcameratraps/",
        licence="Community Data License Agreement, permissive variant",
        citation="Beery, Van Horn, Perona, Recognition in Terra Incognita, ECCV 2018",
        folder="terra_incognita",
        note="a later copy of the source has 24,330 images: 4,741 + 9,736 + 3,970 + 5,883",
    )


@DATASETS.register
class DomainNet(ImageFolderDataset):
    """Six styles of image, 345 classes."""

    CHECKPOINT_FREQ: ClassVar[int] = 1000
    ENVIRONMENTS = DATASET_DOMAINS["DomainNet"]
    info = DatasetInfo(
        domains=("clipart", "infograph", "painting", "quickdraw", "real", "sketch"),
        classes=None,
        num_classes=345,
        images=(48_129, 51_605, 72_266, 172_500, 172_947, 69_128),
        source="http://csr.bu.edu/ftp/visda/2019/multi-source/",
        licence="fair use; non-commercial research",
        citation="Peng et al., Moment Matching for Multi-Source Domain Adaptation, ICCV 2019",
        folder="domain_net",
        note="the raw archives hold about 9,400 images more than the official lists name",
    )


@DATASETS.register
class SVIRO(ImageFolderDataset):
    """Synthetic greyscale images of rear seats in ten cars: who or what sits there."""

    ENVIRONMENTS = DATASET_DOMAINS["SVIRO"]
    info = DatasetInfo(
        domains=ENVIRONMENTS,
        classes=None,
        num_classes=7,
        images=(),
        source="https://sviro.kl.dfki.de/ (zip, folder SVIRO_DOMAINBED)",
        licence="not verified: ask the site",
        citation="Dias Da Cruz et al., SVIRO, WACV 2020",
        folder="sviro",
        note="56,000 images (not verified); they are tall, and squeezed to a square",
    )
