"""Files: written aside and moved into place, only by the owner of the folder; and their digests.

What this program writes and reads again has a digest, so that a changed file is noticed when it is
read. The text of a JSON object or of a YAML file begins with its digest; that of another file lies
beside it. What has none was written by an earlier version, or by hand.
"""

import errno
import hashlib
import json
import math
import os
import re
import secrets
import stat
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path
from types import MappingProxyType
from typing import Any

from filelock import FileLock, Timeout

_ASIDE = re.compile(r".+\.\d+-[0-9a-f]{8}\.tmp")
_Guards = Mapping[Path, Callable[[], None]]
_guards: ContextVar[_Guards] = ContextVar("guards", default=MappingProxyType({}))


CHANGED = "its content does not have the digest that it was written with"

_KEY = "sha256"
_SEAL = re.compile(rb'(?s)(?:\{"sha256": "|# sha256 )(.{64})(?:",|: [^\n]*\n)')
_DAMAGED_SEAL = re.compile(rb"(?s).{9}(.{3})?[0-9a-f]{64}(?![0-9a-f])")


@contextmanager
def guarded(folder: Path, check: Callable[[], None]) -> Iterator[None]:
    """Calls `check`, which may raise, before this thread changes a file of `folder`."""
    token = _guards.set({**_guards.get(), folder: check})
    try:
        yield
    finally:
        _guards.reset(token)


def check_guard(folder: Path) -> None:
    """Calls the check that `guarded` set, for a change that is not made by this module."""
    if check := _guards.get().get(folder):
        check()


def aside_of(file: Path) -> Path:
    """A path beside `file` that no other process or thread uses."""
    return file.with_name(f"{file.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")


def remove_asides(folder: Path) -> None:
    """Removes what killed processes left; one that is still alive then fails to write."""
    for name in os.listdir(folder):
        if _ASIDE.fullmatch(name):
            (folder / name).unlink(missing_ok=True)


def append_text(file: Path, text: str, to_disk: bool = False) -> None:
    """Appends text; with `to_disk` it is on disk before this returns."""
    with naming(file), file.open("a", encoding="utf-8") as stream:
        # Checked once the file is open: a new owner of the folder replaces the file by another.
        check_guard(file.parent)
        stream.write(text)
        if to_disk:
            stream.flush()
            os.fsync(stream.fileno())


def write_text(file: Path, text: str, to_disk: bool = True) -> None:
    """Writes aside and moves into place, so that no reader and no crash sees half a file."""
    with written_aside(file, to_disk) as aside:
        aside.write_text(text, encoding="utf-8")


@contextmanager
def naming(file: Path) -> Iterator[None]:
    """Adds the name of `file` to errors of writing to it: a full disk does not say where it is."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(file)
        raise


@contextmanager
def written_aside(file: Path, to_disk: bool = True) -> Iterator[Path]:
    """A path beside `file` to write to; it replaces `file` if all went well.

    It is on disk first, unless `to_disk` is false: faster, for what is soon written again.
    A device or a pipe, such as /dev/null, is not replaced but written to.
    """
    if _is_device(file):
        with naming(file):
            yield file
        return
    aside = aside_of(file)
    try:
        with naming(file):
            yield aside
            if to_disk:
                with aside.open("rb+") as stream:
                    os.fsync(stream.fileno())
            check_guard(file.parent)
            aside.replace(file)
    finally:
        with suppress(OSError):
            aside.unlink(missing_ok=True)


def _is_device(file: Path) -> bool:
    """Or a pipe, or one of the system's names for them: /dev/stdout may be a plain file."""
    is_other = file.exists() and not file.is_file() and not file.is_dir()
    return is_other or file.parent == Path("/dev")


def regular(file: Path) -> Path:
    """`file`, unless it is a pipe, which would block, or a device, which may never end.

    Raises:
        OSError: it is one, or a folder, or missing.
    """
    if not stat.S_ISREG(file.stat().st_mode):
        raise OSError(errno.EINVAL, "it is no regular file", str(file))
    return file


def as_json_values(value: Any) -> Any:
    """The same, with null for every number that JSON does not have: infinities and NaN."""
    if isinstance(value, dict):
        return {key: as_json_values(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [as_json_values(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def file_digest(file: Path, kind: str = "sha256") -> str:
    """The digest of a file's content, in hexadecimal digits; `kind` as `hashlib.new` takes it."""
    digest = hashlib.new(kind)
    with file.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


@contextmanager
def locked(file: Path, on_wait: Callable[[], None]) -> Iterator[None]:
    """Holds a lock on `file`, which the system releases when the process dies.

    `on_wait` is called if another process holds it.
    """
    lock = FileLock(file)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        on_wait()
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def cache_folder(data_dir: str | Path) -> Path:
    """The folder of what was computed from data, for all runs.

    Below the data folder, or in the folder that DOMAINBED_CACHE_DIR names.
    """
    return Path(os.environ.get("DOMAINBED_CACHE_DIR") or Path(data_dir) / "cache")


# ---- digests ----


def digest_of(content: bytes | memoryview) -> str:
    """The SHA-256 in hexadecimal digits."""
    return hashlib.sha256(content).hexdigest()


def sealed_json(content: Mapping[str, Any], **options: Any) -> str:
    """A JSON object that is not empty, and a newline; `options` are those of `json.dumps`."""
    rest = json.dumps(content, **options)[1:] + "\n"
    return f'{{"{_KEY}": "{digest_of(rest.encode())}",{rest}'


def sealed_yaml(text: str) -> str:
    """YAML with a first line that says what the digest of the other lines is."""
    digest = digest_of(text.encode())
    return f"# {_KEY} {digest}: of the lines below; remove this line to change them\n{text}"


def has_its_digest(text: bytes) -> bool:
    """Whether a text has the digest at its beginning, or there is none."""
    seal = _SEAL.match(text)
    if seal is None:
        return _DAMAGED_SEAL.match(text) is None
    return seal[1] == digest_of(text[seal.end() :]).encode()


def read_sealed_json(file: Path) -> dict[str, Any]:
    """The object in a file of JSON, without its digest.

    Raises:
        ValueError, RecursionError: it does not have its digest, or is no JSON object.
        OSError: it cannot be read.
    """
    return parse_sealed_json(file.read_bytes())


def parse_sealed_json(text: bytes) -> dict[str, Any]:
    """The object in the text of a file, as `read_sealed_json`."""
    if not has_its_digest(text):
        raise ValueError(CHANGED)
    content = json.loads(text)
    if not isinstance(content, dict):
        raise ValueError("no JSON object")
    content.pop(_KEY, None)
    return content


def digest_file(file: Path) -> Path:
    """Where the digest of a binary file is."""
    return file.with_name(f"{file.name}.sha256")


def write_digest(file: Path, aside: Path) -> None:
    """Writes the digest of what lies in `aside` and will be moved to `file`."""
    write_text(digest_file(file), file_digest(aside) + "\n")


def differs_from_digest(file: Path) -> bool:
    """Whether a digest lies beside a file that it does not have."""
    known = digest_file(file)
    return known.exists() and known.read_bytes().strip() != file_digest(file).encode()
