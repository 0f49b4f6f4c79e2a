"""From a source, or a user's copy, to a complete dataset in the data folder.

Everything is prepared in a hidden folder beside the target and moved into place at the end, so an
interrupted call leaves nothing that looks like a dataset. What was downloaded stays there, and the
next call resumes from it.
"""

import contextlib
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

from domainbed.config.dataset_info import DatasetInfo
from domainbed.core.files import locked, regular
from domainbed.core.image_files import images
from domainbed.download.catalogue import SOURCES, DataSource, Origin, plain
from domainbed.download.fetch import (
    ARCHIVE_SUFFIXES,
    DISK_FULL,
    BadArchive,
    Unusable,
    extract,
    fetch,
    require_space,
)
from domainbed.download.layouts import PlacedFile, find_layout
from domainbed.download.verify import Problem, Verification, inspect
from domainbed.errors import UserError, in_shell

_SHOWN = 4  # problems in one line

_UNPACKED = 1.1  # bytes of images per byte of an archive: images hardly shrink when packed
_MOST_UNPACKED = 4  # times the size of the largest source: more is not the dataset
_LEAST_REFUSED = 10**8  # bytes


def downloadable() -> list[str]:
    """The datasets that `download_dataset` can get, in the order of the tables."""
    from domainbed.datasets import DATASETS

    return [name for name in DATASETS if name in SOURCES]


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
    if info is None or name not in SOURCES:
        raise UserError(f"no source of {name} is known: known are {', '.join(downloadable())}")
    source = None if copy is None else Path(copy).expanduser()
    if source is not None and not source.exists():
        raise UserError(f"--from {str(copy)!r} does not exist: name an archive or a folder")
    folder = Path(data_dir)
    job = _Job(
        name, dataset, info, SOURCES[name], folder, accept_checksum, accept_incomplete, say
    )  # fmt: skip
    try:
        if job.is_here():  # asked before locking: the folder may be read-only
            return
        folder.mkdir(parents=True, exist_ok=True)
        told = f"{name}: another process is downloading it; waiting for that one"
        with locked(folder / f".{info.folder}.lock", lambda: say(told)):
            if not job.is_here():
                job.get(source)
    except OSError as error:
        if error.errno in DISK_FULL:
            raise UserError(
                f"the disk of {str(data_dir)!r} is full: make room and repeat the command, which "
                "resumes from what was downloaded, or choose another --data_dir"
            ) from error
        if error.errno is None or error.filename is None:
            raise
        raise UserError(
            f"{error.filename}: {error.strerror}: check the path and its permissions"
        ) from error


