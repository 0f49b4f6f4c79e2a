"""From a source, or a user's copy, to a complete dataset in the data folder.

Everything is prepared in a hidden folder beside the target and moved into place at the end, so an
interrupted call leaves nothing that looks like a dataset. What was downloaded stays there, and the
next call goes on from it.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from domainbed.core.files import locked, regular
from domainbed.core.image_files import files, images
from domainbed.download import mnist
from domainbed.download.archives import BadArchive, extract, is_archive, unpacked_size
from domainbed.download.catalogue import SOURCES, Origin, Source
from domainbed.download.fetch import DISK_FULL, fetch, require_space
from domainbed.download.found import Found, Unusable
from domainbed.download.layouts import Layout, find_layout, find_tree
from domainbed.download.tree import (
    NO_NUMBERS,
    ImageFiles,
    Problem,
    count,
    differences,
    empty_files,
    look_into,
    plain,
)
from domainbed.errors import UserError

if TYPE_CHECKING:
    from domainbed.config.dataset_info import DatasetInfo

_SHOWN = 4  # problems in one line
_UNPACKED = 1.1  # bytes of images per byte of an archive
_MOST_UNPACKED = 4  # times the size of the largest source: more is not the dataset
_LEAST_REFUSED = 10**8  # bytes
_MARK = "made-by-domainbed.txt"  # in the hidden folder, which is not touched without it


@dataclass(frozen=True)
class _Job:
    """One call: what to get, where to, and what to put up with."""

    name: str
    dataset: Any
    info: DatasetInfo
    origin: Origin
    data_dir: Path
    accept_checksum: bool
    accept_incomplete: bool
    say: Callable[[str], None]

    @property
    def target(self) -> Path:
        return self.data_dir / self.info.folder

    @property
    def partial(self) -> Path:
        return self.data_dir / f".{self.info.folder}.partial"

    @property
    def extracted(self) -> Path:
        return self.partial / "extracted"

    @property
    def ready(self) -> Path:
        return self.partial / "ready"


def download_dataset(
    name: str,
    data_dir: Path | str,
    copy: Path | str | None = None,
    *,
    accept_checksum: bool = False,
    accept_incomplete: bool = False,
    say: Callable[[str], None] = print,
) -> None:
    """Puts a published dataset into `data_dir`; does nothing if it is there.

    Args:
        name: of the dataset.
        data_dir: the folder of all datasets.
        copy: an archive or folder that the user has; it is read and left as it is.
        accept_checksum: take a file whose checksum is not the known one.
        accept_incomplete: take a dataset that differs from the published one.
        say: gets a line for everything that users should know.

    Raises:
        UserError: no source delivers, the copy is not the dataset, a checksum is wrong, the result
            is incomplete, or the disk is full.
    """
    from domainbed.datasets import get_dataset_class

    dataset = get_dataset_class(name)
    info = getattr(dataset, "info", None)
    if info is not None and not info.folder:
        say(f"{name} needs no files: it comes with the package")
        return
    if info is None or (name not in SOURCES and info.folder != mnist.FOLDER):
        raise UserError(f"no source of {name} is known: known are {', '.join(downloadable())}")
    origin = SOURCES.get(name, Origin(sources=()))
    job = _Job(
        *(name, dataset, info, origin, Path(data_dir)),
        *(accept_checksum, accept_incomplete, say),
    )
    source = None if copy is None else Path(copy).expanduser()
    if source is not None and not source.exists():
        raise UserError(f"--from {str(copy)!r} does not exist: name an archive or a folder")
    with _disk_errors(job):
        if not _is_here(job):  # asked before locking: the folder may be one to read only
            job.data_dir.mkdir(parents=True, exist_ok=True)
            told = f"{name}: another process is at work on it; waiting for that one"
            with locked(job.data_dir / f".{info.folder}.lock", lambda: say(told)):
                _get(job, source)


def downloadable() -> list[str]:
    """The datasets that `download_dataset` can get, in the order of the tables."""
    from domainbed.datasets import DATASETS

    infos = {name: DATASETS[name].info for name in DATASETS}
    return [
        name
        for name, info in infos.items()
        if name in SOURCES or (info is not None and info.folder == mnist.FOLDER)
    ]


@contextmanager
def _disk_errors(job: _Job) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in DISK_FULL:
            raise UserError(
                f"the disk of {str(job.data_dir)!r} is full: make room and give the same command "
                "again, which goes on from what was downloaded, or choose another --data_dir"
            ) from error
        if error.errno is None or error.filename is None:
            raise
        raise UserError(
            f"{error.filename}: {error.strerror}: check the path and its permissions"
        ) from error


def _get(job: _Job, copy: Path | None) -> None:
    if _is_here(job):  # by now: another process may have been at work on it
        return
    with _hidden_folder(job):
        if job.info.folder == mnist.FOLDER:
            mnist.download(job.target, job.partial, copy)
            job.say(f"{job.name}: 70,000 images are in {job.target}")
        elif copy is None:
            _from_sources(job)
        else:
            _from_copy(job, copy)
        shutil.rmtree(job.partial, ignore_errors=True)  # with what an earlier download left


def _is_here(job: _Job) -> bool:
    """Whether there is nothing to do; a folder that is not the dataset is the user's to judge."""
    if not job.target.exists() or not any(job.target.iterdir()):
        return False
    if job.info.folder == mnist.FOLDER:
        problem = mnist.check(job.data_dir)
        number = 0 if problem else sum(job.info.images)
    else:
        found, problems = _found_in(job, job.target)
        problem, number = _summary(problems), _number(found)
    if problem and not (job.accept_incomplete and number):
        keep = ", or keep it with --accept_incomplete" if number else ""
        raise UserError(
            f"{str(job.target)!r} exists and is not {job.name} as published ({problem}): move it "
            f"away to get it anew{keep}"
        )
    job.say(f"{job.name} is in {job.target} already: {number:,} images; nothing to do")
    return True


