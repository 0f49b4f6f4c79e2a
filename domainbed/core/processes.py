"""Which process it is, among those of all machines that share a file system."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from functools import cache
from pathlib import Path


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


@cache
def _boot() -> str:
    return _text("/proc/sys/kernel/random/boot_id").strip()


@cache
def _namespace() -> str:
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


def process_stat(pid: int) -> tuple[str, str]:
    """The state and the start time of a process; "" of one that cannot be seen."""
    values = _text(f"/proc/{pid}/stat").rpartition(")")[2].split()
    return (values[0], values[19]) if len(values) > 19 else ("", "")


def _text(file: str) -> str:
    try:
        return Path(file).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
