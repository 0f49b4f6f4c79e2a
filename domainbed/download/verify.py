"""Whether a dataset on disk is the published one, and whether every image can be read."""

import io
import warnings
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from itertools import chain
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any

from tqdm import tqdm

from domainbed.config.dataset_info import DatasetInfo
from domainbed.core.cores import usable_cores
from domainbed.core.files import digest_of, regular
from domainbed.core.image_files import class_folders, folder_names, ignored, images
from domainbed.download.catalogue import SOURCES, Origin
from domainbed.errors import UserError, in_shell

# Files per domain and class.
ImageFiles = dict[str, dict[str, list[Path]]]

# Images per domain and class.
Counts = dict[str, dict[str, int]]

NO_NUMBERS = "no numbers of images are published with which to compare these"
MNIST_FOLDER = "MNIST"
# MD5 of the published files, unpacked.
MNIST_CHECKSUMS = {
    "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
    "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
    "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
    "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
}

_HARMLESS_MODES = ("RGB", "L")
_FILES_AT_ONCE = 32  # for one thread


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong.

    Attributes:
        kind: missing, domains, classes, count, empty, unreadable or duplicate.
        where: the dataset, domain, class folder or file, below the dataset's folder.
        message: one line.
    """

    kind: str
    where: str
    message: str


@dataclass
class Verification:
    """What was found in one dataset's folder.

    Attributes:
        name: of the dataset.
        folder: where it is.
        edition: "published", a known variant of it, or "" if it is neither.
        counts: images per domain and class.
        published: images per domain, of the edition or as published; empty for own images.
        problems: what makes it another dataset, or an unreadable one.
        notes: what is worth knowing and harms nothing.
    """

    name: str
    folder: str
    edition: str = ""
    counts: Counts = field(default_factory=dict)
    published: dict[str, int] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        return not self.problems

    @property
    def images(self) -> int:
        return sum(sum(classes.values()) for classes in self.counts.values())

    def to_json(self) -> dict[str, Any]:
        """Plain values, with `ok` and `images`."""
        return {"ok": self.ok, "images": self.images, **asdict(self)}


def verify_dataset(name: str, data_dir: Path | str) -> Verification:
    """Compares domains, classes and counts, and decodes every image.

    Args:
        name: a registered dataset, `folder:PATH`, a YAML file that describes a folder, or a
            manifest.
        data_dir: the folder of all datasets.

    Raises:
        UserError: no such dataset, or it consists of other things than image files.
    """
    from domainbed.datasets import get_dataset_class

    cls = get_dataset_class(name)
    info = cls.info
    if info is not None and not info.folder:
        return Verification(
            name, "", "published", notes=["comes with the package; nothing to check"]
        )
    if hasattr(cls, "locate"):
        root = cls.locate(str(data_dir))
    elif info is not None and info.folder == MNIST_FOLDER:
        root = Path(data_dir) / MNIST_FOLDER
    else:
        raise UserError(f"{name} has no image files that could be verified")
    if not root.is_dir():
        get = f"get it with `domainbed data download {name} --data_dir {in_shell(data_dir)}`"
        message = f"{root} does not exist: {get if name in SOURCES else 'check the path'}"
        return Verification(name, str(root), problems=[Problem("missing", "", message)])
    report, found = inspect(name, cls, root)
    _decode_all(report, found, root, _validating(cls))
    if hasattr(cls, "locate") and not hasattr(cls, "contents") and (others := ignored(root)):
        report.notes.append(f"ignored, in training too: {others}")
    return report


def inspect(name: str, dataset: Any, folder: Path) -> tuple[Verification, ImageFiles]:
    """Compares the files in a dataset's folder with the published ones; decodes nothing.

    Args:
        name: of the dataset.
        dataset: its class.
        folder: where its files are.

    Returns:
        A report without anything that only decoding shows; the images.
    """
    info, variants = dataset.info, SOURCES.get(name, Origin(sources=())).variants
    report = Verification(name, str(folder))
    if info is not None and info.folder == MNIST_FOLDER:
        if problem := _mnist_problem(folder):
            report.problems.append(Problem("missing", "", problem))
        else:
            report.edition = "published"
            report.notes.append("70,000 images; loading makes domains and colours of them")
        return report, {}
    found, report.problems = _look_into(dataset, folder)
    report.counts = {
        domain: {name: len(files) for name, files in classes.items()}
        for domain, classes in found.items()
    }
    if info is None:
        report.problems += _own_problems(report.counts)
        return report, found
    editions = {"published": info.images, **variants}
    here = tuple(_number_of_images(report.counts.get(each, {}), info) for each in info.domains)
    edition = next((name for name, numbers in editions.items() if numbers == here), "")
    report.problems += _differences(report.counts, info, bool(edition))
    report.published = dict(zip(info.domains, editions[edition or "published"]))
    report.edition = "" if report.problems else edition
    if not info.images:
        report.notes.append(NO_NUMBERS)
    if report.edition not in ("", "published"):
        report.notes.append(f"this is {edition}: {report.images:,} images")
    return report, found


def _mnist_problem(folder: Path) -> str:
    """What is wrong with MNIST's files in `folder`, or "" for nothing."""
    from torchvision.datasets.utils import check_integrity

    old = folder / "processed"
    if old.exists():
        return f"{old} would be read in place of the published files: remove it"
    for name, md5 in MNIST_CHECKSUMS.items():
        file = folder / "raw" / name
        if not check_integrity(file, md5):
            return f"{file} is not there, or not the published file with the MD5 checksum {md5}"
    return ""


