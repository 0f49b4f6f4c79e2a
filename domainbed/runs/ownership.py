"""Who is at work in a folder, on any file system that creates a file for one process alone.

An owner is a file of the folder: owner.1.json, owner.2.json, … The one with the highest number is
the owner's, and who wants the folder creates the next one. Of several who try, the file system lets
one succeed. No system locks are needed, no clocks are compared, and nothing is concluded from a
file that is not seen: its number is tried. For the same reason old files stay: a number that
became free again could be taken by a process that sees the folder through an old cache.

The owner rewrites its file every few seconds, a heartbeat. It has left if its file says so, if its
process is gone, or if its file stays the same for `silence_seconds` by the clock of the process
that waits for it. An owner that was only slow finds the next number before it writes anything, see
`Ownership.check`, and writes no more.
"""

from __future__ import annotations

import errno
import json
import math
import os
import re
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from domainbed.core.files import aside_of, digest_of, guarded, remove_asides, write_text
from domainbed.core.stopping import Interrupted, stop_requested
from domainbed.errors import UserError
from domainbed.runs.states import Busy, Lost

# A launcher sets these for a task: its own name, and the engine's id of the job.
ENGINE_VARIABLE, JOB_VARIABLE = "DOMAINBED_ENGINE", "DOMAINBED_JOB"

_SECONDS_BETWEEN_TURNS = 0.05
_NAME = re.compile(r"owner\.([1-9]\d*)\.json")
_NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK, errno.EXDEV)


def heartbeat_seconds() -> float:
    """The time between two signs of life of an owner."""
    return seconds_from("DOMAINBED_HEARTBEAT_SECONDS", 5.0)


def silence_seconds() -> float:
    """After how many seconds without one an owner is taken for dead."""
    return seconds_from("DOMAINBED_SILENCE_SECONDS", 60.0)


def seconds_from(variable: str, default: float) -> float:
    """The number of seconds in an environment variable.

    Raises:
        UserError: it holds no number above 0.
    """
    text = os.environ.get(variable, str(default))
    try:
        if 0 < (seconds := float(text)) < math.inf:
            return seconds
    except ValueError:
        pass
    raise UserError(f"the environment variable {variable} is {text!r}: give a number of seconds")


@dataclass(frozen=True)
class Process:
    """A process among those of all machines.

    Attributes:
        host, boot, namespace: the machine, its start, and the process ids that it is numbered in.
        pid: its number, which another process may have later.
        started: when it began, as the system counts.
    """

    host: str
    boot: str
    namespace: str
    pid: int
    started: str

    @classmethod
    def here(cls) -> Process:
        """This one."""
        _, started = process_stat(os.getpid())
        return cls(socket.gethostname(), _boot(), _namespace(), os.getpid(), started)

    def name(self) -> str:
        """The machine and the number, after a digest of what nobody elsewhere can know of it."""
        seal = f"{self.boot} {self.namespace} {self.started}"
        return f"{digest_of(seal.encode())[:16]}@{self.host}:{self.pid}"

    def is_gone(self) -> bool:
        """Whether it has ended for certain; of one of another machine nothing is known."""
        if not (self.is_near() and self.pid > 0):
            return False
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        except OSError:  # somebody else's
            pass
        state, started = process_stat(self.pid)
        return state in ("Z", "X") or bool(started and started != self.started)

    def is_near(self) -> bool:
        """Whether its number means the same here."""
        place = (self.host, self.boot, self.namespace)
        return all(place) and place == (socket.gethostname(), _boot(), _namespace())


_SEALED = re.compile(r"[0-9a-f]{16}@")


def shown_job(job: str) -> str:
    """A job for people: of a process the machine and the number."""
    return _SEALED.sub("", job, count=1)


def process_named(name: str) -> int | None:
    """The number of the process of this machine with that `Process.name`; None if there is none.

    A number may stand in anybody's file, and may be another process's by now: the start, boot and
    namespace have to be the same.

    Raises:
        UserError: it is another machine's.
    """
    host, _, number = shown_job(name).rpartition(":")
    if host != socket.gethostname():
        raise UserError(f"process {number} runs on {host or 'another machine'}: stop it there")
    pid = int(number) if number.isdecimal() else 0
    _, started = process_stat(pid)
    found = Process(host, _boot(), _namespace(), pid, started)
    return pid if started and found.name() == name else None


@cache
def _boot() -> str:
    return _text_of("/proc/sys/kernel/random/boot_id").strip()


@cache
def _namespace() -> str:
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


def process_stat(pid: int) -> tuple[str, str]:
    """The state and the start time of a process; "" of one that cannot be seen."""
    values = _text_of(f"/proc/{pid}/stat").rpartition(")")[2].split()
    return (values[0], values[19]) if len(values) > 19 else ("", "")


