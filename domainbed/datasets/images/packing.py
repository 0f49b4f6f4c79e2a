"""Making packs: every image once, squeezed to one size, written aside and moved into place."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from PIL import __version__ as pil_version
from tqdm import tqdm

from domainbed.core.files import locked, regular
from domainbed.datasets.images.decode import UnreadableImage, decode_image, file_bytes
from domainbed.datasets.images.listing import Listing
from domainbed.datasets.images.packed import IMAGES, INDEX, JPEG, RAW, TABLE, Pack
from domainbed.datasets.images.resize import IMAGE_SIZE, resize
from domainbed.datasets.images.threads import in_order
from domainbed.errors import UserError

VERSION = 1
JPEG_QUALITY = 95  # without subsampling of the colours
_JPEG_BYTES_PER_PIXEL = 0.6  # of photographs; drawings take less
_LARGE = 20e9  # bytes from which the smaller form is worth a word


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

    @classmethod
    def from_hparams(cls, hparams: Mapping[str, Any]) -> PackOptions:
        """As a run asks for it.

        Raises:
            UserError: the size is too small.
        """
        size = hparams["packed_size"]
        if size < IMAGE_SIZE:
            raise UserError(f"packed_size is {size}: expected {IMAGE_SIZE} or more")
        skip = hparams["corrupt_images"] == "skip"
        threads = min(8, torch.get_num_threads())
        return cls(size, hparams["packed_format"], skip, threads)


def open_pack(listing: Listing, cache: Path, options: PackOptions) -> Pack:
    """Opens the pack of these very files, and makes it first if there is none.

    Raises:
        UserError: it cannot be made, is damaged, or lacks images that may not be skipped.
    """
    parts = (listing.name, options.size, options.form, listing.digest, f"v{VERSION}")
    folder = cache / "-".join(map(str, parts))
    if not folder.exists():
        make_pack(listing, folder, options)
    pack = Pack(folder)
    if pack.unreadable and not options.skip_corrupt:
        first = listing.files[pack.unreadable[0]]
        raise UserError(
            f"image {first} cannot be read (one of {len(pack.unreadable)}): replace or remove it, "
            "or set the hyper-parameter corrupt_images to 'skip'"
        )
    return pack


def make_pack(listing: Listing, folder: Path, options: PackOptions) -> None:
    """Packs into `folder`, unless another process does so in the meantime.

    Raises:
        UserError: an image cannot be read, the disk is too small, or may not be written to.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        waiting = partial(_say, f"Another process packs {folder.name}: waiting for it")
        with locked(folder.with_name(f"{folder.name}.lock"), waiting):
            if not folder.exists():
                with _made_aside(folder) as aside:
                    _write(listing, aside, options)
    except OSError as error:
        raise UserError(
            f"{listing.name} cannot be packed in {str(folder.parent)!r} ({error.strerror}): name "
            "another folder in the variable DOMAINBED_CACHE_DIR"
        ) from error


@contextmanager
def _made_aside(folder: Path) -> Iterator[Path]:
    """A new folder to write to; it becomes `folder` when all went well."""
    aside = folder.with_name(f"{folder.name}.tmp")
    shutil.rmtree(aside, ignore_errors=True)  # of a process that was killed
    aside.mkdir()
    try:
        yield aside
        aside.replace(folder)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _write(listing: Listing, aside: Path, options: PackOptions) -> None:
    shape = _common_size(listing.files, options.size) or (options.size, options.size)
    _announce(listing, aside.parent, shape, options)
    encode = partial(_encoded, shape=shape, options=options)
    work = in_order(encode, listing.files, options.threads)
    bar = tqdm(
        work, f"packing {listing.name}", len(listing.files), disable=None, unit="image", leave=False
    )
    with (
        (aside / IMAGES).open("wb") as stream,
        (aside / TABLE).open("w", encoding="utf-8", errors="surrogateescape", newline="") as table,
    ):
        writer = csv.writer(table)
        writer.writerow(("file", "label", "height", "width", "bytes"))
        for name, label, (data, height, width) in zip(listing.relative, listing.targets, bar):
            stream.write(data)
            writer.writerow((name, label, height, width, len(data)))
        stream.flush()
        os.fsync(stream.fileno())
    facts = {"height": shape[0], "width": shape[1], "images": len(listing.files)}
    _write_index(aside / INDEX, listing, facts, options)


def _write_index(
    file: Path, listing: Listing, facts: Mapping[str, int], options: PackOptions
) -> None:
    index = {
        "version": VERSION,
        "dataset": listing.name,
        "listing": listing.digest,
        "format": options.form,
        **facts,
        "jpeg_quality": JPEG_QUALITY if options.form == JPEG else None,
        "made_with": {"torch": torch.__version__, "pillow": pil_version},
    }
    file.write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _common_size(files: Sequence[Path], largest: int) -> tuple[int, int] | None:
    """Height and width, if all images share them and none has to be made smaller."""
    common: tuple[int, int] | None = None
    for file in files:
        try:
            with Image.open(regular(file)) as image:
                size = image.height, image.width
        except Exception:  # told later, by name
            continue
        if max(size) > largest or common not in (None, size):
            return None
        common = size
    return common


def _announce(listing: Listing, folder: Path, shape: tuple[int, int], options: PackOptions) -> None:
    """Says what will be written where.

    Raises:
        UserError: the disk has no room for it.
    """
    pixels = len(listing.files) * shape[0] * shape[1]
    raw, jpeg = 3 * pixels, int(_JPEG_BYTES_PER_PIXEL * pixels)
    needed = raw if options.form == RAW else jpeg
    about = "" if options.form == RAW else "about "
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise UserError(
            f"packing {listing.name} as {options.form} needs {about}{_gb(needed)} in "
            f"{str(folder)!r}, where {_gb(free)} are free: choose the format jpeg (about "
            f"{_gb(jpeg)}) or a smaller size, or name another folder in the variable "
            "DOMAINBED_CACHE_DIR"
        )
    _say(
        f"Packing {listing.name}, once for all runs: {len(listing.files):,} images of {shape[1]} × "
        f"{shape[0]} ({options.form}), {about}{_gb(needed)} in {folder}"
    )
    if options.form == RAW and raw > _LARGE:
        _say(f"(as jpeg about {_gb(jpeg)}, and more work for the processor)")


def _gb(size: float) -> str:
    return f"{size / 1e9:.2f} GB"


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _encoded(file: Path, shape: tuple[int, int], options: PackOptions) -> tuple[bytes, int, int]:
    """What is stored of an image (nothing of one to skip), and its height and width."""
    try:
        data = file_bytes(file)
        image = decode_image(data, str(file))
    except UnreadableImage:
        if not options.skip_corrupt:
            raise
        return b"", 0, 0
    _, height, width = image.shape
    fits = (height, width) == shape
    if options.form == JPEG and fits and len(data) <= image.numel():
        return data, height, width  # nothing can be more faithful than the file itself
    pixels = (image if fits else resize(image, *shape)).permute(1, 2, 0).contiguous().numpy()
    return (pixels.tobytes() if options.form == RAW else _jpeg(pixels)), height, width


def _jpeg(pixels: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=JPEG_QUALITY, subsampling=0)
    return buffer.getvalue()
