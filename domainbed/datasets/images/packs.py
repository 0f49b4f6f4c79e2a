"""Packs: all images of a dataset, resized to one size, in one file that every run maps."""

import csv
import io
import os
import shutil
import sys
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from PIL import __version__ as pil_version
from tqdm import tqdm

from domainbed.core.files import CHANGED, file_digest, read_sealed_json, regular, sealed_json
from domainbed.core.image_files import USUAL, Decoding
from domainbed.datasets.images.dataset_files import (
    Listing,
    UnreadableImage,
    decode_image,
    file_bytes,
    in_order,
    make_once,
    mapped,
)
from domainbed.datasets.images.transforms import resize
from domainbed.errors import UserError

VERSION = 1
INDEX, TABLE, IMAGES = "index.json", "images.csv", "images.bin"
RAW, JPEG = "raw", "jpeg"
JPEG_QUALITY = 95  # without subsampling of the colours
_JPEG_BYTES_PER_PIXEL = 0.6  # of photographs; drawings take less


class Pack:
    """A folder that `open_pack` made, opened.

    Attributes:
        folder: where it lies.
        shape: height and width of the stored images.
        sizes: (N, 2) heights and widths of the original ones.
        unreadable: numbers of the images that could not be read when it was made.

    Raises:
        UserError: it is damaged.
    """

    def __init__(self, folder: Path) -> None:
        import pandas

        try:
            index = read_sealed_json(folder / INDEX)
            table = pandas.read_csv(folder / TABLE, encoding_errors="surrogateescape")
            self._bytes = mapped(folder / IMAGES)
            is_whole = index["table"] == file_digest(folder / TABLE)
            if not is_whole or table["bytes"].sum() != len(self._bytes):
                raise ValueError(CHANGED)
        except (OSError, ValueError, KeyError) as error:
            raise UserError(
                f"{folder} is damaged, or of an earlier version: remove it, and it will be packed "
                "again"
            ) from error
        self._sums, self._is_checked = table["crc32"].to_numpy(), np.zeros(len(table), bool)
        self.folder, self._is_jpeg = folder, index["format"] == JPEG
        self.shape: tuple[int, int] = (index["height"], index["width"])
        self.sizes = torch.from_numpy(table[["height", "width"]].to_numpy().copy())
        self._ends = np.concatenate([[0], table["bytes"].cumsum()])
        self.unreadable: list[int] = np.flatnonzero(table["bytes"] == 0).tolist()

    def __len__(self) -> int:
        return len(self.sizes)

    def image(self, number: int) -> torch.Tensor:
        """(H, W, 3) uint8, `shape` in size; to be read only.

        Its checksum is compared once in each process: a pack is too large to be read at each start.

        Raises:
            UserError: it is damaged.
        """
        stored = self._bytes[self._ends[number] : self._ends[number + 1]]
        if not self._is_checked[number]:
            if zlib.crc32(stored.numpy().data) != self._sums[number]:
                raise UserError(
                    f"image {number} of {self.folder} is damaged: remove the folder, and it will "
                    "be packed again"
                )
            self._is_checked[number] = True
        if not self._is_jpeg:
            return stored.view(*self.shape, 3)
        name = f"{number} of {self.folder}"
        return decode_image(stored.numpy().tobytes(), name).permute(1, 2, 0)

    def __reduce__(self) -> tuple[Any, ...]:
        """Other processes open the folder again: the images are not sent to them."""
        return Pack, (self.folder,)


@dataclass(frozen=True)
class PackOptions:
    """How to pack.

    Attributes:
        size: height and width in pixels.
        form: "raw" pixels, or "jpeg".
        skip_corrupt: leave images out that cannot be read, instead of raising an error.
        threads: that read and resize; 0 works in the calling one.
    """

    size: int = 256
    form: str = RAW
    skip_corrupt: bool = False
    threads: int = 0


def open_pack(listing: Listing, cache: Path, options: PackOptions) -> Pack:
    """Opens the pack of exactly these files, and makes it first if there is none.

    Raises:
        UserError: it cannot be made, is damaged, or lacks images that may not be skipped.
    """
    parts = (listing.name, options.size, options.form, listing.digest, f"v{VERSION}")
    folder = cache / "-".join(map(str, parts))
    make_once(folder, partial(_make, listing, options))
    pack = Pack(folder)
    if not options.skip_corrupt:
        listing.require(pack.unreadable)
    return pack


