"""TerraIncognita: four locations and ten categories of the Caltech Camera Traps.

Beery, Van Horn, Perona, ECCV 2018, in the subset of Gulrajani and Lopez-Paz 2021, appendix.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from domainbed.core.files import regular
from domainbed.core.image_files import is_image
from domainbed.download.found import Found, Unusable
from domainbed.errors import one_line

if TYPE_CHECKING:
    from domainbed.config.dataset_info import DatasetInfo

_PARTS = ("cis_test", "cis_val", "train", "trans_test", "trans_val")
ANNOTATIONS = tuple(f"{part}_annotations.json" for part in _PARTS)


def find_annotations(roots: Iterable[Path]) -> list[Path]:
    """The five annotation files below `roots`, or nothing unless all are there."""
    files = {file.name: file for root in roots for file in root.rglob("*_annotations.json")}
    return [files[name] for name in ANNOTATIONS] if set(ANNOTATIONS) <= set(files) else []


def subset(
    annotations: Iterable[Path], roots: Iterable[Path], info: DatasetInfo, notes: list[str]
) -> Iterator[Found] | None:
    """The images of the kept locations and categories, or None if there are no images.

    An image that is annotated with several kept categories lies in the folder of each, as in
    DomainBed. `notes` gets their number, and that of annotated images without a file.
    """
    files = {file.name: file for root in roots for file in root.rglob("*") if is_image(file.name)}
    if not files:
        return None
    return _labelled(_labels(annotations, info), files, notes)


def _labels(annotations: Iterable[Path], info: DatasetInfo) -> dict[tuple[str, str], set[str]]:
    """Domain and file name of each image, to its kept categories; in one pass over each file."""
    labels: dict[tuple[str, str], set[str]] = {}
    for file in annotations:
        try:
            pairs = _annotated(json.loads(regular(file).read_text(encoding="utf-8")))
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise Unusable(f"{file.name} is no annotation file ({one_line(error)})") from error
        for image, category in pairs:
            if image[0] in info.domains and category in (info.classes or ()):
                labels.setdefault(image, set()).add(category)
    return labels


def _annotated(table: dict[str, Any]) -> list[tuple[tuple[str, str], str]]:
    """Domain and file name, and a category, for each annotation of a file."""
    names = {category["id"]: category["name"] for category in table["categories"]}
    images = {
        image["id"]: (f"location_{image['location']}", Path(image["file_name"]).name)
        for image in table["images"]
    }
    return [
        (images[annotation["image_id"]], names[annotation["category_id"]])
        for annotation in table["annotations"]
        if annotation["image_id"] in images
    ]


def _labelled(
    labels: dict[tuple[str, str], set[str]], files: dict[str, Path], notes: list[str]
) -> Iterator[Found]:
    several = missing = 0
    for (domain, name), categories in sorted(labels.items()):
        if name not in files:
            missing += 1
            continue
        several += len(categories) > 1
        for category in sorted(categories):
            yield Found(domain, category, name, files[name])
    notes.append(f"{several:,} images have several of the categories and lie in each folder")
    if missing:
        notes.append(f"{missing:,} annotated images have no file")
