"""Finding a dataset's images in whatever a source, or a user, provides.

Supported are: image folders at any depth and under any of the names in use, with or without split
folders; TerraIncognita's camera-trap images with their annotations; DomainNet's raw archives with
the official lists; Parquet files of the Hugging Face Hub, those of WILDS' Camelyon17 among them;
MNIST's four files; and, at any depth, the folder of a dataset that is kept as it was published.
"""

import gzip
import io
import json
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from domainbed.config.dataset_info import DatasetInfo
from domainbed.core.files import regular
from domainbed.core.image_files import files, folders, images, is_image
from domainbed.download.catalogue import Origin, published_name
from domainbed.download.fetch import Unusable
from domainbed.download.verify import MNIST_CHECKSUMS, MNIST_FOLDER
from domainbed.errors import one_line

# A path below the dataset's folder, such as domain/class/name, and the file or bytes for it.
PlacedFile = tuple[str, Path | bytes]

_SPLITS = {"full", "train", "val", "validation", "crossval", "test"}
_DEPTH = 5  # of folders around the domains; PACS is known as pacs_data/PACS/kfold
_TERRA_PARTS = ("cis_test", "cis_val", "train", "trans_test", "trans_val")
TERRA_ANNOTATIONS = tuple(f"{part}_annotations.json" for part in _TERRA_PARTS)
HUB_COLUMNS = ("image", "domain", "label")
# Columns of the Hub's Camelyon17 beside `image`, to those of WILDS' own table.
CAMELYON_COLUMNS = {
    "image_id": "",
    "patient": "patient",
    "node": "node",
    "x_coord": "x_coord",
    "y_coord": "y_coord",
    "label": "tumor",
    "slide": "slide",
    "center": "center",
}
_HUB_ROWS_AT_ONCE = 64
_EXTENSIONS = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp", "BMP": "bmp", "TIFF": "tif"}
_MNIST_MOST_BYTES = 50_000_000  # the largest file has 47,040,016


@dataclass
class Layout:
    """What was found.

    Attributes:
        files: can be iterated over once.
        complete: whether every published domain is there.
        notes: remarks on them.
    """

    files: Iterable[PlacedFile]
    complete: bool = True
    notes: list[str] = field(default_factory=list)


def find_layout(name: str, dataset: Any, origin: Origin, roots: Sequence[Path]) -> Layout | None:
    """The files of dataset `name`, of class `dataset`, below `roots`; None where there are none.

    Raises:
        Unusable: several folders hold it, or files that describe it are damaged.
    """
    named = {file.name: file for root in roots for file in root.rglob("*")}
    if name == "CelebA" and set(dataset.files) <= set(named):  # three files, of which one is packed
        faces = [each for each in named.values() if each.parent.name == "img_align_celeba"]
        placed = [(each, named[each]) for each in dataset.files]
        placed += [(f"img_align_celeba/{each.name}", each) for each in faces]
        return Layout(placed, complete=bool(faces))
    if hasattr(dataset, "contents"):  # it is kept as it was published
        if found := _best_folder(roots, lambda folder: int(dataset.holds(folder))):
            return Layout((f.relative_to(found[0]).as_posix(), f) for f in files(found[0]))
        tables = _parquet(roots) if name == "WILDSCamelyon" else []
        return Layout(_camelyon_rows(tables)) if tables else None
    info: DatasetInfo = dataset.info
    if info.folder == MNIST_FOLDER:
        return Layout(_mnist_files(named))
    layout = Layout(())
    if name == "TerraIncognita" and set(TERRA_ANNOTATIONS) <= set(named):
        layout.files = _terra_images(named, info, layout.notes)
        return layout if any(map(is_image, named)) else None
    if found := _best_folder(roots, lambda folder: len(_domains_in(folder, info, origin))):
        layout.files = _in_folder(found[0], info, origin)
        layout.complete = found[1] == len(info.domains)
        lists = [f"{domain}_{part}.txt" for domain in info.domains for part in ("train", "test")]
        if name == "DomainNet" and set(lists) <= set(named):
            layout.files = _listed([named[each] for each in lists], layout.files, layout.notes)
        return layout
    if tables := _parquet(roots):
        layout.files = _hub_rows(tables, info, origin.aliases, layout.notes)
        return layout
    return None