def _make(listing: Listing, options: PackOptions, folder: Path) -> None:
    try:
        _write(listing, folder, options)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _write(listing: Listing, folder: Path, options: PackOptions) -> None:
    # Those that EXIF turns have another size than their file says.
    files = listing.files if listing.decoding.orientation == "ignore" else ()
    shape = _common_size(files, options.size) or (options.size, options.size)
    _announce(listing, folder.parent, shape, options)
    encode = partial(_encoded, shape=shape, options=options, decoding=listing.decoding)
    bar = tqdm(
        in_order(encode, listing.files, options.threads),
        f"packing {listing.name}",
        len(listing.files),
        disable=None,
        unit="image",
        leave=False,
    )
    with (
        (folder / IMAGES).open("wb") as stream,
        (folder / TABLE).open("w", encoding="utf-8", errors="surrogateescape", newline="") as table,
    ):
        writer = csv.writer(table)
        writer.writerow(("file", "label", "height", "width", "bytes", "crc32"))
        for name, label, (data, height, width) in zip(listing.relative, listing.targets, bar):
            stream.write(data)
            writer.writerow((name, label, height, width, len(data), zlib.crc32(data)))
        stream.flush()
        os.fsync(stream.fileno())
    index = {
        "version": VERSION,
        "dataset": listing.name,
        "listing": listing.digest,
        "format": options.form,
        "height": shape[0],
        "width": shape[1],
        "images": len(listing.files),
        "table": file_digest(folder / TABLE),
        "jpeg_quality": JPEG_QUALITY if options.form == JPEG else None,
        "made_with": {"torch": torch.__version__, "pillow": pil_version},
    }
    (folder / INDEX).write_text(sealed_json(index, indent=2), encoding="utf-8")


def _common_size(files: Sequence[Path], largest: int) -> tuple[int, int] | None:
    """Height and width, if all images share them and none needs to be made smaller."""
    common: tuple[int, int] | None = None
    for file in files:
        try:
            with Image.open(regular(file)) as image:
                size = image.height, image.width
        except Exception:  # reported later, by name
            continue
        if max(size) > largest or common not in (None, size):
            return None
        common = size
    return common


def _announce(listing: Listing, folder: Path, shape: tuple[int, int], options: PackOptions) -> None:
    """Says what will be written where.

    Raises:
        UserError: there is not enough disk space.
    """
    gigapixels = len(listing.files) * shape[0] * shape[1] / 1e9
    needed = {RAW: 3 * gigapixels, JPEG: _JPEG_BYTES_PER_PIXEL * gigapixels}[options.form]
    as_jpeg = f"as jpeg about {_JPEG_BYTES_PER_PIXEL * gigapixels:.2f} GB"
    free = shutil.disk_usage(folder).free / 1e9
    if needed > free:
        raise UserError(
            f"packing {listing.name} as {options.form} needs {needed:.2f} GB in {str(folder)!r}, "
            f"where {free:.2f} GB are free: choose the format jpeg ({as_jpeg}) or a smaller size, "
            "or name another folder in the variable DOMAINBED_CACHE_DIR"
        )
    print(
        f"Packing {listing.name}, once for all runs: {len(listing.files):,} images of {shape[1]} × "
        f"{shape[0]} ({options.form}), {needed:.2f} GB in {folder} ({as_jpeg})",
        file=sys.stderr,
        flush=True,
    )


def _encoded(
    file: Path, shape: tuple[int, int], options: PackOptions, decoding: Decoding
) -> tuple[bytes, int, int]:
    """What is stored of an image (nothing of one to skip), and its height and width."""
    try:
        data = file_bytes(file)
        image = decode_image(data, str(file), decoding)
    except UnreadableImage:
        if not options.skip_corrupt:
            raise
        return b"", 0, 0
    _, height, width = image.shape
    fits = (height, width) == shape
    if options.form == JPEG and fits and len(data) <= image.numel() and decoding == USUAL:
        return data, height, width  # the file itself is the most faithful
    pixels = (image if fits else resize(image, *shape)).permute(1, 2, 0).contiguous().numpy()
    if options.form == RAW:
        return pixels.tobytes(), height, width
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=JPEG_QUALITY, subsampling=0)
    return buffer.getvalue(), height, width