@dataclass(frozen=True)
class _Job:
    """One call: what to get, where to, and which faults to accept."""

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
        """The hidden folder, with `downloads`, `extracted` and `ready`."""
        return self.data_dir / f".{self.info.folder}.partial"

    def is_here(self) -> bool:
        """Whether there is nothing to do.

        Raises:
            UserError: the folder is not the dataset, which is the user's to judge.
        """
        if not self.target.exists() or not any(self.target.iterdir()):
            return False
        report, number = self._inspect(self.target)
        if report.problems and not (self.accept_incomplete and number):
            keep = ", or keep it with --accept_incomplete" if number else ""
            raise UserError(
                f"{str(self.target)!r} exists and is not {self.name} as published "
                f"({_summary(report.problems)}): move it away to download it again{keep}"
            )
        self.say(f"{self.name} is in {self.target} already: {number:,} images; nothing to do")
        return True

    def get(self, copy: Path | None) -> None:
        """Makes the dataset from a copy, or from the first source that delivers.

        Raises:
            UserError: it cannot.
        """
        self.partial.mkdir(exist_ok=True)
        self._clear()
        try:
            if copy is None:
                self._from_sources()
            else:
                self._install(copy)
        except Unusable as error:
            raise UserError(f"--from {str(copy)!r}: {error}") from error
        finally:
            self._clear()
            if not self._downloads():
                shutil.rmtree(self.partial, ignore_errors=True)
        shutil.rmtree(self.partial, ignore_errors=True)  # with what an earlier download left

    def _clear(self) -> None:
        """Leaves of the hidden folder what was downloaded."""
        for name in ("extracted", "ready"):
            shutil.rmtree(self.partial / name, ignore_errors=True)

    def _downloads(self) -> list[Path]:
        return [path for path in (self.partial / "downloads").rglob("*") if path.is_file()]

    def _from_sources(self) -> None:
        reasons = []
        for source in self.origin.sources:
            self.say(f"{self.name}: downloading from {source.title}")
            try:
                return self._from_source(source)
            except Unusable as error:
                reasons.append(f"{source.title}: {error}")
                self.say(f"{self.name}: {source.title} failed: {error}")
                self._clear()
        raise UserError(
            f"{self.name} is not available from any source ({'; '.join(reasons)})"
            + (f"; what was downloaded is kept in {self.partial}" if self._downloads() else "")
            + ": if you have a copy, give it with "
            f"`domainbed data download {self.name} --from PATH`"
        )

    def _from_source(self, source: DataSource) -> None:
        folder = self.partial / "downloads" / plain(source.title)
        here = sum(file.stat().st_size for file in self._downloads() if folder in file.parents)
        needed = int(source.size * (1 + _UNPACKED)) - here
        require_space(self.data_dir, needed, f"{self.name} from {source.title}")
        fetch(source, folder, self.accept_checksum)
        try:
            self._install(folder)
        except BadArchive as error:
            error.archive.unlink()  # or every later call would stumble over it
            raise

    def _install(self, path: Path) -> None:
        """Makes the dataset from an archive, or a folder in any of the known layouts."""
        find = partial(find_layout, self.name, self.dataset, self.origin)
        extracted = self.partial / "extracted"
        layout = find([path]) if path.is_dir() else None
        archives = [] if layout and layout.complete else self._archives(path)
        if self.partial not in path.parents:
            read = archives or [*images(path), *path.rglob("*.parquet")]
            needed = int(_UNPACKED * sum(file.stat().st_size for file in read))
            require_space(self.data_dir, needed, f"a copy of {self.name}")
        left = max(_LEAST_REFUSED, *(_MOST_UNPACKED * s.size for s in self.origin.sources))
        for archive in archives:
            left -= extract(archive, extracted, left)
        if archives:
            layout = find([path, extracted])
        if layout is None:
            domains = ", ".join(map(repr, self.info.domains))
            expected = getattr(self.dataset, "layout", f"folders {domains} with a folder per class")
            raise Unusable(f"no images of {self.name} in {path.name}: expected {expected}")
        for file in tqdm(layout.files, f"placing {self.name}", unit="file", disable=None):
            self._place(file)
        self._move_into_place(layout.notes)

    def _archives(self, path: Path) -> list[Path]:
        """Those that a source is known to offer, or all if there is none of them."""
        if not path.is_dir():
            return [path]
        archives = [
            file
            for file in sorted(path.rglob("*"))
            if file.name.lower().endswith(ARCHIVE_SUFFIXES) and file.is_file()
        ]
        known = {archive.name for source in self.origin.sources for archive in source.archives}
        return [file for file in archives if file.name in known] or archives

    def _place(self, placed: PlacedFile) -> None:
        path, content = placed
        target = _free(self.partial / "ready" / path)
        target.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, bytes):
            target.write_bytes(content)
            return
        if self.partial in content.parents:  # a second name: the first one is removed later
            with contextlib.suppress(OSError):  # not every file system has links
                os.link(content, target)
                return
        shutil.copyfile(regular(content), target)

    def _move_into_place(self, notes: list[str]) -> None:
        ready = self.partial / "ready"
        ready.mkdir(parents=True, exist_ok=True)  # there may be no file to place
        report, number = self._inspect(ready)
        empty = [str(file.relative_to(ready)) for file in images(ready) if not file.stat().st_size]
        problems = report.problems + [Problem("empty", e, f"{e} has no bytes") for e in empty]
        if problems and not (self.accept_incomplete and number):
            accept = "; --accept_incomplete takes it as it is" if number else ""
            raise Unusable(f"not {self.name} as published ({_summary(problems)}){accept}")
        ready.replace(self.target)
        domains = len(report.counts or self.info.domains)
        self.say(f"{self.name}: {number:,} images in {domains} domains are in {self.target}")
        for line in notes + report.notes + [problem.message for problem in problems]:
            self.say(f"  {line}")
        self.say(
            f"  `domainbed data verify {self.name} --data_dir {in_shell(self.data_dir)}` checks "
            "every image"
        )

    def _inspect(self, folder: Path) -> tuple[Verification, int]:
        """How a folder compares with the published dataset; the number of images that count."""
        report, _ = inspect(self.name, self.dataset, folder)
        # MNIST's images are not counted: its four files are the published ones, or none are.
        return report, report.images or (sum(self.info.images) if report.ok else 0)


def _free(path: Path) -> Path:
    """`path`, or a name like it: two images of the same name are two images."""
    number, candidate = 2, path
    while candidate.exists():
        candidate = path.with_name(f"{path.stem}_{number}{path.suffix}")
        number += 1
    return candidate


def _summary(problems: list[Problem]) -> str:
    shown = "; ".join(problem.message for problem in problems[:_SHOWN])
    more = len(problems) - _SHOWN
    return f"{shown}; and {more} more" if more > 0 else shown
