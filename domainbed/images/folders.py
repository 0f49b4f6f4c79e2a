"""Folders of images: which files in them count, and in which order."""

from __future__ import annotations

import os
from pathlib import Path

from domainbed.errors import UserError

IMAGE_EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")


def folders(path: Path) -> list[Path]:
    """The folders in `path`, sorted by name, without hidden ones and those that macOS adds."""
    return sorted(p for p in path.iterdir() if p.is_dir() and not _is_junk(p.name))


def folder_names(path: Path) -> list[str]:
    """Their names alone."""
    return [folder.name for folder in folders(path)]


def images(path: Path) -> list[Path]:
    """All images at or below `path`; a file is an image by its extension.

    In the order of torchvision's ImageFolder, on which DomainBed's splits depend.

    Raises:
        UserError: a link leads from a folder back to one that it lies in.
    """
    found = []
    for parent, names in sorted(_walk(path, ())):
        if not any(map(_is_junk, Path(parent).relative_to(path).parts)):
            found += [Path(parent, name) for name in sorted(names) if is_image(name)]
    return found


def is_image(name: str) -> bool:
    """Whether a file of that name counts."""
    return not _is_junk(name) and name.lower().endswith(IMAGE_EXTENSIONS)


def _walk(path: Path, above: tuple[tuple[int, int], ...]) -> list[tuple[str, list[str]]]:
    """Each folder at or below `path`, links followed, with the names of its files."""
    if not path.is_dir():
        return []
    status = path.stat()
    here = (status.st_dev, status.st_ino)
    if here in above:
        raise UserError(f"the link {str(path)!r} leads back to a folder that it lies in: remove it")
    with os.scandir(path) as entries:
        names = [(entry.name, entry.is_dir()) for entry in entries]
    found = [(str(path), [name for name, is_folder in names if not is_folder])]
    for name in (name for name, is_folder in names if is_folder):
        found += _walk(path / name, (*above, here))
    return found


def _is_junk(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"
