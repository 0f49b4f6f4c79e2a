"""Datasets whose images are listed in a CSV or JSON Lines file, and lie wherever they lie."""

from __future__ import annotations

import csv
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar, TextIO

from domainbed.core.files import regular
from domainbed.core.names import dataset_label
from domainbed.datasets.base import MultipleDomainDataset
from domainbed.datasets.image_folders import ImageDomain
from domainbed.datasets.images.resize import IMAGE_SIZE
from domainbed.errors import UserError

_COLUMNS = ("path", "label", "domain")
_SPLITS = {"in": "in", "train": "in", "out": "out", "val": "out"}
_EXPECTED = "expected path, label and domain, and in all lines or in none split"


@dataclass(frozen=True)
class Entry:
    """One line of a manifest; `split` is "in", "out", or empty where the trial decides."""

    line: int
    path: str
    label: str
    domain: str
    split: str


@dataclass(frozen=True)
class Manifest:
    """What a file says.

    Attributes:
        file: the manifest; relative paths of images start at its folder.
        domains: in name order.
        classes: in name order, or in numeric order where all are whole numbers.
        images: per domain, class by class and within a class in the order of the paths.
        fixes_splits: whether the file says which images validate.
    """

    file: Path
    domains: tuple[str, ...]
    classes: tuple[str, ...]
    images: tuple[tuple[Entry, ...], ...]
    fixes_splits: bool


class ManifestDataset(MultipleDomainDataset):
    """The images that a manifest lists. `manifest_dataset` makes a class of each manifest.

    Attributes:
        out_splits: per domain the positions of the images that validate, where the manifest
            says so; None where the trial decides, as it does for other datasets.

    Raises:
        UserError: an image is not there.
    """

    CHECKPOINT_FREQ = 300
    shareable = True
    reads_images = True
    input_shape = (3, IMAGE_SIZE, IMAGE_SIZE)
    manifest: ClassVar[Manifest]

    def __init__(self, root: str, test_envs: Sequence[int], hparams: Mapping[str, Any]) -> None:
        manifest = self.manifest
        _require_files(manifest)
        self.domain_names, self.classes = list(manifest.domains), list(manifest.classes)
        self.num_classes = len(self.classes)
        self.datasets = [self._domain(images) for images in manifest.images]
        if manifest.fixes_splits:
            self.out_splits = [
                [i for i, image in enumerate(images) if image.split == "out"]
                for images in manifest.images
            ]

    def _domain(self, images: Sequence[Entry]) -> ImageDomain:
        labels = {name: label for label, name in enumerate(self.classes)}
        files = [self.manifest.file.parent / image.path for image in images]
        return ImageDomain(files, [labels[image.label] for image in images])


def manifest_dataset(name: str) -> type[ManifestDataset]:
    """The dataset class of a manifest, without code.

    Args:
        name: `manifest:FILE` or `FILE`, which ends in `.csv` or `.jsonl` (one object a line).
            Columns, or keys: `path` of the image, `label` and `domain`; and if wanted `split`,
            "in" or "train" for images that train, "out" or "val" for those that validate.

    Raises:
        UserError: no such file, or one that is no manifest; the message names the line.
    """
    file = Path(name.removeprefix("manifest:")).expanduser().resolve()
    try:
        facts = regular(file).stat()
        manifest = _read(file, facts.st_mtime_ns, facts.st_size)
    except OSError as error:
        raise UserError(
            f"dataset manifest {str(file)!r} cannot be read ({error.strerror}): check the path"
        ) from error
    attributes = {
        "manifest": manifest,
        "ENVIRONMENTS": manifest.domains,
        "__doc__": f"The images that {file} lists.",
    }
    return type(dataset_label(name), (ManifestDataset,), attributes)


@lru_cache(maxsize=8)  # a sweep asks for its dataset's class once per run
def _read(file: Path, modified: int, size: int) -> Manifest:
    """Reads the file, anew if it has changed since."""
    readers = {".csv": _csv_rows, ".jsonl": _json_rows}
    if file.suffix.lower() not in readers:
        raise UserError(f"dataset manifest {str(file)!r}: expected a file ending in .csv or .jsonl")
    rows = readers[file.suffix.lower()]
    try:
        with file.open(encoding="utf-8-sig", newline="") as stream:
            images = [_entry(row, file, line) for line, row in rows(stream, file)]
    except UnicodeDecodeError as error:
        raise UserError(f"{file} is no UTF-8 text ({error}): save it as UTF-8") from error
    if not images:
        raise UserError(f"{file} lists no images: {_EXPECTED}")
    return _arranged(file, images)