@contextmanager
def _hidden_folder(job: _Job) -> Iterator[None]:
    """The folder to work in, of which only what was downloaded is left.

    Raises:
        UserError: there is one of that name which this program did not make.
    """
    if job.partial.exists() and not (job.partial / _MARK).exists():
        raise UserError(
            f"{str(job.partial)!r} exists and was not made by this command, which needs a folder "
            "of that name: move it away"
        )
    job.partial.mkdir(exist_ok=True)
    (job.partial / _MARK).write_text("Removed when the dataset is complete.\n", encoding="utf-8")
    _clear(job)
    try:
        yield
    finally:
        _clear(job)
        if not _has_downloads(job):
            shutil.rmtree(job.partial, ignore_errors=True)


def _clear(job: _Job) -> None:
    for folder in (job.extracted, job.ready, job.partial / mnist.FOLDER):
        shutil.rmtree(folder, ignore_errors=True)


def _has_downloads(job: _Job) -> bool:
    return any(path.is_file() for path in (job.partial / "downloads").rglob("*"))


def _from_sources(job: _Job) -> None:
    reasons = []
    for source in job.origin.sources:
        job.say(f"{job.name}: fetching from {source.title}")
        try:
            return _from_source(job, source)
        except Unusable as error:
            reasons.append(f"{source.title}: {error}")
            job.say(f"{job.name}: {source.title} failed: {error}")
            _clear(job)
    kept = f"; what came is kept in {job.partial}" if _has_downloads(job) else ""
    raise UserError(
        f"{job.name} could not be had from any source ({'; '.join(reasons)}){kept}: if you have a "
        f"copy, give it with `domainbed download {job.name} --from PATH`"
    )


def _from_source(job: _Job, source: Source) -> None:
    folder = job.partial / "downloads" / plain(source.title)
    folder.mkdir(parents=True, exist_ok=True)
    here = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    needed = int(source.size * (1 + _UNPACKED)) - here
    require_space(job.data_dir, needed, f"{job.name} from {source.title}")
    fetch(source, folder, job.accept_checksum)
    try:
        _install(job, folder)
    except BadArchive as error:
        error.archive.unlink()  # or every later call would stumble over it
        raise


def _from_copy(job: _Job, copy: Path) -> None:
    try:
        _install(job, copy)
    except Unusable as error:
        raise UserError(f"--from {str(copy)!r}: {error}") from error


def _install(job: _Job, path: Path) -> None:
    """Makes the dataset from an archive, or a folder in any of the known layouts."""
    layout = _layout(job, path)
    if layout is None:
        domains = ", ".join(map(repr, job.info.domains))
        expected = getattr(job.dataset, "layout", f"folders {domains} with a folder per class")
        raise Unusable(f"no images of {job.name} in {path.name}: expected {expected}")
    if layout.tree is not None:
        _place_tree(job, layout.tree)
    for image in tqdm(layout.found, f"placing {job.name}", unit="image", disable=None):
        _place(job, image)
    _move_into_place(job, layout.notes)


