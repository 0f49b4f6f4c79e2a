"""Folders of images: which files in them count, and in which order."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

from domainbed.errors import UserError

IMAGE_EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")


def folders(path: Path) -> list[Path]:
    """The folders in `path`, sorted by name, without hidden ones and those that macOS adds.

    Raises:
        UserError: `path` cannot be read.
    """
    return [path / name for name in folder_names(path)]


def folder_names(path: Path) -> list[str]:
    """Their names alone."""
    inside = entries(path)
    return sorted(name for name, is_folder in inside if is_folder and not _is_junk(name))


def images(path: Path) -> list[Path]:
    """All images at or below `path`; a file is an image by its extension.

    In the order of torchvision's ImageFolder, on which DomainBed's splits depend.

    Raises:
        UserError: a folder cannot be read, or a link leads from one back to one that it lies in.
    """
    return [file for file in files(path) if is_image(file.name)]


def ignored(root: Path) -> str:
    """The files below `root/<domain>/` that are no images of a class, counted; "" for none."""
    kinds: Counter[str] = Counter()
    for domain in folders(root):
        loose = sum(is_image(name) for name, is_folder in entries(domain) if not is_folder)
        kinds["images beside the class folders"] += loose
        inside = (file for name in folders(domain) for file in files(name))
        kinds.update(f"{f.suffix.lower() or 'other'} files" for f in inside if not is_image(f.name))
    return ", ".join(f"{number:,} {kind}" for kind, number in sorted(kinds.items()) if number)


def is_image(name: str) -> bool:
    """Whether a file of that name counts."""
    return not _is_junk(name) and name.lower().endswith(IMAGE_EXTENSIONS)


def files(path: Path) -> list[Path]:
    """All files at or below `path`, without hidden ones; see `images`."""
    found = []
    for parent, names in sorted(_walk(path, ())):
        if not any(map(_is_junk, Path(parent).relative_to(path).parts)):
            found += [Path(parent, name) for name in sorted(names) if not _is_junk(name)]
    return found


def _walk(path: Path, above: tuple[tuple[int, int], ...]) -> list[tuple[str, list[str]]]:
    """Each folder at or below `path`, links followed, with the names of its files."""
    if not path.is_dir():
        return []
    status = path.stat()
    here = (status.st_dev, status.st_ino)
    if here in above:
        raise UserError(f"the link {str(path)!r} leads back to a folder that it lies in: remove it")
    names = entries(path)
    found = [(str(path), [name for name, is_folder in names if not is_folder])]
    for name in (name for name, is_folder in names if is_folder):
        found += _walk(path / name, (*above, here))
    return found


def entries(path: Path) -> list[tuple[str, bool]]:
    """The names in a folder, and whether each is one of a folder."""
    try:
        with os.scandir(path) as entries:
            return [(entry.name, entry.is_dir()) for entry in entries]
    except OSError as error:
        raise UserError(
            f"folder {str(path)!r} cannot be read ({error.strerror}): check its permissions"
        ) from error


def _is_junk(name: str) -> bool:
    return name.startswith(".") or name in ("__MACOSX", "Thumbs.db")