def _best_folder(roots: Iterable[Path], score: Callable[[Path], int]) -> tuple[Path, int] | None:
    """The folder at or below `roots` with the highest score, then the least deep; and its score.

    What is below a folder with a score is not searched.

    Raises:
        Unusable: several are equal.
    """
    scored: list[tuple[int, int, Path]] = []
    level = [root for root in roots if root.is_dir()]
    for depth in range(_DEPTH):
        below: list[Path] = []
        for folder in level:
            if number := score(folder):
                scored.append((number, -depth, folder))
            else:
                below += folders(folder)
        level = below
    scored.sort(key=lambda each: each[:2], reverse=True)
    if len(scored) > 1 and scored[0][:2] == scored[1][:2]:
        first, second = (str(folder) for _, _, folder in scored[:2])
        raise Unusable(f"the dataset is in {first!r} and in {second!r}: name one")
    return (scored[0][2], scored[0][0]) if scored else None


def _domains_in(folder: Path, info: DatasetInfo, origin: Origin) -> set[str]:
    """The published domains that have a folder with images in `folder`."""
    named = {
        domain: published_name(domain.name, info.domains, origin.aliases)
        for domain in folders(folder)
    }
    return {name for domain, name in named.items() if name and _has_images(domain)}


def _has_images(domain: Path) -> bool:
    return any(is_image(file.name) for name in _class_folders(domain) for file in name.rglob("*"))


def _class_folders(domain: Path) -> list[Path]:
    """Its folders, or those of its splits; `full` holds the images of all the others."""
    inside = folders(domain)
    splits = {path.name.lower(): path for path in inside}
    if not inside or not set(splits) <= _SPLITS:
        return inside
    parts = [splits["full"]] if "full" in splits else list(splits.values())
    return [name for part in parts for name in folders(part)]


def _in_folder(root: Path, info: DatasetInfo, origin: Origin) -> Iterator[PlacedFile]:
    for folder in folders(root):
        domain = published_name(folder.name, info.domains, origin.aliases) or folder.name
        for inside in _class_folders(folder):
            label = published_name(inside.name, info.classes or (), {}) or inside.name
            for file in images(inside):
                yield f"{domain}/{label}/{file.relative_to(inside).as_posix()}", file


def _listed(
    lists: Iterable[Path], found: Iterable[PlacedFile], notes: list[str]
) -> Iterator[PlacedFile]:
    """DomainNet's images in the official lists; says in `notes` how many others there were."""
    names: set[str] = set()
    for file in lists:
        try:
            lines = regular(file).read_text(encoding="utf-8").splitlines()
        except UnicodeDecodeError as error:
            raise Unusable(f"{file.name} is not a list of images ({one_line(error)})") from error
        names.update(line.rpartition(" ")[0] for line in lines)
    dropped = 0
    for path, content in found:
        if path in names:
            yield path, content
        else:
            dropped += 1
    notes.append(f"{dropped:,} images that the official lists do not name were left out")


def _terra_images(
    named: Mapping[str, Path], info: DatasetInfo, notes: list[str]
) -> Iterator[PlacedFile]:
    """Four locations and the ten categories of the Caltech Camera Traps.

    Beery, Van Horn, Perona, ECCV 2018, in the subset of Gulrajani and Lopez-Paz 2021, appendix. An
    image that is annotated with several of the categories is in the folder of each, as in
    DomainBed. `notes` gets their number, and that of annotated images without a file.
    """
    labels: dict[tuple[str, str], set[str]] = {}
    for part in TERRA_ANNOTATIONS:
        try:
            pairs = _annotated(json.loads(regular(named[part]).read_text(encoding="utf-8")))
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise Unusable(f"{part} is not an annotation file ({one_line(error)})") from error
        for image, category in pairs:
            if image[0] in info.domains and category in (info.classes or ()):
                labels.setdefault(image, set()).add(category)
    here = {image: categories for image, categories in labels.items() if image[1] in named}
    for (domain, name), categories in sorted(here.items()):
        for category in sorted(categories):
            yield f"{domain}/{category}/{name}", named[name]
    several = sum(len(categories) > 1 for categories in here.values())
    notes.append(f"{several:,} images have several of the categories and are in each folder")
    if missing := len(labels) - len(here):
        notes.append(f"{missing:,} annotated images have no file")


def _annotated(table: dict[str, Any]) -> list[tuple[tuple[str, str], str]]:
    """Domain and file name, and a category, for each annotation of a file."""
    names = {category["id"]: category["name"] for category in table["categories"]}
    images_by_id = {
        image["id"]: (f"location_{image['location']}", Path(image["file_name"]).name)
        for image in table["images"]
    }
    return [
        (images_by_id[annotation["image_id"]], names[annotation["category_id"]])
        for annotation in table["annotations"]
        if annotation["image_id"] in images_by_id
    ]


def _parquet(roots: Iterable[Path]) -> list[Path]:
    found = (file for root in roots for file in root.rglob("*.parquet"))
    return sorted(file for file in found if file.is_file())