def _text_of(file: str) -> str:
    try:
        return Path(file).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


@dataclass(frozen=True)
class Owner:
    """What a file of an owner says.

    Attributes:
        process: the owner.
        engine, job: what started it, where a launcher said so; else "".
        token: tells it from every other owner.
        beat: how many heartbeats it has written.
        released: whether it has left.
    """

    process: Process
    engine: str
    job: str
    token: str
    beat: int = 0
    released: bool = False

    @classmethod
    def here(cls) -> Owner:
        """A new one, of this process."""
        engine, job = (os.environ.get(name, "") for name in (ENGINE_VARIABLE, JOB_VARIABLE))
        return cls(Process.here(), engine, job, secrets.token_hex(8))

    @classmethod
    def parse(cls, content: bytes) -> Owner | None:
        """None if the content is damaged, or not complete yet."""
        try:
            values: dict[str, Any] = json.loads(content)
            return cls(**{**values, "process": Process(**values["process"])})
        except (ValueError, TypeError, LookupError, RecursionError):
            return None

    def text(self) -> str:
        """What `parse` reads."""
        return json.dumps(asdict(self)) + "\n"

    def has_left(self) -> bool:
        """Whether it says so, or its process is gone, or is this one and owns it no longer."""
        if self.released or self.process.is_gone():
            return True
        return self.process == Process.here() and self.token not in _held


_held: set[str] = set()  # the tokens of the owners that this process is


class Found(NamedTuple):
    """The newest owner that can be seen; `owner` is None where its file cannot be read."""

    number: int
    content: bytes
    owner: Owner | None


def is_owners(name: str) -> bool:
    """Whether that is the name of a file of an owner."""
    return bool(_NAME.fullmatch(name))


def newest(folder: Path) -> Found | None:
    """The newest owner of a folder, at work or not; None if it never had one."""
    try:
        names = os.listdir(folder)
    except OSError:
        return None
    numbers = [int(match[1]) for name in names if (match := _NAME.fullmatch(name))]
    return _read(folder, max(numbers)) if numbers else None


def _read(folder: Path, number: int) -> Found:
    try:
        content = _file(folder, number).read_bytes()
    except OSError:  # it cannot be seen yet, say
        content = b""
    return Found(number, content, Owner.parse(content))


def _file(folder: Path, number: int) -> Path:
    return folder / f"owner.{number}.json"


# By folder, its owner's last sign of life and when it was given, by this process's clock.
_seen: dict[Path, tuple[bytes, float]] = {}


def silent_for(folder: Path, found: Found) -> float:
    """For about how many seconds an owner has given no sign of life, without waiting for one.

    Counted from when this process first saw the sign. The time before follows from two times of
    the file server, that of the sign and that of a new file; it is 0 where none can be created.
    """
    now = time.monotonic()
    seen = _seen.get(folder)
    if seen is None or seen[0] != found.content:
        before = 0.0 if seen else _age(_file(folder, found.number))
        seen = _seen[folder] = (found.content, now - before)
    return now - seen[1]


def _age(file: Path) -> float:
    """The seconds between two times of the file server: that of `file` and that of now."""
    probe = aside_of(file)
    try:
        with probe.open("wb") as stream:
            now = os.fstat(stream.fileno()).st_mtime
        return max(0.0, now - file.stat().st_mtime)
    except OSError:
        return 0.0
    finally:
        with suppress(OSError):
            probe.unlink()


def seems_at_work(folder: Path, found: Found) -> bool:
    """Whether the owner is at work, as far as one look can tell."""
    return not (found.owner and found.owner.has_left()) and (
        silent_for(folder, found) <= silence_seconds()
    )


