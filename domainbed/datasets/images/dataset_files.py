"""The image files of a dataset: reading them, listing them, caching what is computed of them."""

import hashlib
import os
import sys
import warnings
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch

from domainbed.core.files import locked, read_sealed_json, regular, sealed_json, write_text
from domainbed.core.image_files import USUAL, Decoding, rgb_pixels, why_unreadable
from domainbed.datasets.images.transforms import Crop
from domainbed.errors import UserError

Item = TypeVar("Item")
Result = TypeVar("Result")


class UnreadableImage(UserError):
    """A file that should be an image, and cannot be read as one."""


def read_image(file: Path, decoding: Decoding = USUAL) -> torch.Tensor:
    """(3, H, W) uint8, in RGB; usually ignoring EXIF's orientation (as DomainBed does).

    Raises:
        UnreadableImage: the file is missing, not an image, or truncated.
    """
    return decode_image(file_bytes(file), str(file), decoding)


def file_bytes(file: Path) -> bytes:
    """The file's content.

    Raises:
        UnreadableImage: it cannot be opened, or is a pipe or a device.
    """
    try:
        return regular(file).read_bytes()
    except OSError as error:
        raise UnreadableImage(f"image {file} cannot be read ({error.strerror})") from error


def decode_image(data: bytes, name: str, decoding: Decoding = USUAL) -> torch.Tensor:
    """(3, H, W) uint8 of an encoded image; `name` is for the message of an error.

    Raises:
        UnreadableImage: `data` is not an image, is truncated, or has 32 bits per value.
        UserError: a package that decodes such images is missing.
    """
    try:
        pixels, _ = rgb_pixels(data, decoding)
    except UserError as error:
        raise UserError(f"image {name} cannot be read: {error}") from error
    except Exception as error:  # PIL raises different exceptions for each format
        raise UnreadableImage(
            f"image {name} cannot be read ({why_unreadable(error, data)}): replace or remove it, "
            "or set the hyper-parameter corrupt_images to 'skip'"
        ) from error
    return torch.from_numpy(pixels).permute(2, 0, 1)


@dataclass(frozen=True)
class Listing:
    """The images of a dataset, in their order.

    Attributes:
        name: the dataset's.
        files: all of them.
        targets: their labels.
        crops: what the training augmentation crops of each.
        contents: (n, 16) uint8, digests of the files' contents, zeros where one cannot be read.
        decoding: of the files.
        size: height and width of inputs; None for the usual ones.
    """

    name: str
    files: Sequence[Path]
    targets: Sequence[int]
    crops: Sequence[Crop]
    contents: np.ndarray
    decoding: Decoding = USUAL
    size: int | None = None

    @cached_property
    def relative(self) -> list[str]:
        """The files' names, relative to the folder that contains them all."""
        common = Path(os.path.commonpath([file.parent for file in self.files]))
        return [file.relative_to(common).as_posix() for file in self.files]

    @cached_property
    def digest(self) -> str:
        """Changes with the name or the content of any file, and with how they are decoded.

        Times do not count, so that a copy of the files is the same data.
        """
        lines = [
            *(
                f"{name}\t{own.tobytes().hex()}\n"
                for name, own in zip(self.relative, self.contents)
            ),
            *([] if self.decoding == USUAL else [repr(self.decoding)]),
        ]
        return hashlib.md5("".join(lines).encode("utf-8", "surrogateescape")).hexdigest()[:12]

    def require(self, unreadable: Sequence[int]) -> None:
        """Raises a UserError where some of the images cannot be read, by their numbers."""
        if unreadable:
            raise UserError(
                f"image {self.files[unreadable[0]]} cannot be read (one of {len(unreadable)}): "
                "replace or remove it, or set the hyper-parameter corrupt_images to 'skip'"
            )


def state_of(file: Path | str) -> tuple[int, int, int]:
    """Bytes, and the times of the last changes of content and of the file.

    All are -1 if it is missing, or a broken link, which is reported when it is read.
    """
    try:
        status = os.stat(file)
    except OSError:
        return -1, -1, -1
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns


def unreadable_images(listing: Listing, cache: Path, threads: int) -> list[int]:
    """Numbers of the images that cannot be read.

    All are read once, and the answer is kept in `cache` for as long as no file changes.
    """
    file = cache / f"{listing.name}-unreadable-{listing.digest}.json"
    with suppress(OSError, ValueError, LookupError):  # missing, damaged, or an earlier version's
        return read_sealed_json(file)["unreadable"]
    readable = in_order(partial(_is_readable, decoding=listing.decoding), listing.files, threads)
    found = [number for number, fine in enumerate(readable) if not fine]
    with suppress(OSError):  # a read-only folder costs time, nothing else
        cache.mkdir(parents=True, exist_ok=True)
        write_text(file, sealed_json({"unreadable": found}))
    return found


def _is_readable(file: Path, decoding: Decoding) -> bool:
    try:
        read_image(file, decoding)
    except UnreadableImage:
        return False
    return True


def make_once(folder: Path, fill: Callable[[Path], None]) -> None:
    """Makes `folder`, unless it exists or another process makes it meanwhile.

    Args:
        folder: where it will be.
        fill: is given a folder beside it, which is then moved there. What a killed process left in
            that one is still there.

    Raises:
        UserError: it cannot be written.
    """
    if folder.exists():
        return
    aside = folder.with_name(f"{folder.name}.part")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with locked(
            folder.with_name(f"{folder.name}.lock"),
            lambda: print(f"Another process makes {folder.name}: waiting for it", file=sys.stderr),
        ):
            if not folder.exists():
                aside.mkdir(exist_ok=True)
                fill(aside)
                aside.replace(folder)
    except OSError as error:
        raise UserError(
            f"{folder.name} cannot be written in {str(folder.parent)!r} ({error.strerror}): name "
            "another folder in the variable DOMAINBED_CACHE_DIR"
        ) from error


def mapped(file: Path) -> torch.Tensor:
    """A file's bytes, mapped into memory that all processes share; to be read only."""
    array = np.memmap(file, dtype=np.uint8, mode="r")
    with warnings.catch_warnings():  # it is meant to be read-only
        warnings.simplefilter("ignore")
        return torch.from_numpy(array)


def in_order(
    function: Callable[[Item], Result], items: Iterable[Item], threads: int
) -> Generator[Result, None, None]:
    """`function(item)` of all items, in their order, computed a little ahead by threads.

    `ThreadPoolExecutor.map` would compute everything ahead. To be closed where it is not used up.

    Args:
        function: what it raises is raised here.
        items: any number of them; only `threads` + 1 are in flight at a time.
        threads: 0 computes here, when a result is asked for. PyTorch uses one core in each.
    """
    if threads == 0:
        yield from map(function, items)
        return
    with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        in_flight: deque[Future[Result]] = deque()
        try:
            for item in items:
                in_flight.append(pool.submit(function, item))
                if len(in_flight) > threads:
                    yield in_flight.popleft().result()
            while in_flight:
                yield in_flight.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)