def _look_into(dataset: Any, root: Path) -> tuple[ImageFiles, list[Problem]]:
    """The images in the folder `root` of a dataset's class, and what the folder itself lacks."""
    if not hasattr(dataset, "contents"):
        return scan(root), []
    try:
        contents = dataset.contents(root)
    except UserError as error:
        return {}, [Problem("missing", "", str(error))]
    problems = [Problem("missing", "", contents.missing)] if contents.missing else []
    return contents.by_class(), problems


def scan(root: Path) -> ImageFiles:
    """The images of each class of each domain; a folder without images counts as a class, too."""
    return {
        domain: {name: images(root / domain / folder) for name, folder in own.items()}
        for domain, own in class_folders(root, folder_names(root)).items()
    }


def _number_of_images(classes: Mapping[str, int], info: DatasetInfo) -> int:
    """Without those of other classes, which must not make up for missing ones."""
    return sum(n for name, n in classes.items() if not info.classes or name in info.classes)


def _differences(counts: Counts, info: DatasetInfo, is_edition: bool) -> Iterator[Problem]:
    """How domains, classes and, but for a known edition, numbers differ from the published ones."""
    for domain in sorted(set(info.domains) - set(counts)):
        yield Problem("domains", domain, f"domain {domain!r} is missing")
    for domain in sorted(set(counts) - set(info.domains)):
        yield Problem("domains", domain, f"domain {domain!r} was not published")
    known = {domain: counts[domain] for domain in info.domains if domain in counts}
    yield from _other_classes(known, info.classes, info.num_classes, info.sparse)
    for domain, published in () if is_edition else zip(info.domains, info.images):
        number = _number_of_images(known.get(domain, {}), info)
        if domain in known and number != published:
            message = f"domain {domain!r} has {number:,} images, published {published:,}"
            yield Problem("count", domain, message)


