"""Reading image files."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from domainbed.errors import UserError


class UnreadableImage(UserError):
    """A file that should be an image, and cannot be read as one."""


def read_image(file: Path) -> torch.Tensor:
    """(3, H, W) uint8, in RGB, without regard to EXIF's orientation (as in DomainBed).

    Raises:
        UnreadableImage: the file is not there, or no image, or cut off.
    """
    return decode_image(file_bytes(file), str(file))


def file_bytes(file: Path) -> bytes:
    """What is in the file.

    Raises:
        UnreadableImage: it cannot be opened.
    """
    try:
        return file.read_bytes()
    except OSError as error:
        raise UnreadableImage(f"image {file} cannot be read ({error.strerror})") from error


def decode_image(data: bytes, name: str) -> torch.Tensor:
    """(3, H, W) uint8 of an encoded image; `name` is for the message of an error.

    Raises:
        UnreadableImage: `data` is no image, or cut off.
    """
    try:
        with Image.open(io.BytesIO(data)) as image:
            pixels = np.array(image if image.mode == "RGB" else image.convert("RGB"))
    except Exception as error:  # each format of PIL fails in its own way
        reason = "cut off" if "truncated" in str(error) else "no image that PIL can read"
        raise UnreadableImage(
            f"image {name} cannot be read ({reason}): replace or remove it, or set the "
            "hyper-parameter corrupt_images to 'skip'"
        ) from error
    return torch.from_numpy(pixels).permute(2, 0, 1)
