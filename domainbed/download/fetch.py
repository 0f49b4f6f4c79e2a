"""Fetching the files of a source, and unpacking archives that cannot be trusted.

An interrupted download resumes from the bytes that are there: gdown does this for single files,
huggingface_hub for the files of a repository.
"""

import errno
import shutil
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

from domainbed.core.files import file_digest, regular
from domainbed.download.catalogue import Archive, DataSource
from domainbed.errors import UserError, one_line

_SECONDS_OF_SILENCE = 60
_RETRIES = 3
DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
_NO_RANGES = "did not honor"  # gdown's words when a server cannot send a part of a file
_SUMS = "SHA256SUMS"
ARCHIVE_SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
_DAMAGED = (
    *(zipfile.BadZipFile, tarfile.TarError, EOFError, zlib.error),
    RuntimeError,  # of zipfile: encrypted, or an unknown compression
)


class Unusable(Exception):
    """What a source, or a user, provided cannot be used; one line that says why."""


class BadArchive(Unusable):
    """The archive is damaged, or would write outside its folder."""

    def __init__(self, archive: Path, what: str) -> None:
        super().__init__(f"{archive.name} {what}")
        self.archive = archive


def require_space(folder: Path, needed: int, purpose: str) -> None:
    """Checks that the disk of `folder` has `needed` bytes free.

    Raises:
        UserError: it has fewer.
    """
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise UserError(
            f"{purpose} needs about {tqdm.format_sizeof(needed, 'B')}, and the disk of "
            f"{str(folder)!r} has {tqdm.format_sizeof(free, 'B')} free: make room, or choose "
            "another --data_dir"
        )


def fetch(source: DataSource, folder: Path, accept_checksum: bool) -> None:
    """Puts the source's files into `folder`; those that are there already are kept.

    Raises:
        Unusable: the source does not deliver.
        UserError: a checksum is wrong, or a library is not installed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    try:
        if source.hub:
            from huggingface_hub import HfApi, snapshot_download

            # By its commit: without a connection, files of an earlier call would pass for all.
            commit = HfApi().dataset_info(source.hub).sha
            snapshot_download(
                source.hub, repo_type="dataset", revision=commit, local_dir=str(folder)
            )
            for sums in () if accept_checksum else sorted(folder.rglob(_SUMS)):
                _check_sums(sums)
        if source.torchvision:
            import torchvision.datasets

            getattr(torchvision.datasets, source.torchvision)(str(folder), download=True)
        for archive in source.archives:
            file = folder / archive.name
            if not file.exists():
                _fetch_file(archive, file)
            if archive.md5 and not accept_checksum:
                _check(file, "md5", archive.md5)
    except ImportError as error:
        raise UserError(
            f"downloading needs {error.name}, which is not installed: pip install {error.name}"
        ) from error
    except (UserError, Unusable):
        raise
    except Exception as error:  # network errors, in the classes of several libraries
        if isinstance(error, OSError) and (error.errno in DISK_FULL or error.filename is not None):
            raise  # the disk is to blame, not the source
        raise Unusable(_reason(error)) from error


def _check_sums(sums: Path) -> None:
    """Checks the files that a file of `sha256sum` lists and that were fetched beside it."""
    for line in regular(sums).read_text(encoding="utf-8").splitlines():
        expected, _, name = line.partition(" ")
        file = sums.parent / name.strip().lstrip("*")
        if file.is_file():
            _check(file, "sha256", expected.lower())


def _check(file: Path, kind: str, expected: str) -> None:
    digest = file_digest(file, kind)
    if digest != expected:
        raise UserError(
            f"{file} has the {kind.upper()} checksum {digest}, expected {expected}: remove it "
            "to fetch it again, or take it as it is with --accept_checksum"
        )


def _fetch_file(archive: Archive, file: Path) -> None:
    import gdown

    download = partial(
        gdown.download, archive.url, str(file), resume=True, quiet=not sys.stderr.isatty(),
        timeout=_SECONDS_OF_SILENCE, retries=_RETRIES,
    )  # fmt: skip
    try:
        download()
    except gdown.exceptions.DownloadError as error:
        if _NO_RANGES not in str(error):
            raise
        for part in file.parent.glob(f"{file.name}*.part"):
            part.unlink()
        download()
    with file.open("rb") as stream:
        start = stream.read(512).lstrip(b"\xef\xbb\xbf \t\r\n")
    if start.startswith(b"<"):  # no archive and no list of images does
        file.unlink()
        raise Unusable(f"the server sent a page in place of {archive.name}")


def _reason(error: BaseException) -> str:
    """What the system said, where there is no connection; libraries wrap it in long messages."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.strerror:
            return cause.strerror
        cause = cause.__cause__ or cause.__context__
    return one_line(error).partition(" The received bytes")[0].rstrip(".")  # gdown's advice


def extract(archive: Path, folder: Path, most: int) -> int:
    """Unpacks a zip or tar file (plain, gz, bz2 or xz) into `folder`, which is created.

    Args:
        archive: a regular file.
        folder: where to unpack it.
        most: bytes that it may unpack to: a small file can unpack to more than a disk holds.

    Returns:
        The number of bytes written.

    Raises:
        BadArchive: it is damaged or too large, or a member of a tar file is a link or leads out of
            `folder`. Of a zip file such a member is unpacked as a plain file inside.
        OSError: the disk is full, for example.
    """
    if not archive.is_file():
        raise BadArchive(archive, "is not a regular file")
    folder.mkdir(parents=True, exist_ok=True)
    is_zip = archive.suffix.lower() == ".zip" or zipfile.is_zipfile(archive)
    open_archive: Callable[[Path], Any] = zipfile.ZipFile if is_zip else tarfile.open
    safely = {} if is_zip else {"filter": "data"}
    size = 0
    try:
        with open_archive(archive) as opened:
            # zipfile makes no links, and bends paths that lead out back into the folder.
            members = opened.infolist() if is_zip else opened
            for member in tqdm(members, f"unpacking {archive.name}", unit="file", disable=None):
                size += member.file_size if is_zip else member.size
                if not is_zip and member.issym():
                    raise BadArchive(archive, f"is refused: its member {member.name!r} is a link")
                if size > most:
                    raise BadArchive(
                        archive,
                        f"is refused: it unpacks to more than {most / 1e6:,.0f} MB, far more than "
                        "the dataset has: unpack it yourself and give the folder, if you trust it",
                    )
                opened.extract(member, folder, **safely)
    except tarfile.FilterError as error:
        raise BadArchive(
            archive, f"is refused: its member {error.tarinfo.name!r} leads out of the folder"
        ) from error
    except tarfile.ReadError as error:  # it lists what each compression reports
        raise BadArchive(archive, "is damaged (no zip or tar archive)") from error
    except _DAMAGED as error:
        raise BadArchive(archive, f"is damaged ({one_line(error)})") from error
    return size