def _csv_rows(stream: TextIO, file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Line numbers and rows; lines without any text are passed over."""
    reader = csv.DictReader(stream, strict=True)
    try:
        _refuse_twice(reader.fieldnames or (), f"{file}, line 1")
        lacking = [name for name in _COLUMNS if name not in (reader.fieldnames or _COLUMNS)]
        if lacking:
            found = ", ".join(reader.fieldnames or ())
            raise UserError(f"{file}, line 1: no column {lacking[0]!r} in {found!r}: {_EXPECTED}")
        for row in reader:
            if None in row:
                raise UserError(
                    f"{file}, line {reader.line_num}: more values than columns: put values that "
                    "contain commas in double quotes"
                )
            yield reader.line_num, row
    except csv.Error as error:
        raise UserError(
            f"{file}, line {reader.reader.line_num}: no valid CSV ({error}): correct that line"
        ) from error


def _json_rows(stream: TextIO, file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(stream, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line, object_pairs_hook=_Pairs)
        except (ValueError, RecursionError) as error:
            raise UserError(
                f"{file}, line {number}: no valid JSON ({error}): write one object a line"
            ) from error
        if not isinstance(row, _Pairs):
            raise UserError(f"{file}, line {number}: no JSON object: {_EXPECTED}")
        _refuse_twice([name for name, _ in row], f"{file}, line {number}")
        yield number, dict(row)


class _Pairs(list[tuple[str, Any]]):
    """A JSON object, with names that it has twice."""


def _refuse_twice(names: Sequence[str], place: str) -> None:
    for name in (*_COLUMNS, "split"):
        if names.count(name) > 1:
            raise UserError(f"{place}: {name!r} is there {names.count(name)} times: remove one")


def _entry(row: Mapping[str, Any], file: Path, line: int) -> Entry:
    values = {}
    for name in (*_COLUMNS, "split"):
        value = row.get(name)
        if not isinstance(value, (str, int, type(None))) or isinstance(value, bool):
            raise UserError(
                f"{file}, line {line}: {name!r} is {value!r}: expected text or a whole number"
            )
        values[name] = "" if value is None else str(value).strip()
        if not values[name] and name in _COLUMNS:
            raise UserError(f"{file}, line {line}: {name!r} is missing: {_EXPECTED}")
    if values["split"] and values["split"] not in _SPLITS:
        raise UserError(
            f"{file}, line {line}: 'split' is {values['split']!r}: expected one of "
            + ", ".join(_SPLITS)
        )
    return Entry(line, **{**values, "split": _SPLITS.get(values["split"], "")})


def _arranged(file: Path, images: Sequence[Entry]) -> Manifest:
    _require_different_files(file, images)
    domains = tuple(sorted({image.domain for image in images}))
    if len(domains) < 2:
        raise UserError(
            f"{file}, line {images[0].line}: all images are of the domain {domains[0]!r}: list "
            "those of two or more"
        )
    classes = _in_order({image.label for image in images})
    per_domain: dict[str, list[Entry]] = {domain: [] for domain in domains}
    for image in images:
        per_domain[image.domain].append(image)
    _require_common_classes(file, per_domain, classes)
    fixes_splits = _require_whole_splits(file, per_domain)
    label = {name: number for number, name in enumerate(classes)}
    # The order of the lines shall not matter.
    for own in per_domain.values():
        own.sort(key=lambda image: (label[image.label], *os.path.split(image.path)))
    return Manifest(file, domains, classes, tuple(map(tuple, per_domain.values())), fixes_splits)


def _require_different_files(file: Path, images: Sequence[Entry]) -> None:
    lines: dict[str, int] = {}
    for image in images:
        path = os.path.normpath(image.path)
        if path in lines:
            raise UserError(
                f"{file}, line {image.line}: {image.path!r} is listed in line {lines[path]} "
                "already: list each image once"
            )
        lines[path] = image.line


def _in_order(labels: Iterable[str]) -> tuple[str, ...]:
    if all(re.fullmatch(r"-?\d+", label) for label in labels):
        return tuple(sorted(labels, key=lambda label: (int(label), label)))
    return tuple(sorted(labels))


def _require_common_classes(
    file: Path, per_domain: Mapping[str, Sequence[Entry]], classes: Sequence[str]
) -> None:
    for domain, images in per_domain.items():
        own = {image.label for image in images}
        lacking = [name for name in classes if name not in own]
        if lacking:
            stranger = next(
                image for each in per_domain.values() for image in each if image.label in lacking
            )
            raise UserError(
                f"{file}, line {stranger.line}: the domain {stranger.domain!r} has the label "
                f"{stranger.label!r}, but {domain!r} lacks {', '.join(lacking)}: all domains must "
                "have the same labels"
            )


def _require_whole_splits(file: Path, per_domain: Mapping[str, Sequence[Entry]]) -> bool:
    """Whether the file fixes the splits; it does so for all images or for none."""
    images = [image for own in per_domain.values() for image in own]
    without = [image.line for image in images if not image.split]
    if len(without) == len(images):
        return False
    if without:
        raise UserError(f"{file}, line {min(without)}: 'split' is missing: {_EXPECTED}")
    for domain, own in per_domain.items():
        absent = {"in", "out"} - {image.split for image in own}
        if absent:
            raise UserError(
                f"{file}, line {own[0].line}: the domain {domain!r} has no images with the split "
                f"{absent.pop()!r}: every domain needs images to train and to validate"
            )
    return True


def _require_files(manifest: Manifest) -> None:
    images = [image for own in manifest.images for image in own]
    folder = str(manifest.file.parent)
    missing = [i for i in images if not os.path.isfile(os.path.join(folder, i.path))]
    if missing:
        first = min(missing, key=lambda image: image.line)
        raise UserError(
            f"{manifest.file}, line {first.line}: no file {first.path!r} ({len(missing)} of "
            f"{len(images)} images are missing): give paths from {folder!r} on, or absolute ones"
        )