def _hub_rows(
    tables: Sequence[Path], info: DatasetInfo, aliases: Mapping[str, str], notes: list[str]
) -> Iterator[PlacedFile]:
    """The images in Parquet files of the Hugging Face Hub, in the bytes stored there."""
    number = 0
    for file in tables:
        for row in _rows(file, HUB_COLUMNS, named=HUB_COLUMNS[1:]):
            domain, label = (_valid_name(row[column], column) for column in HUB_COLUMNS[1:])
            domain = published_name(domain, info.domains, aliases) or domain
            label = published_name(label, info.classes or (), {}) or label
            content = _image(row, number)
            name = PurePosixPath(row["image"]["path"] or "").name
            name = name if is_image(name) else f"{number:06d}.{_extension(content)}"
            yield f"{domain}/{label}/{name}", content
            number += 1
    notes.append(
        "the files have the names that the mirror gives them: where these differ from the "
        "original's, so do the splits, which follow the order of the names"
    )


def _camelyon_rows(tables: Sequence[Path]) -> Iterator[PlacedFile]:
    """Camelyon17 as WILDS published it: the patches, then the table, in the order of `image_id`.

    The splits follow the order of the table, which the Parquet files do not keep.
    """
    import pandas

    listed: list[list[int]] = []
    for file in tables:
        for row in _rows(file, ("image", *CAMELYON_COLUMNS)):
            try:
                numbers = [int(row[column]) for column in CAMELYON_COLUMNS]
            except (TypeError, ValueError) as error:
                raise Unusable(
                    f"row {len(listed)} of the Parquet files: expected a number in each of the "
                    f"columns {', '.join(CAMELYON_COLUMNS)} ({one_line(error)})"
                ) from error
            _, patient, node, x, y, *_ = numbers
            scan = f"patient_{patient:03d}_node_{node}"
            yield f"patches/{scan}/patch_{scan}_x_{x}_y_{y}.png", _image(row, len(listed))
            listed.append(numbers)
    table = pandas.DataFrame(sorted(listed), columns=list(CAMELYON_COLUMNS.values()))
    table["patient"] = table["patient"].map("{:03d}".format)  # as in the file names
    yield "metadata.csv", table.to_csv(index=False).encode()


def _image(row: Mapping[str, Any], number: int) -> bytes:
    content: bytes | None = (row["image"] or {}).get("bytes")
    if not content:
        raise Unusable(f"row {number} of the Parquet files holds no image")
    return content


def _rows(
    file: Path, columns: Sequence[str], named: Sequence[str] = ()
) -> Iterator[dict[str, Any]]:
    """Rows; numbers in the columns `named` become the names that the file's schema lists."""
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.ParquetFile(file)
        schema = table.schema_arrow
        if missing := [name for name in columns if name not in schema.names]:
            raise Unusable(
                f"{file.name} has no column {missing[0]!r}: its columns are "
                f"{', '.join(schema.names)}"
            )
        about = json.loads((schema.metadata or {}).get(b"huggingface", "{}"))
        features = about.get("info", {}).get("features", {})
        for batch in table.iter_batches(_HUB_ROWS_AT_ONCE, columns=list(columns)):
            for row in batch.to_pylist():
                for column in named:
                    names = features.get(column, {}).get("names")
                    row[column] = names[row[column]] if names else row[column]
                yield row
    except (OSError, ValueError) as error:
        raise Unusable(f"{file.name} is damaged ({one_line(error)})") from error


def _valid_name(value: Any, column: str) -> str:
    if not isinstance(value, str) or not value or "/" in value or value.startswith("."):
        raise Unusable(f"column {column!r} holds {value!r}, which is not the name of a {column}")
    return value


def _extension(content: bytes) -> str:
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(content)) as image:
            return _EXTENSIONS.get(image.format or "", "jpg")
    except UnidentifiedImageError:  # it is placed all the same: `verify` names it
        return "jpg"


def _mnist_files(named: Mapping[str, Path]) -> Iterator[PlacedFile]:
    """The four files of MNIST, compressed or not."""
    for name in MNIST_CHECKSUMS:
        file = named.get(name) or named.get(f"{name}.gz")
        if file is None:
            raise Unusable(f"there is no file {name} or {name}.gz")
        if file.suffix != ".gz":
            yield f"raw/{name}", file
            continue
        try:
            with gzip.open(regular(file)) as stream:
                # More is not MNIST, and may be endless.
                yield f"raw/{name}", stream.read(_MNIST_MOST_BYTES)
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise Unusable(f"{file.name} is damaged ({one_line(error)})") from error