def _other_classes(
    counts: Counts, published: tuple[str, ...] | None, number: int, sparse: bool = False
) -> Iterator[Problem]:
    """Where the published names are not known, all classes of all domains are expected.

    A `sparse` domain may lack some of them.
    """
    seen = {name for classes in counts.values() for name in classes}
    if published is None and len(seen) != number:
        yield Problem("classes", "", f"{len(seen)} classes, published {number}")
    expected = seen if published is None else set(published)
    for domain, classes in counts.items():
        for name in () if sparse else sorted(expected - set(classes)):
            yield Problem("classes", domain, f"domain {domain!r} lacks class {name!r}")
        for name in sorted(set(classes) - expected):
            message = f"class {name!r} of {domain!r} was not published"
            yield Problem("classes", f"{domain}/{name}", message)
        for name in sorted(name for name, number_here in classes.items() if not number_here):
            yield Problem("classes", f"{domain}/{name}", f"class {name!r} of {domain!r} is empty")


def _own_problems(counts: Counts) -> list[Problem]:
    """For what training would refuse a user's own images."""
    seen = tuple(sorted({name for classes in counts.values() for name in classes}))
    problems = [
        Problem(
            kind, "", f"{number} {kind}: training needs two or more, as <domain>/<class>/<image>"
        )
        for kind, number in (("domains", len(counts)), ("classes", len(seen)))
        if number < 2
    ]
    return problems + list(_other_classes(counts, seen, len(seen)))


def _validating(dataset: Any) -> set[Path]:
    """The images that validate, where a manifest says so."""
    if not hasattr(dataset, "listed"):
        return set()
    listed, splits = dataset.listed.images, dataset.listed.roles.get("split", ())
    return {file for (file, _), split in zip(chain(*listed), chain(*splits)) if split == "out"}


def _decode_all(report: Verification, found: ImageFiles, root: Path, validating: set[Path]) -> None:
    """Decodes all images, on all cores, and compares their digests between domains and splits."""
    domains = {
        file: domain
        for domain, classes in found.items()
        for files in classes.values()
        for file in files
    }
    same: dict[str, list[Path]] = defaultdict(list)
    modes: dict[str, list[str]] = defaultdict(list)
    with ThreadPool(usable_cores()) as pool, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        looks = pool.imap(look_at, domains, chunksize=_FILES_AT_ONCE)
        for file, (error, mode, digest) in zip(
            domains, tqdm(looks, report.name, len(domains), unit="image", disable=None)
        ):
            where = _below(root, file)
            if error:
                message = f"{where} cannot be read: {error}"
                report.problems.append(Problem("unreadable", where, message))
                continue
            same[digest].append(file)
            if mode not in _HARMLESS_MODES:
                modes[mode].append(where)
    twice = []
    for files in same.values():
        names = sorted(_below(root, file) for file in files)
        if len({domains[file] for file in files}) > 1:
            where = "is in several domains"
        elif len({file in validating for file in files}) > 1:
            where = "trains and validates"
        else:
            twice += [names] * (len(files) > 1)
            continue
        message = f"the same image {where}: {', '.join(names)}"
        report.problems.append(Problem("duplicate", names[0], message))
    if twice:
        report.notes.append(
            f"{len(twice)} images are there twice in a domain, and may be in different splits, "
            f"such as {', '.join(twice[0])}"
        )
    report.notes += [
        f"mode {mode}, converted to RGB when read: {', '.join(sorted(names))}"
        for mode, names in sorted(modes.items())
    ]


def look_at(file: Path) -> tuple[str, str, str]:
    """Decodes every pixel of an image as training does.

    Returns:
        Why it cannot be read in full, or ""; PIL's mode, such as RGB; the digest of the file.
    """
    from PIL import Image

    from domainbed.core.image_files import rgb_pixels, why_unreadable

    try:
        content = regular(file).read_bytes()
    except OSError as error:
        return error.strerror or str(error), "", ""
    try:
        mode = rgb_pixels(content)[1]
        if mode != "DICOM":
            with Image.open(io.BytesIO(content)) as image:
                image.verify()  # the checksums that PNG files have
        return "", mode, digest_of(content)
    except Exception as error:  # decoders raise anything over damaged bytes
        return why_unreadable(error, content), "", ""


def _below(root: Path, file: Path) -> str:
    return (file.relative_to(root) if file.is_relative_to(root) else file).as_posix()
