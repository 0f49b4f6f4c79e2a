"""Datasets whose images are listed in a CSV or JSON Lines file, wherever the images lie."""

from __future__ import annotations

import csv
import json
import os
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar, TextIO

from domainbed.core.files import regular
from domainbed.core.names import MANIFESTS, dataset_label
from domainbed.datasets.image_folders import Contents, ImageDataset
from domainbed.errors import UserError

_COLUMNS = ("path", "label", "domain")
_SPLITS = {"": "", "in": "in", "train": "in", "out": "out", "val": "out"}
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
        contents: domains in name order; classes in name order, or in numeric order where all are
            whole numbers; images class by class and within a class in the order of the paths.
        lines: of the images, in the order of the lines.
        out_splits: per domain the positions of the images that validate, where the file says so.
    """

    file: Path
    contents: Contents
    lines: Mapping[Path, int]
    out_splits: Sequence[Sequence[int]] | None


class ManifestDataset(ImageDataset):
    """The images that a manifest lists. `manifest_dataset` makes a class of each manifest.

    Attributes:
        out_splits: per domain the positions of the images that validate, where the manifest
            says so; None where the trial decides, as it does for other datasets.

    Raises:
        UserError: an image does not exist, or is listed twice.
    """

    CHECKPOINT_FREQ = 300
    manifest: ClassVar[Manifest]

    def __init__(self, root: str, test_envs: Sequence[int], hparams: Mapping[str, Any]) -> None:
        folder, lines = self.locate(root), self.manifest.lines
        missing = [image for image in lines if not os.path.isfile(image)]
        if missing:
            raise UserError(
                f"{self.manifest.file}, line {lines[missing[0]]}: no file {str(missing[0])!r} "
                f"({len(missing)} of {len(lines)} images are missing): give paths relative to "
                f"{str(folder)!r}, or absolute ones"
            )
        _refuse_repeats(self.manifest)
        self._take(folder, self.contents(folder))
        self.out_splits = self.manifest.out_splits

    @classmethod
    def locate(cls, root: str) -> Path:
        """The manifest's folder."""
        return cls.manifest.file.parent

    @classmethod
    def contents(cls, folder: Path) -> Contents:
        """The images that are listed, whether they exist or not."""
        return cls.manifest.contents


def _refuse_repeats(manifest: Manifest) -> None:
    """Raises where one file is listed twice, by another spelling or through a link."""
    real_folder = lru_cache(maxsize=None)(os.path.realpath)  # they are few, and images are many
    first: dict[str, int] = {}
    for image, line in sorted(manifest.lines.items(), key=lambda item: item[1]):
        is_link = os.path.islink(image)
        real = os.path.realpath(image) if is_link else f"{real_folder(image.parent)}/{image.name}"
        if real in first:
            raise UserError(
                f"{manifest.file}, line {line}: {str(image)!r} is the file that line "
                f"{first[real]} lists: list each image once"
            )
        first[real] = line


def manifest_dataset(name: str) -> type[ManifestDataset]:
    """The dataset class of a manifest, without code.

    Args:
        name: `manifest:FILE` or `FILE`, which ends in `.csv` or `.jsonl` (one object a line).
            Columns, or keys: `path` of the image, `label` and `domain`; and if wanted `split`,
            "in" or "train" for images that train, "out" or "val" for those that validate.

    Raises:
        UserError: no such file, or one that is not a manifest; the message names the line.
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
        "ENVIRONMENTS": tuple(manifest.contents.domains),
        "__doc__": f"The images that {file} lists.",
    }
    return type(dataset_label(name), (ManifestDataset,), attributes)


@lru_cache(maxsize=8)  # a sweep asks for its dataset's class once per run
def _read(file: Path, modified: int, size: int) -> Manifest:
    """Reads the file, again if it has changed since."""
    if file.suffix.lower() not in MANIFESTS:
        raise UserError(f"dataset manifest {str(file)!r}: expected a file ending in .csv or .jsonl")
    rows = _csv_rows if file.suffix.lower() == ".csv" else _json_rows
    try:
        with file.open(encoding="utf-8-sig", newline="") as stream:
            entries = [_entry(row, file, line) for line, row in rows(stream, file)]
    except UnicodeDecodeError as error:
        raise UserError(f"{file} is not UTF-8 text ({error}): save it as UTF-8") from error
    if not entries:
        raise UserError(f"{file} lists no images: {_EXPECTED}")
    return _arranged(file, entries)


def _csv_rows(stream: TextIO, file: Path) -> Iterator[tuple[int, dict[Any, Any]]]:
    """Line numbers and rows; lines without any text are skipped."""
    reader = csv.DictReader(stream, strict=True)
    try:
        names = list(reader.fieldnames or _COLUMNS)
        separators = [each for each in ";\t|" if len(names) == 1 and each in names[0]]
        if separators:
            raise UserError(
                f"{file}, line 1: the separator is {separators[0]!r}: save it with commas"
            )
        for name in (*_COLUMNS, "split"):
            if names.count(name) > 1 or (name in _COLUMNS and name not in names):
                raise UserError(
                    f"{file}, line 1: {names.count(name)} columns {name!r} in "
                    f"{', '.join(names)!r}: {_EXPECTED}, each once"
                )
        for row in reader:
            if None in row:
                raise UserError(
                    f"{file}, line {reader.line_num}: more values than columns: put values that "
                    "contain commas in double quotes"
                )
            yield reader.line_num, row
    except csv.Error as error:
        raise UserError(
            f"{file}, line {reader.reader.line_num}: not valid CSV ({error}): correct that line"
        ) from error


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object, none of whose keys may be given twice."""
    row = dict(pairs)
    if len(row) < len(pairs):
        raise ValueError("a key is given twice")
    return row