def _layout(job: _Job, path: Path) -> Layout | None:
    if not path.is_dir():
        return _unpacked(job, [path], [job.extracted])
    layout = _find(job, [path])
    if layout is None or not layout.complete:
        archives = _archives(job, path)
        if archives:
            return _unpacked(job, archives, [path, job.extracted])
    if job.partial not in path.parents:
        size = sum(file.stat().st_size for file in _to_copy(path))
        require_space(job.data_dir, size, f"copying {job.name}")
    return layout


def _find(job: _Job, roots: list[Path]) -> Layout | None:
    if hasattr(job.dataset, "contents"):  # it is kept as it was published
        return find_tree(job.dataset.holds, roots)
    return find_layout(job.name, job.info, job.origin, roots)


def _to_copy(path: Path) -> list[Path]:
    return [*images(path), *path.rglob("*.parquet")]


def _archives(job: _Job, folder: Path) -> list[Path]:
    """Those that a source is known to offer, or all if there is none of them."""
    archives = sorted(file for file in folder.rglob("*") if is_archive(file) and file.is_file())
    parts = [s.parts for s in job.origin.sources if isinstance(s.parts, tuple)]
    known = {archive.name for part in parts for archive in part}
    return [file for file in archives if file.name in known] or archives


def _unpacked(job: _Job, archives: list[Path], roots: list[Path]) -> Layout | None:
    needed = sum(map(unpacked_size, archives))
    job.data_dir.mkdir(parents=True, exist_ok=True)
    require_space(job.data_dir, needed, f"unpacking {job.name}")
    left = max([_LEAST_REFUSED, *(_MOST_UNPACKED * each.size for each in job.origin.sources)])
    for archive in archives:
        left -= extract(archive, job.extracted, left)
    return _find(job, roots)


def _place_tree(job: _Job, tree: Path) -> None:
    if job.partial in tree.parents:  # unpacked here, and nobody else's
        tree.replace(job.ready)
        return
    for file in tqdm(files(tree), f"placing {job.name}", unit="file", disable=None):
        target = job.ready / file.relative_to(tree)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(regular(file), target)


def _place(job: _Job, image: Found) -> None:
    target = _free(job.ready / image.domain / image.label / image.name)
    target.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(image.content, bytes):
        target.write_bytes(image.content)
    elif job.partial in image.content.parents:
        _link(image.content, target)
    else:
        shutil.copyfile(regular(image.content), target)


def _link(source: Path, target: Path) -> None:
    """A second name instead of a copy: what we unpacked is removed later, the image stays."""
    try:
        os.link(source, target)
    except OSError:  # not every file system has links
        shutil.copyfile(source, target)


def _free(path: Path) -> Path:
    """`path`, or a name like it: two images of the same name are two images."""
    number, candidate = 2, path
    while candidate.exists():
        candidate = path.with_name(f"{path.stem}_{number}{path.suffix}")
        number += 1
    return candidate


def _move_into_place(job: _Job, notes: list[str]) -> None:
    job.ready.mkdir(exist_ok=True)  # there may have been no image to place
    found, problems = _found_in(job, job.ready)
    problems += empty_files(found, job.ready)
    if problems and not job.accept_incomplete:
        raise Unusable(
            f"not {job.name} as published ({_summary(problems)}); --accept_incomplete takes it "
            "as it is"
        )
    job.ready.replace(job.target)
    job.say(f"{job.name}: {_number(found):,} images in {len(found)} domains are in {job.target}")
    notes = notes if job.info.images else [*notes, NO_NUMBERS]
    for line in notes + [problem.message for problem in problems]:
        job.say(f"  {line}")
    job.say(f"  `domainbed verify {job.name} --data_dir {job.data_dir}` checks every image")


def _found_in(job: _Job, folder: Path) -> tuple[ImageFiles, list[Problem]]:
    """The images in a folder, and how it differs from the published dataset."""
    found, problems = look_into(job.dataset, folder)
    return found, problems + differences(count(found), job.info, job.origin.variants)


def _number(found: ImageFiles) -> int:
    return sum(len(images) for classes in found.values() for images in classes.values())


def _summary(problems: list[Problem]) -> str:
    shown = "; ".join(problem.message for problem in problems[:_SHOWN])
    more = len(problems) - _SHOWN
    return f"{shown}; and {more} more" if more > 0 else shown
