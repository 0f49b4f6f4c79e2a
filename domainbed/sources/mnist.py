"""MNIST, through torchvision, which knows its mirrors and checksums."""

from __future__ import annotations

import gzip
import shutil
import zlib
from pathlib import Path

from domainbed.errors import UserError
from domainbed.sources.found import one_line

FOLDER = "MNIST"
IMAGES = {"train": 60_000, "t10k": 10_000}
_FILES = tuple(f"{part}-{kind}-ubyte" for part in IMAGES for kind in ("images-idx3", "labels-idx1"))


def download(target: Path, partial: Path, copy: Path | None) -> None:
    """Makes the folder `target`, with the four files in its folder `raw`.

    Args:
        target: MNIST below the folder of all datasets.
        partial: a folder beside it, to work in.
        copy: a folder that holds the four files, packed or not.

    Raises:
        UserError: no mirror answers, or the copy is incomplete or damaged.
    """
    _fetch(partial) if copy is None else _copy(copy, partial / FOLDER / "raw")
    if problem := check(partial):
        raise UserError(f"{copy or 'what came'} is not MNIST: {problem}")
    (partial / FOLDER).replace(target)


def check(data_dir: Path) -> str:
    """What is wrong with the files below `data_dir`, or "" for nothing."""
    from torchvision.datasets import MNIST

    try:
        parts = [MNIST(str(data_dir), train=train) for train in (True, False)]
    except (RuntimeError, OSError, ValueError, AssertionError) as error:
        return one_line(error)
    here, published = [len(part.targets) for part in parts], list(IMAGES.values())
    return "" if here == published else f"{here} training and test images, published {published}"


def _fetch(folder: Path) -> None:
    from torchvision.datasets import MNIST

    try:
        MNIST(str(folder), download=True)
    except (RuntimeError, OSError) as error:
        raise UserError(
            f"MNIST could not be downloaded ({one_line(error)}): if you have its four files, give "
            "their folder with --from"
        ) from error


def _copy(source: Path, raw: Path) -> None:
    raw.mkdir(parents=True)
    for name in _FILES:
        plain = next(source.rglob(name), None)
        packed = next(source.rglob(f"{name}.gz"), None)
        if plain is not None:
            shutil.copyfile(plain, raw / name)
        elif packed is not None:
            _unpack(packed, raw / name)
        else:
            raise UserError(f"--from {str(source)!r} has no file {name} or {name}.gz")


def _unpack(packed: Path, target: Path) -> None:
    try:
        with gzip.open(packed) as stream, target.open("wb") as plain:
            shutil.copyfileobj(stream, plain)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise UserError(f"{packed} is damaged ({one_line(error)}): get it anew") from error
