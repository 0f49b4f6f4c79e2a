"""Images in Parquet files, as the Hugging Face Hub keeps them: columns image, domain, label."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from domainbed.core.image_files import is_image
from domainbed.download.found import Found, Unusable
from domainbed.download.tree import published_name
from domainbed.errors import UserError, one_line

if TYPE_CHECKING:
    from domainbed.config.dataset_info import DatasetInfo

COLUMNS = ("image", "domain", "label")
_ROWS_AT_ONCE = 64
_EXTENSIONS = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp", "BMP": "bmp", "TIFF": "tif"}


def read(
    files: Sequence[Path], info: DatasetInfo, aliases: Mapping[str, str], notes: list[str]
) -> Iterator[Found]:
    """The images of all rows, with the bytes that were stored and not encoded anew.

    Raises:
        Unusable: a column is missing or has no names.
        UserError: the libraries that read Parquet files are not installed.
    """
    number = 0
    for file in files:
        for row, features in _rows(file):
            yield _found(row, features, number, info, aliases)
            number += 1
    notes.append(
        "the files carry the mirror's names: where these differ from the original's, so do the "
        "splits, which follow the order of the names"
    )


def _rows(file: Path) -> Iterator[tuple[Mapping[str, Any], Mapping[str, Any]]]:
    """Each row, with the file's features, which name the classes."""
    try:
        import datasets
        import pyarrow.parquet
    except ImportError as error:
        raise UserError(
            f"{file} is a Parquet file, and {error.name} is not installed: "
            "pip install 'domainbed[hub]'"
        ) from error
    try:
        table = pyarrow.parquet.ParquetFile(file)
        features = datasets.Features.from_arrow_schema(table.schema_arrow)
        if missing := [name for name in COLUMNS if name not in features]:
            raise Unusable(
                f"{file.name} has no column {missing[0]!r}: its columns are {', '.join(features)}"
            )
        for batch in table.iter_batches(_ROWS_AT_ONCE, columns=list(COLUMNS)):
            for row in batch.to_pylist():
                yield row, features
    except (OSError, ValueError) as error:
        raise Unusable(f"{file.name} is damaged ({one_line(error)})") from error


def _found(
    row: Mapping[str, Any],
    features: Mapping[str, Any],
    number: int,
    info: DatasetInfo,
    aliases: Mapping[str, str],
) -> Found:
    domain, label = (_name(row[column], features[column], column) for column in COLUMNS[1:])
    domain = published_name(domain, info.domains, aliases) or domain
    label = published_name(label, info.classes or (), {}) or label
    content = (row["image"] or {}).get("bytes")
    if not content:
        raise Unusable(f"row {number} of the Parquet files holds no image")
    name = PurePosixPath(row["image"]["path"] or "").name
    return Found(domain, label, name if is_image(name) else _new_name(content, number), content)


def _name(value: Any, feature: Any, column: str) -> str:
    """Of a class: stored as text, or as a number with the names in the file's schema."""
    if isinstance(value, int) and hasattr(feature, "int2str"):
        value = feature.int2str(value)
    if not isinstance(value, str) or not value or "/" in value or value.startswith("."):
        raise Unusable(f"column {column!r} holds {value!r}, which is no name of a {column}")
    return value


def _new_name(content: bytes, number: int) -> str:
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(content)) as image:
            extension = _EXTENSIONS.get(image.format or "", "jpg")
    except UnidentifiedImageError:  # its place is kept: `verify` names it
        extension = "jpg"
    return f"{number:06d}.{extension}"
