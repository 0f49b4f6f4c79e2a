"""Bringing files here: from Google Drive or plain HTTP, and from the Hugging Face Hub.

A download that broke goes on from the bytes that it has. gdown does this for single files (it asks
for the rest only, and checks that this is what it gets), huggingface_hub for repositories.
"""

from __future__ import annotations

import errno
import importlib
import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from tqdm import tqdm

from domainbed.core.files import file_digest
from domainbed.download.catalogue import Archive, Hub, Source
from domainbed.download.found import Unusable
from domainbed.errors import UserError, one_line

_SECONDS_OF_SILENCE = 60
_RETRIES = 3
DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
_NO_RANGE = "did not honor"  # gdown's words when a server sends all where the rest was asked for


def require_space(folder: Path, needed: int, purpose: str) -> None:
    """Sees to it that the disk of `folder` has `needed` bytes free.

    Raises:
        UserError: it has fewer.
    """
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise UserError(
            f"{purpose} needs about {_size(needed)}, and the disk of {str(folder)!r} has "
            f"{_size(free)} free: make room, or choose another --data_dir"
        )


def fetch(source: Source, folder: Path, accept_checksum: bool) -> None:
    """Puts the source's files into `folder`; those that are there already are kept.

    Raises:
        Unusable: the source does not deliver.
        UserError: a checksum is wrong, or the library that is needed is not installed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if isinstance(source.parts, Hub):
        return _fetch_repository(source.parts, folder)
    for archive in source.parts:
        file = folder / archive.name
        if not file.exists():
            _fetch_file(archive, file)
        if not accept_checksum:
            _compare_checksum(archive, file)


def _fetch_file(archive: Archive, file: Path) -> None:
    """A page in place of the file must not pass for it, nor cost the part that is here already."""
    try:
        _gdown(archive.url, file)
    except Unusable as error:
        if _NO_RANGE not in str(error):
            raise
        _fetch_anew(archive, file)
    _refuse_page(archive, file)


def _fetch_anew(archive: Archive, file: Path) -> None:
    """From a server that cannot send a part of a file."""
    fresh = file.with_name(f"{file.name}.anew")
    _remove(fresh)
    _gdown(archive.url, fresh)
    _refuse_page(archive, fresh)
    _remove(file)
    fresh.replace(file)


def _remove(file: Path) -> None:
    """A file, and the part of it that gdown keeps beside it, under a name of its own choice."""
    for path in [file, *file.parent.glob(f"{file.name}????????.part")]:
        path.unlink(missing_ok=True)


def _gdown(url: str, file: Path) -> None:
    gdown = _library("gdown")
    try:
        with tqdm(desc=file.name, unit="B", unit_scale=True, disable=None) as bar:
            gdown.download(
                *(url, str(file)),
                quiet=True,
                resume=True,
                timeout=_SECONDS_OF_SILENCE,
                retries=_RETRIES,
                progress=_moves(bar),
            )
    except gdown.exceptions.FileURLRetrievalError as error:
        raise Unusable(
            "a page came in place of the file: it is gone, or was fetched too often today"
        ) from error
    except (OSError, gdown.exceptions.DownloadError) as error:  # requests' errors are OSErrors
        _raise_if_local(error)
        raise Unusable(_reason(error)) from error


def _reason(error: BaseException) -> str:
    """What the system said, where there is no connection; libraries wrap it in long stories."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.strerror:
            return cause.strerror
        cause = cause.__cause__ or cause.__context__
    return one_line(error).partition(" The received bytes")[0].rstrip(".")  # gdown's advice


def _raise_if_local(error: Exception) -> None:
    """A full disk, or one that may not be written to, is not the source's fault."""
    if isinstance(error, OSError) and (error.errno in DISK_FULL or error.filename is not None):
        raise error


def _moves(bar: tqdm[Any]) -> Callable[[int, int | None], None]:
    def move(done: int, total: int | None) -> None:
        bar.total = total
        bar.update(done - bar.n)

    return move


def _refuse_page(archive: Archive, file: Path) -> None:
    with file.open("rb") as stream:
        start = stream.read(512).lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if start.startswith((b"<!doctype", b"<html", b"<head", b"<?xml")):
        file.unlink()
        raise Unusable(f"the server sent a page in place of {archive.name}")


def _compare_checksum(archive: Archive, file: Path) -> None:
    if not archive.md5:
        return
    if (digest := file_digest(file, "md5")) != archive.md5:
        raise UserError(
            f"{file} has the MD5 checksum {digest}, expected {archive.md5}: remove it "
            "to fetch it again, or take it as it is with --accept_checksum"
        )


def _fetch_repository(hub: Hub, folder: Path) -> None:
    library = _library("huggingface_hub")
    try:
        # Named, because without a connection the part that is here would pass for the whole.
        commit = library.HfApi().dataset_info(hub.repo).sha
        library.snapshot_download(
            hub.repo, repo_type="dataset", revision=commit, local_dir=str(folder)
        )
    except Exception as error:  # of the network, in the classes of several libraries
        _raise_if_local(error)
        raise Unusable(_reason(error)) from error


def _library(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UserError(
            f"downloading needs {name}, which is not installed: pip install 'domainbed[hub]'"
        ) from error


def _size(number: int) -> str:
    return f"{number / 1e9:.1f} GB" if number >= 1e8 else f"{number / 1e6:.1f} MB"
