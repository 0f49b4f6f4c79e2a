"""MNIST, through torchvision, which knows its mirrors and checksums."""

from __future__ import annotations

import gzip
import shutil
import zlib
from pathlib import Path

from domainbed.core.files import file_digest, regular
from domainbed.errors import UserError, one_line

FOLDER = "MNIST"
CHECKSUMS = {
    "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
    "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
    "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
    "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
}
"""MD5 of the published files, unpacked."""

_MOST_BYTES = 50_000_000  # the largest file has 47,040,016


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
    old = data_dir / FOLDER / "processed"
    if old.exists():
        return f"{old} would be read in place of the published files: remove it"
    for name, published in CHECKSUMS.items():
        file = data_dir / FOLDER / "raw" / name
        try:
            digest = file_digest(regular(file), "md5")
        except OSError as error:
            return f"{file} cannot be read ({error.strerror})"
        if digest != published:
            return f"{file} has the MD5 checksum {digest}, published {published}"
    return ""


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
    for name in CHECKSUMS:
        plain = next(source.rglob(name), None)
        packed = next(source.rglob(f"{name}.gz"), None)
        if plain is not None:
            shutil.copyfile(regular(plain), raw / name)
        elif packed is not None:
            _unpack(packed, raw / name)
        else:
            raise UserError(f"--from {str(source)!r} has no file {name} or {name}.gz")


def _unpack(packed: Path, target: Path) -> None:
    try:
        with gzip.open(regular(packed)) as stream:
            target.write_bytes(stream.read(_MOST_BYTES))  # more is not MNIST, and may be endless
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise UserError(f"{packed} is damaged ({one_line(error)}): get it anew") from error
