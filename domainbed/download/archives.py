"""Unpacking archives that nobody vouches for: nothing may land outside the target folder."""

from __future__ import annotations

import stat
import tarfile
import zipfile
import zlib
from pathlib import Path, PurePosixPath, PureWindowsPath

from tqdm import tqdm

from domainbed.download.found import Unusable
from domainbed.errors import one_line

SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
_DAMAGED = (
    *(zipfile.BadZipFile, tarfile.TarError, EOFError, zlib.error),
    RuntimeError,  # of zipfile: encrypted, or packed in a way that it does not know
)
_GROWTH = 1.1
"""Images hardly shrink when they are packed, so an archive grows by little when unpacked."""


class BadArchive(Unusable):
    """The archive is damaged, or would write outside its folder."""

    def __init__(self, archive: Path, what: str) -> None:
        super().__init__(f"{archive.name} {what}")
        self.archive = archive


def is_archive(path: Path) -> bool:
    return path.name.lower().endswith(SUFFIXES)


def unpacked_size(archive: Path) -> int:
    """Bytes that `extract` will write: exact for zip files, an estimate for tar files.

    Raises:
        BadArchive: it is no archive.
    """
    if not _is_zip(archive):
        return int(archive.stat().st_size * _GROWTH)
    try:
        with zipfile.ZipFile(archive) as opened:
            return sum(member.file_size for member in opened.infolist())
    except _DAMAGED as error:
        raise BadArchive(archive, f"is damaged ({one_line(error)})") from error


def extract(archive: Path, folder: Path, most: int) -> int:
    """Unpacks a zip or tar file (plain, gz, bz2 or xz) into `folder`, which is made.

    Args:
        archive: a regular file.
        folder: to unpack to.
        most: bytes that it may unpack to: a small file can unpack to more than a disk holds.

    Returns:
        Bytes that were written.

    Raises:
        BadArchive: it is damaged or too large, or a member's path or link leads out of `folder`.
        OSError: the disk is full, say.
    """
    folder.mkdir(parents=True, exist_ok=True)
    try:
        return (_extract_zip if _is_zip(archive) else _extract_tar)(archive, folder, most)
    except tarfile.FilterError as error:
        raise BadArchive(
            archive, f"is refused: its member {error.tarinfo.name!r} leads out of the folder"
        ) from error
    except _DAMAGED as error:
        raise BadArchive(archive, f"is damaged ({one_line(error)})") from error


def _is_zip(archive: Path) -> bool:
    """By its content, or its name where it is damaged."""
    if not archive.is_file():
        raise BadArchive(archive, "is no regular file")
    return archive.suffix.lower() == ".zip" or zipfile.is_zipfile(archive)


def _refuse_excess(archive: Path, size: int, most: int) -> None:
    if size > most:
        raise BadArchive(
            archive,
            f"is refused: it unpacks to more than {most / 1e6:,.0f} MB, far more than the dataset "
            "has: unpack it yourself and give the folder, if you trust it",
        )


def _extract_zip(archive: Path, folder: Path, most: int) -> int:
    with zipfile.ZipFile(archive) as opened:
        members = opened.infolist()
        size = sum(member.file_size for member in members)  # zipfile writes no more than that
        _refuse_excess(archive, size, most)
        for member in members:
            _refuse_escape(archive, member)
        for member in tqdm(members, f"unpacking {archive.name}", unit="file", disable=None):
            opened.extract(member, folder)
    return size


def _refuse_escape(archive: Path, member: zipfile.ZipInfo) -> None:
    """zipfile quietly bends such paths back into the folder; who packs them means no good."""
    name = member.filename
    windows = PureWindowsPath(name)
    outside = PurePosixPath(name).is_absolute() or windows.anchor or ".." in windows.parts
    if outside or stat.S_ISLNK(member.external_attr >> 16):
        raise BadArchive(
            archive, f"is refused: its member {name!r} is a link or leads out of the folder"
        )


def _extract_tar(archive: Path, folder: Path, most: int) -> int:
    size = 0
    with _opened_tar(archive) as opened:
        for member in tqdm(opened, f"unpacking {archive.name}", unit="file", disable=None):
            if member.issym():
                raise BadArchive(archive, f"is refused: its member {member.name!r} is a link")
            size += member.size
            _refuse_excess(archive, size, most)
            opened.extract(member, folder, filter="data")
    return size


def _opened_tar(archive: Path) -> tarfile.TarFile:
    try:
        return tarfile.open(archive)
    except tarfile.ReadError as error:  # which lists what each way to pack it has to say
        raise BadArchive(archive, "is damaged (no zip or tar archive)") from error