@contextmanager
def owning(folder: Path, in_turn: bool = False) -> Iterator[None]:
    """Owns a folder, which is created if need be. What is written aside into it is checked.

    An owner on another machine that may be dead is waited for, until it gives a sign of life or
    has been silent for `silence_seconds`.

    Args:
        folder: the folder.
        in_turn: wait for owners that are at work.

    Raises:
        Busy: another process is at work in it.
        Lost: it was taken over meanwhile, because this process was taken for dead.
        Interrupted: a stop was requested before it was clear who owns it.
        UserError: the folder cannot be created or written to, or was removed meanwhile.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        ownership = _claimed(folder, in_turn)
    except OSError as error:
        raise UserError(
            f"the folder {str(folder)!r} cannot be created, or written to ({error.strerror}): "
            "choose another output folder"
        ) from error
    try:
        with guarded(folder, ownership.check):
            remove_asides(folder)
            yield
    except Exception:
        with suppress(OSError):
            ownership.check()  # it may be why: the next owner removes what was written aside
        raise
    finally:
        ownership.release()


def _claimed(folder: Path, in_turn: bool = False) -> Ownership:
    found = newest(folder)
    while True:
        if found and not _is_over(folder, found):
            if not in_turn:
                owner = found.owner
                who = f" (process {owner.process.pid} of {owner.process.host})" if owner else ""
                raise Busy(f"another process is at work in {folder}{who}")
            time.sleep(_SECONDS_BETWEEN_TURNS)
            found = newest(folder)
            continue
        number = found.number + 1 if found else 1
        new = Owner.here()
        _held.add(new.token)
        try:
            _create(_file(folder, number), new.text())
            return Ownership(folder, number, new, found)
        except FileExistsError:  # another was faster, or could not be seen yet
            found = _read(folder, number)
        except BaseException:
            _held.discard(new.token)
            raise


def _is_over(folder: Path, found: Found) -> bool:
    """Whether the folder is free; waits where only waiting can tell."""
    if found.owner and found.owner.has_left():
        return True
    if found.owner and found.owner.process.is_near() and seems_at_work(folder, found):
        return False
    quiet, step = 0.0, heartbeat_seconds() / 5
    seen_at = time.monotonic()
    while quiet <= silence_seconds():
        if stop_requested():
            raise Interrupted
        time.sleep(step)
        if (later := _read(folder, found.number)).content != found.content:
            return bool(later.owner and later.owner.has_left())
        # No more than what was watched: this process, or its file server, may have stood still.
        now = time.monotonic()
        quiet += min(now - seen_at, 2 * step)
        seen_at = now
    return True


def _create(file: Path, text: str) -> None:
    """Creates a file with its content, for one process alone.

    Raises:
        FileExistsError: it exists.
        OSError: the folder cannot be written to, or is gone.
    """
    aside = aside_of(file)
    try:
        aside.write_text(text, encoding="utf-8")
        try:
            os.link(aside, file)
        except FileExistsError:
            if aside.stat().st_nlink < 2:  # else it is ours: the server's first answer was lost
                raise
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            with file.open("x", encoding="utf-8") as stream:
                stream.write(text)
    except FileNotFoundError:
        if not file.parent.is_dir():
            raise
        # Another owner has removed what was written aside; the next try tells who owns this number.
        _create(file, text)
    finally:
        with suppress(OSError):
            aside.unlink()


class Ownership:
    """A folder that this process owns, until it releases it or another takes it over.

    Args:
        folder: the folder.
        number: of the owner's file, which is there.
        owner: what stands in it.
        before: the owner before it.
    """

    def __init__(self, folder: Path, number: int, owner: Owner, before: Found | None) -> None:
        self._folder, self._number, self._owner = folder, number, owner
        self._lost = False
        self._ended = threading.Event()
        if before and not (before.owner and before.owner.has_left()):
            # One that may wake up is told in its own file, too, which it sees in any case.
            write_text(_file(folder, before.number), owner.text(), to_disk=False)
        self._thread = threading.Thread(target=self._beat, daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Makes sure that this process still owns the folder.

        Raises:
            Lost: it does not.
            UserError: the folder was removed.
        """
        self._lost = self._lost or self._is_lost()
        if self._lost:
            raise Lost(
                f"another process has taken over {self._folder}, because this one gave no sign of "
                f"life for {silence_seconds():g} seconds"
            )

    def _is_lost(self) -> bool:
        if os.path.lexists(_file(self._folder, self._number + 1)):
            return True
        try:
            content = _file(self._folder, self._number).read_bytes()
        except FileNotFoundError:
            if self._folder.is_dir():
                return True
            raise UserError(
                f"{self._folder} was removed while its run was under way: launch it again"
            ) from None
        owner = Owner.parse(content)
        return owner is None or owner.token != self._owner.token

    def release(self) -> None:
        """Leaves the folder to others, unless it is theirs already."""
        self._ended.set()
        self._thread.join()
        # Where it cannot be written, on a full disk, the end of the process or silence will tell.
        with suppress(Lost, UserError, OSError):
            self._tell(replace(self._owner, released=True))
        _held.discard(self._owner.token)

    def _beat(self) -> None:
        while not self._ended.wait(heartbeat_seconds()):
            self._owner = replace(self._owner, beat=self._owner.beat + 1)
            try:
                self._tell(self._owner)
            except (Lost, UserError):
                return
            except OSError:  # a full disk, say: it may have room for the next one
                continue

    def _tell(self, owner: Owner) -> None:
        """Rewrites the owner's file, unless the folder is another's."""
        with guarded(self._folder, self.check):
            write_text(_file(self._folder, self._number), owner.text(), to_disk=False)