def _json_rows(stream: TextIO, file: Path) -> Iterator[tuple[int, dict[Any, Any]]]:
    for number, line in enumerate(stream, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line, object_pairs_hook=_without_repeats)
        except (ValueError, RecursionError) as error:
            raise UserError(
                f"{file}, line {number}: not valid JSON ({error}): write one object a line"
            ) from error
        if not isinstance(row, dict):
            raise UserError(f"{file}, line {number}: not a JSON object: {_EXPECTED}")
        yield number, row


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
    if values["split"] not in _SPLITS:
        raise UserError(
            f"{file}, line {line}: 'split' is {values['split']!r}: expected one of "
            + ", ".join(filter(None, _SPLITS))
        )
    return Entry(line, **{**values, "split": _SPLITS[values["split"]]})


def _composed(entries: Sequence[Entry]) -> Sequence[Entry]:
    """Labels and domains that are equal but for their Unicode form, in the composed form."""
    written = {text for entry in entries for text in (entry.label, entry.domain)}
    composed = {text: unicodedata.normalize("NFC", text) for text in written}
    if len(set(composed.values())) == len(written):
        return entries
    return [replace(e, label=composed[e.label], domain=composed[e.domain]) for e in entries]


def _arranged(file: Path, entries: Sequence[Entry]) -> Manifest:
    """The manifest with these images, whatever their order in the file."""
    entries = _composed(entries)
    first: dict[str, int] = {}
    for entry in entries:
        line = first.setdefault(os.path.normpath(file.parent / entry.path), entry.line)
        if line != entry.line:
            raise UserError(
                f"{file}, line {entry.line}: {entry.path!r} is already listed in line {line}: "
                "list each image once"
            )
    classes = sorted({entry.label for entry in entries})
    if all(re.fullmatch(r"-?\d+", label) for label in classes):
        classes.sort(key=int)
    number = {name: label for label, name in enumerate(classes)}
    domains = sorted({entry.domain for entry in entries})
    images = {name: [entry for entry in entries if entry.domain == name] for name in domains}
    if len(domains) < 2:
        raise UserError(
            f"{file}, line {entries[0].line}: all images are of the domain {domains[0]!r}: list "
            "those of two or more"
        )
    fixes_splits = any(entry.split for entry in entries)
    for domain, own in images.items():
        lacking = set(classes).difference(entry.label for entry in own)
        if lacking:
            other = next(entry for entry in entries if entry.label in lacking)
            raise UserError(
                f"{file}, line {other.line}: the domain {other.domain!r} has the label "
                f"{other.label!r}, but {domain!r} lacks {', '.join(sorted(lacking))}: all domains "
                "must have the same labels"
            )
        splits = {entry.split for entry in own}
        if fixes_splits and splits != {"in", "out"}:
            odd = next((entry for entry in own if not entry.split), own[0])
            raise UserError(
                f"{file}, line {odd.line}: in the domain {domain!r} 'split' is "
                f"{' or '.join(repr(split) for split in sorted(splits))}: expected images to train "
                "('in') and images to validate ('out') in every domain, and no others"
            )
        own.sort(key=lambda entry: (number[entry.label], *os.path.split(entry.path)))
    folder = file.parent
    out_splits = [
        [i for i, entry in enumerate(own) if entry.split == "out"] for own in images.values()
    ]
    listed = [
        [(folder / entry.path, number[entry.label]) for entry in own] for own in images.values()
    ]
    lines = {folder / entry.path: entry.line for entry in entries}
    contents = Contents(domains, classes, listed)
    return Manifest(file, contents, lines, out_splits if fixes_splits else None)
