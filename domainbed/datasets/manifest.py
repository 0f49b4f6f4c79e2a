"""Datasets whose images are listed in a CSV or JSON Lines file, wherever the images lie."""

import glob
import os
import unicodedata
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

from domainbed.config.run_fields import DataFields
from domainbed.core.files import regular
from domainbed.core.image_files import is_image
from domainbed.core.names import dataset_label
from domainbed.datasets.image_folders import ALLOW_MISSING, Contents, ImageDataset
from domainbed.datasets.rows import in_order, name_ignored_groups, read_rows
from domainbed.errors import UserError

_COLUMNS = ("path", "label", "domain")
_SPLITS = {"": "", "in": "in", "train": "in", "out": "out", "val": "out"}
_EXPECTED = "expected path, label and domain, and in all lines or in none split"


# An image of a manifest: its `line`; texts `path`, `label` and `domain`; and "in", "out", or
# empty where the trial decides, as `split`. By choice also texts `group` and `attribute`.
Entry = dict[str, Any]


class ManifestDataset(ImageDataset):
    """The images that a manifest lists. `manifest_dataset` makes a class of each manifest.

    Attributes:
        file: the manifest; relative paths of images start at its folder.
        listed: domains in name order; classes in name order, or in numeric order where all are
            whole numbers; images class by class and within a class in the order of the paths.
        lines: of the images, in the order of the lines.

    Raises:
        UserError: an image does not exist.
    """

    CHECKPOINT_FREQ = 300
    file: ClassVar[Path]
    listed: ClassVar[Contents]
    lines: ClassVar[Mapping[Path, int]]

    def __init__(self, root: str, test_envs: Sequence[int], hparams: Mapping[str, Any]) -> None:
        folder, lines = self.locate(root), self.lines
        missing = [image for image in lines if not os.path.isfile(image)]
        if missing:
            raise UserError(
                f"{self.file}, line {lines[missing[0]]}: no file {str(missing[0])!r} "
                f"({len(missing)} of {len(lines)} images are missing): give paths relative to "
                f"{str(folder)!r}, or absolute ones"
            )
        self._take(folder, self.contents(folder))

    @classmethod
    def locate(cls, root: str) -> Path:
        """The manifest's folder."""
        return cls.file.parent

    @classmethod
    def contents(cls, folder: Path) -> Contents:
        """The images that are listed, whether they exist or not."""
        return cls.listed


def manifest_dataset(name: str, options: DataFields) -> type[ManifestDataset]:
    """The dataset class of a manifest, without code.

    Args:
        name: `manifest:FILE` or `FILE`, see `read_rows`. Columns, or keys: `path` of the image, or
            a pattern of several paths, `label` and `domain`; and if wanted `split`, "in" or "train"
            for images that train, "out" or "val" for those that validate.
        options: other names of the columns, and the columns `group` and `attribute`.

    Raises:
        UserError: no such file, or one that is not a manifest, or lists an image twice, by another
            spelling or through a link; the message names the line.
    """
    file = Path(name.removeprefix("manifest:")).expanduser().resolve()
    try:
        facts = regular(file).stat()
        listed, lines = _read(file, facts.st_mtime_ns, facts.st_size, options.of_data())
    except OSError as error:
        raise UserError(
            f"dataset manifest {str(file)!r} cannot be read ({error.strerror}): check the path"
        ) from error
    attributes = {
        "file": file,
        "listed": listed,
        "lines": lines,
        "ENVIRONMENTS": tuple(listed.domains),
        "__doc__": f"The images that {file} lists.",
    }
    return type(dataset_label(name), (ManifestDataset,), attributes)


@lru_cache(maxsize=8)  # a sweep asks for its dataset's class once per run
def _read(file: Path, modified: int, size: int, of_data: str) -> tuple[Contents, dict[Path, int]]:
    """What lists the images, and their lines; read again if the file has changed since."""
    options = DataFields.model_validate_json(of_data)
    rows = read_rows(file)
    if not rows.rows:
        raise UserError(f"{file} lists no images: {_EXPECTED}")
    chosen = {name: str(column) for name, column in options.columns.items()}
    # What was never said of a column of such a name must not change how its data is split.
    optional = ("split", *(name for name in ("group", "attribute") if name in chosen))
    columns = rows.columns(chosen, _COLUMNS, optional)
    name_ignored_groups(rows, columns)
    entries = [
        each
        for line, row in rows.rows
        for each in _expanded(_entry(row, file, line, columns), file)
    ]
    return _arranged(file, entries, options)


