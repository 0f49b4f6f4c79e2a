"""Whether a dataset on disk is the published one, and whether every image can be read."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from domainbed.core.image_files import ignored
from domainbed.download import mnist
from domainbed.download.catalogue import SOURCES, Origin
from domainbed.download.decoding import look_at_all
from domainbed.download.tree import (
    NO_NUMBERS,
    Counts,
    ImageFiles,
    Problem,
    count,
    differences,
    edition,
    look_into,
    own_problems,
)
from domainbed.errors import UserError

_HARMLESS_MODES = ("RGB", "L")


@dataclass
class Verification:
    """What was found in one dataset's folder.

    Attributes:
        name: of the dataset.
        folder: where it lies.
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
        UserError: no such dataset, or it is made of no image files.
    """
    from domainbed.datasets import get_dataset_class

    cls = get_dataset_class(name)
    info = cls.info
    if info is not None and not info.folder:
        return Verification(
            name, "", "published", notes=["comes with the package; nothing to check"]
        )
    if info is not None and info.folder == mnist.FOLDER:
        return _verify_mnist(name, Path(data_dir))
    if hasattr(cls, "manifest"):
        return _report(name, cls.manifest.file.parent, _listed(cls.manifest), None)
    if not hasattr(cls, "locate"):
        raise UserError(f"{name} is made of no image files that could be verified")
    root = cls.locate(str(data_dir))
    if not os.path.isdir(root):
        problem = Problem("missing", "", f"{root} does not exist: {_remedy(name, data_dir)}")
        return Verification(name, str(root), problems=[problem])
    found, problems = look_into(cls, root)
    report = _report(name, root, found, info, problems)
    if not hasattr(cls, "contents") and (others := ignored(root)):
        report.notes.append(f"ignored, in training too: {others}")
    return report


def _report(
    name: str, root: Path, found: ImageFiles, info: Any, problems: Iterable[Problem] = ()
) -> Verification:
    report = Verification(name, str(root), counts=count(found), problems=list(problems))
    _compare(report, info, SOURCES.get(name, Origin(sources=())))
    _look(report, found, root)
    return report


def _listed(manifest: Any) -> ImageFiles:
    found: ImageFiles = {
        domain: {name: [] for name in manifest.classes} for domain in manifest.domains
    }
    for entries in manifest.images:
        for entry in entries:
            found[entry.domain][entry.label].append(manifest.file.parent / entry.path)
    return found


def _remedy(name: str, data_dir: Path | str) -> str:
    get = f"`domainbed download {name} --data_dir {data_dir}`"
    return get if name in SOURCES else "check the path"


def _verify_mnist(name: str, data_dir: Path) -> Verification:
    report = Verification(name, str(data_dir / mnist.FOLDER))
    if problem := mnist.check(data_dir):
        get = f"`domainbed download {name} --data_dir {data_dir}`"
        message = f"{problem}; remove {report.folder}, if it is there, and get it with {get}"
        report.problems = [Problem("missing", "", message)]
    else:
        report.edition = "published"
        report.notes = ["70,000 images; domains and colours are made of them when they are loaded"]
    return report


def _compare(report: Verification, info: Any, origin: Origin) -> None:
    if info is None:
        report.problems += own_problems(report.counts)
        return
    report.problems += differences(report.counts, info, origin.variants)
    named = edition(report.counts, info, origin.variants)
    report.published = dict(zip(info.domains, origin.variants.get(named, info.images)))
    report.edition = "" if report.problems else named
    if not info.images:
        report.notes.append(NO_NUMBERS)
    if report.edition not in ("", "published"):
        report.notes.append(f"this is {named}: {report.images:,} images")


def _look(report: Verification, found: ImageFiles, root: Path) -> None:
    """Decodes all images; hashes those whose size also occurs in another domain."""
    domains = {
        file: domain
        for domain, classes in found.items()
        for files in classes.values()
        for file in files
    }
    files, hashed = list(domains), _same_sizes(domains)
    same: dict[str, list[Path]] = defaultdict(list)
    modes: dict[str, list[str]] = defaultdict(list)
    looks = look_at_all(files, [file in hashed for file in files])
    for look in tqdm(looks, report.name, len(files), unit="image", disable=None):
        where = _below(root, look.file)
        if look.error:
            message = f"{where} cannot be read: {look.error}"
            report.problems.append(Problem("unreadable", where, message))
        elif look.mode not in _HARMLESS_MODES:
            modes[look.mode].append(where)
        if look.digest and not look.error:
            same[look.digest].append(look.file)
    report.problems += _duplicates(same.values(), domains, root)
    report.notes += [
        f"mode {mode}, converted to RGB when read: {', '.join(sorted(names))}"
        for mode, names in sorted(modes.items())
    ]


def _below(root: Path, file: Path) -> str:
    return (file.relative_to(root) if file.is_relative_to(root) else file).as_posix()


def _same_sizes(domains: Mapping[Path, str]) -> set[Path]:
    sizes: dict[int, list[Path]] = defaultdict(list)
    for file in domains:
        with suppress(OSError):  # a manifest may list a file that is not there
            sizes[file.stat().st_size].append(file)
    return {
        file
        for files in sizes.values()
        if len({domains[file] for file in files}) > 1
        for file in files
    }


def _duplicates(
    groups: Iterable[list[Path]], domains: Mapping[Path, str], root: Path
) -> list[Problem]:
    return [
        Problem(
            "duplicate", names[0], f"the same image lies in several domains: {', '.join(names)}"
        )
        for files in groups
        if len({domains[file] for file in files}) > 1
        and (names := sorted(_below(root, file) for file in files))
    ]
