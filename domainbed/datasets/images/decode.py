"""Reading image files as tensors."""

from __future__ import annotations

from pathlib import Path

import torch

from domainbed.core.files import regular
from domainbed.core.image_files import rgb_pixels, why_unreadable
from domainbed.errors import UserError


class UnreadableImage(UserError):
    """A file that should be an image, and cannot be read as one."""


def read_image(file: Path) -> torch.Tensor:
    """(3, H, W) uint8, in RGB, ignoring EXIF's orientation (as DomainBed does).

    Raises:
        UnreadableImage: the file is missing, not an image, or truncated.
    """
    return decode_image(file_bytes(file), str(file))


def file_bytes(file: Path) -> bytes:
    """The file's content.

    Raises:
        UnreadableImage: it cannot be opened, or is a pipe or a device.
    """
    try:
        return regular(file).read_bytes()
    except OSError as error:
        raise UnreadableImage(f"image {file} cannot be read ({error.strerror})") from error


def decode_image(data: bytes, name: str) -> torch.Tensor:
    """(3, H, W) uint8 of an encoded image; `name` is for the message of an error.

    Raises:
        UnreadableImage: `data` is not an image, is truncated, or has 32 bits per value.
    """
    try:
        pixels, _ = rgb_pixels(data)
    except Exception as error:  # PIL raises other exceptions for each format
        raise UnreadableImage(
            f"image {name} cannot be read ({why_unreadable(error, data)}): replace or remove it, "
            "or set the hyper-parameter corrupt_images to 'skip'"
        ) from error
    return torch.from_numpy(pixels).permute(2, 0, 1)