def _entry(row: Mapping[str, Any], file: Path, line: int, columns: Mapping[str, str]) -> Entry:
    values = {}
    for name, column in columns.items():
        value = row.get(column)
        if not isinstance(value, (str, int, type(None))) or isinstance(value, bool):
            raise UserError(
                f"{file}, line {line}: {column!r} is {value!r}: expected text or a whole number"
            )
        values[name] = "" if value is None else str(value).strip()
        if not values[name] and name != "split":
            raise UserError(f"{file}, line {line}: {column!r} is missing: {_EXPECTED}")
    split = values.setdefault("split", "")
    if split not in _SPLITS:
        raise UserError(
            f"{file}, line {line}: {columns['split']!r} is {split!r}: expected one of "
            + ", ".join(filter(None, _SPLITS))
        )
    return {"line": line, **values, "split": _SPLITS[split]}


def _expanded(entry: Entry, file: Path) -> list[Entry]:
    """The entry, or one of each image that its path matches, as `scans/17/*.png` does."""
    if not glob.has_magic(entry["path"]) or os.path.exists(file.parent / entry["path"]):
        return [entry]
    found = glob.glob(entry["path"], root_dir=file.parent, recursive=True)
    paths = sorted(path for path in found if is_image(os.path.basename(path)))
    if not paths:
        raise UserError(f"{file}, line {entry['line']}: no image matches {entry['path']!r}")
    return [{**entry, "path": path} for path in paths]


def _composed(entries: Sequence[Entry]) -> Sequence[Entry]:
    """Labels and domains that are equal but for their Unicode form, in the composed form."""
    written = {text for entry in entries for text in (entry["label"], entry["domain"])}
    composed = {text: unicodedata.normalize("NFC", text) for text in written}
    if len(set(composed.values())) == len(written):
        return entries
    return [
        {**entry, **{role: composed[entry[role]] for role in ("label", "domain")}}
        for entry in entries
    ]


def _check_listed_once(file: Path, entries: Sequence[Entry]) -> None:
    """Raises `UserError` where two lines name one image, by whatever paths."""
    real_folder = lru_cache(maxsize=None)(os.path.realpath)  # they are few, and images are many
    first: dict[str, int] = {}
    for entry in entries:
        image = file.parent / entry["path"]
        in_place = os.path.join(real_folder(image.parent), image.name)
        real = os.path.realpath(image) if image.is_symlink() else in_place
        if real in first:
            raise UserError(
                f"{file}, line {entry['line']}: {entry['path']!r} is already listed in line "
                f"{first[real]}: list each image once"
            )
        first[real] = entry["line"]


def _arranged(
    file: Path, entries: Sequence[Entry], options: DataFields
) -> tuple[Contents, dict[Path, int]]:
    """What lists these images, whatever their order in the file, and their lines."""
    meant = options.meant
    entries = [
        {**entry, "label": meant.get(entry["label"], entry["label"])}
        for entry in _composed(entries)
    ]
    _check_listed_once(file, entries)
    classes = in_order(entry["label"] for entry in entries)
    number = {name: label for label, name in enumerate(classes)}
    domains = sorted({entry["domain"] for entry in entries})
    images = {name: [entry for entry in entries if entry["domain"] == name] for name in domains}
    if len(domains) < 2:
        raise UserError(
            f"{file}, line {entries[0]['line']}: all images are of the domain {domains[0]!r}: list "
            "those of two or more"
        )
    fixes_splits = any(entry["split"] for entry in entries)
    for domain, own in images.items():
        lacking = set(classes).difference(entry["label"] for entry in own)
        if lacking and options.missing_classes == "refuse":
            other = next(entry for entry in entries if entry["label"] in lacking)
            raise UserError(
                f"{file}, line {other['line']}: the domain {other['domain']!r} has the label "
                f"{other['label']!r}, but {domain!r} lacks {', '.join(sorted(lacking))}: all "
                f"domains must have the same labels, {ALLOW_MISSING}"
            )
        splits = {entry["split"] for entry in own}
        if fixes_splits and splits != {"in", "out"}:
            odd = next((entry for entry in own if not entry["split"]), own[0])
            raise UserError(
                f"{file}, line {odd['line']}: in the domain {domain!r} 'split' is "
                f"{' or '.join(repr(split) for split in sorted(splits))}: expected images to train "
                "('in') and images to validate ('out') in every domain, and no others"
            )
        own.sort(key=lambda entry: (number[entry["label"]], *os.path.split(entry["path"])))
    folder = file.parent
    listed = [
        [(folder / entry["path"], number[entry["label"]]) for entry in own]
        for own in images.values()
    ]
    roles = {
        role: [[entry[role] for entry in own] for own in images.values()]
        for role in ("group", "attribute", "split")
        if entries[0].get(role)
    }
    lines = {folder / entry["path"]: entry["line"] for entry in entries}
    return Contents(domains, classes, listed, roles=roles), lines
