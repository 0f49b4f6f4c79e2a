"""Looking into every image: this module is what the worker processes of `verify` import."""

from __future__ import annotations

import hashlib
import io
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

from domainbed.core.cores import usable_cores
from domainbed.core.files import regular

_FILES_PER_WORKER = 500  # fewer are decoded here before another process has started
_FILES_AT_ONCE = 32


class Look(NamedTuple):
    """What one file holds.

    Attributes:
        error: why it cannot be read in full, or "".
        mode: of PIL, such as RGB.
        digest: of its bytes, or "" where it was not asked for.
    """

    file: Path
    error: str
    mode: str
    digest: str


def look_at(file: Path, hashed: bool) -> Look:
    """Decodes every pixel of an image as training does, and hashes the file if that is wanted."""
    from PIL import Image

    from domainbed.datasets.images.pixels import rgb_pixels, why_unreadable

    try:
        content = regular(file).read_bytes()
    except OSError as error:
        return Look(file, error.strerror or str(error), "", "")
    digest = hashlib.sha256(content).hexdigest() if hashed else ""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(content)) as image:
                image.verify()  # the checksums that PNG files have
            return Look(file, "", rgb_pixels(content)[1], digest)
    except Exception as error:  # decoders raise anything over damaged bytes
        return Look(file, why_unreadable(error, content), "", digest)


def look_at_all(files: Sequence[Path], hashed: Sequence[bool]) -> Iterator[Look]:
    """`look_at` for all files, in their order, on all cores."""
    workers = min(usable_cores(), len(files) // _FILES_PER_WORKER)
    if workers < 2:
        yield from map(look_at, files, hashed)
        return
    # PyTorch's threads do not survive a fork.
    pool = ProcessPoolExecutor(workers, mp_context=get_context("spawn"))
    try:
        yield from pool.map(look_at, files, hashed, chunksize=_FILES_AT_ONCE)
    finally:
        pool.shutdown(cancel_futures=True)
