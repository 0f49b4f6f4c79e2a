"""Image files without PyTorch: which ones in a folder count, in which order, and their pixels."""

import io
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from domainbed.errors import UserError

IMAGE_EXTENSIONS = (
    ".jpg",
    ".jpeg",
    ".png",
    ".ppm",
    ".bmp",
    ".pgm",
    ".tif",
    ".tiff",
    ".webp",
    ".dcm",
)


_NOT_OURS = frozenset(
    (
        *("__macosx", "lost+found", "$recycle.bin", "system volume information", "thumbs.db"),
        *("@eadir", "@tmp", "@recycle", "@recently-snapshot", "#recycle", "#snapshot"),
        *("network trash folder", "temporary items", "desktop.ini", "ehthumbs.db"),
        *("__pycache__", "node_modules"),
    )
)
"""Names, in lower case, that systems, file servers and tools give to what they leave in folders."""
CACHE_TAG = "CACHEDIR.TAG"
"""The file that marks a folder as a cache, by the specification of that name."""


def folders(path: Path) -> list[Path]:
    """The folders in `path`, sorted by name, without hidden ones and those of systems and tools.

    Raises:
        UserError: `path` cannot be read.
    """
    return [path / name for name in folder_names(path)]


def folder_names(path: Path) -> list[str]:
    """Their names alone."""
    names = (name for name in entries(path)[0] if not _is_junk(name))
    return sorted(name for name in names if not (path / name / CACHE_TAG).exists())


def class_folders(root: Path, domains: Iterable[str]) -> dict[str, dict[str, str]]:
    """For each domain the folders of its classes, by the names of the classes.

    These are the folders' own names, where all domains have the same. Names that are equal but for
    their Unicode form (macOS writes é as two characters) are one class, which is called by the
    composed form.

    Raises:
        UserError: a folder cannot be read, or a domain has two folders of one name.
    """
    found = {domain: folder_names(root / domain) for domain in domains}
    composed = {
        domain: {unicodedata.normalize("NFC", name): name for name in names}
        for domain, names in found.items()
    }
    for domain, names in found.items():
        for name in set(names).difference(composed[domain].values()):
            raise UserError(
                f"{str(root / domain)!r} has two folders {name!r}, in two Unicode forms (NFC and "
                "NFD): put their images into one of them"
            )
    if len(set(map(tuple, found.values()))) == 1:
        return {domain: {name: name for name in names} for domain, names in found.items()}
    return composed


def images(path: Path) -> list[Path]:
    """All images at or below `path`, recognised by their extensions.

    In the order of torchvision's ImageFolder, on which DomainBed's splits depend.

    Raises:
        UserError: a folder cannot be read, or a link leads back to a folder that contains it.
    """
    return [file for file in files(path) if is_image(file.name)]


def ignored(root: Path) -> str:
    """Counts the files below `root/<domain>/` that are not images of a class; "" for none."""
    kinds: Counter[str] = Counter()
    for domain in folders(root):
        kinds["images beside the class folders"] += sum(map(is_image, entries(domain)[1]))
        inside = (file for name in folders(domain) for file in files(name))
        kinds.update(f"{f.suffix.lower() or 'other'} files" for f in inside if not is_image(f.name))
    return ", ".join(f"{number:,} {kind}" for kind, number in sorted(kinds.items()) if number)


def is_image(name: str) -> bool:
    """Whether a file of that name counts."""
    return not _is_junk(name) and name.lower().endswith(IMAGE_EXTENSIONS)


def files(path: Path) -> list[Path]:
    """All files at or below `path`, without hidden ones; see `images`."""
    found: dict[str, list[str]] = {}
    on_error = _refuse if path.is_dir() else None
    for parent, inside, names in os.walk(path, onerror=on_error, followlinks=True):
        inside[:] = [name for name in inside if not _is_junk(name)]
        for folder in (Path(parent, name) for name in inside):
            if Path(parent).resolve().is_relative_to(folder.resolve()):
                raise UserError(
                    f"link {str(folder)!r} leads back to a folder that contains it: remove it"
                )
        found[parent] = sorted(name for name in names if not _is_junk(name))
    return [Path(parent, name) for parent in sorted(found) for name in found[parent]]


def entries(path: Path) -> tuple[list[str], list[str]]:
    """The names of the folders, and of the files, in a folder."""
    _, folders, files = next(os.walk(path, onerror=_refuse))
    return folders, files


def _refuse(error: OSError) -> None:
    raise UserError(
        f"folder {str(error.filename)!r} cannot be read ({error.strerror}): check its permissions"
    ) from error


def _is_junk(name: str) -> bool:
    return name.startswith(".") or name.lower() in _NOT_OURS


@dataclass(frozen=True)
class Decoding:
    """How the values in a file become pixels.

    Attributes:
        orientation: "exif" to turn images as their EXIF data say, "ignore" to leave them.
        window: of files with more than 8 bits, the values that become black and white; empty for
            0 and 65535, and of DICOM for the file's own window, or else its lowest and highest.
    """

    orientation: str = "ignore"
    window: tuple[float, ...] = ()


