"""From the bytes of an image file to RGB; light to import: no PyTorch."""

from __future__ import annotations

import io
import re

import numpy as np
from PIL import Image, UnidentifiedImageError


def rgb_pixels(data: bytes) -> tuple[np.ndarray, str]:
    """(H, W, 3) uint8 of an encoded image, and the mode in PIL's words that it is stored in.

    Greys of 16 bits are divided by 257; PIL's own conversion would turn all above 255 white.

    Raises:
        Exception: `data` is no image, is cut off, or has 32 bits per value; each format of PIL
            fails in its own way, see `why_unreadable`.
    """
    with Image.open(io.BytesIO(data)) as image:
        if image.mode in ("I", "F"):
            raise ValueError(
                f"its values have 32 bits (mode {image.mode}), of which none is known to be white: "
                "save it with 8 or 16 bits"
            )
        if image.mode.startswith("I;16"):
            grey = ((np.array(image, np.uint32) + 128) // 257).astype(np.uint8)
            return np.repeat(grey[:, :, None], 3, axis=2), image.mode
        return np.array(image if image.mode == "RGB" else image.convert("RGB")), image.mode


def why_unreadable(error: Exception, data: bytes) -> str:
    """Why `rgb_pixels` failed of `data`, in one line."""
    if not data:
        return "it has no bytes"
    if isinstance(error, UnidentifiedImageError):
        return "no image that PIL can read"
    text = re.sub(r" ?<[^>]*>", "", " ".join(str(error).split()))  # the address of a buffer
    return "cut off" if "truncated" in text else text or type(error).__name__