USUAL = Decoding()


def rgb_pixels(data: bytes, decoding: Decoding = USUAL) -> tuple[np.ndarray, str]:
    """Decodes an image file.

    Grey levels of 16 bits are divided by 257, unless a window is given: PIL's own conversion turns
    all above 255 white.

    Args:
        data: the file's content.
        decoding: of its values.

    Returns:
        (H, W, 3) uint8, and the mode in which the image is stored, in PIL's words, or "DICOM".

    Raises:
        UserError: `data` is DICOM's, and pydicom is missing.
        Exception: `data` is not an image, is truncated, or has 32 bits per value and no window.
            PIL raises different exceptions for each format; see `why_unreadable`.
    """
    if data[128:132] == b"DICM":
        return _dicom_pixels(data, decoding.window), "DICOM"
    with Image.open(io.BytesIO(data)) as image:
        mode = image.mode
        # Before Pillow 11, and of PGM, 16 bits have the mode of 32.
        is_wide = mode.startswith("I;16") or (mode == "I" and image.format in ("PNG", "PPM"))
        window = decoding.window or ((0, 65535) if is_wide else ())
        if mode in ("I", "F") and not window:
            raise ValueError(
                f"its values have 32 bits (mode {mode}), and which one is white is unknown: "
                "save it with 8 or 16 bits, or set the hyper-parameter window"
            )
        starts_white = getattr(image, "tag_v2", {}).get(262) == 0  # TIFF's photometric tag
        if decoding.orientation == "exif":
            image = ImageOps.exif_transpose(image)
        if is_wide or mode in ("I", "F"):
            return _windowed(np.array(image), window, starts_white), mode
        image.info.pop("transparency", None)  # PIL warns that a palette's is lost, as all is here
        return np.array(image if image.mode == "RGB" else image.convert("RGB")), mode


def _windowed(values: np.ndarray, window: Sequence[float], starts_white: bool) -> np.ndarray:
    """(H, W, 3) uint8 of values (H, W): linear between the ends of the window."""
    low, high = window
    shares = (values.astype(np.float64) - low) / max(high - low, np.finfo(float).tiny)
    grey = np.rint(255 * shares.clip(0, 1)).astype(np.uint8)
    return np.repeat((~grey if starts_white else grey)[:, :, None], 3, axis=2)


def _dicom_pixels(data: bytes, window: Sequence[float]) -> np.ndarray:
    """(H, W, 3) uint8 of a DICOM file.

    Stored values become quantities (Hounsfield units, say) by the file's rescale slope and
    intercept or its table, and these grey levels by a window: DICOM PS3.3, C.11.1 and C.11.2.
    """
    try:
        import pydicom
        from pydicom.pixels import processing
    except ImportError as error:
        raise UserError("DICOM needs pydicom: pip install pydicom") from error
    file = pydicom.dcmread(io.BytesIO(data))
    if (frames := int(file.get("NumberOfFrames") or 1)) > 1:
        raise ValueError(f"it has {frames} frames: save each in a file of its own")
    values, kind = file.pixel_array, file.PhotometricInterpretation
    if kind == "PALETTE COLOR":
        values = processing.apply_color_lut(values, file)
    if values.ndim == 3:  # colours, of 8 or 16 bits
        return values if values.dtype == np.uint8 else (values // 257).astype(np.uint8)
    values = processing.apply_modality_lut(values, file)
    if "VOILUTSequence" in file and not window:
        values = processing.apply_voi_lut(values, file)
    elif "WindowCenter" in file and not window:
        center, width = (
            float(np.atleast_1d(file[name].value)[0]) for name in ("WindowCenter", "WindowWidth")
        )
        half, is_exact = width / 2, file.get("VOILUTFunction") == "LINEAR_EXACT"
        window = center - half, center + half - (0 if is_exact else 1)
    return _windowed(values, window or (values.min(), values.max()), kind == "MONOCHROME1")


def is_turned(data: bytes) -> bool:
    """Whether the EXIF data of an image file ask for it to be turned or mirrored.

    PIL does that itself with TIFF.
    """
    if b"exif" not in data.lower():
        return False
    with suppress(Exception), Image.open(io.BytesIO(data)) as image:
        return image.format != "TIFF" and image.getexif().get(0x0112, 1) not in (0, 1)
    return False


def why_unreadable(error: Exception, data: bytes) -> str:
    """Why `rgb_pixels` failed on `data`, in one line."""
    if not data:
        return "it has no bytes"
    if isinstance(error, UnidentifiedImageError):
        return "not an image that PIL can read"
    text = re.sub(r" ?<[^>]*>", "", " ".join(str(error).split()))  # the address of a buffer
    return "cut off" if "truncated" in text else text or type(error).__name__
