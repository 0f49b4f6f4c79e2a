"""Asking the work of this process to stop where it can be taken up again, and whether it should."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import FrameType

_requested = threading.Event()


class Interrupted(Exception):
    """The work stopped because it was asked to; what it wrote lets it go on from there."""


def stop_requested() -> bool:
    """Whether this process was asked to stop: work looks at it wherever it could go on from."""
    return _requested.is_set()


def request_stop() -> None:
    """Asks what this process is at to stop, and to raise `Interrupted`."""
    _requested.set()


@contextmanager
def stopping_on(signals: Iterable[signal.Signals]) -> Iterator[None]:
    """The first of these signals requests a stop; at the next one, what is under way is dropped.

    The second one raises KeyboardInterrupt, as Ctrl-C does. In a thread other than the main one,
    which signals never reach, this does nothing. At its end no stop is requested any more.
    """

    def on_signal(number: int, frame: FrameType | None) -> None:
        if stop_requested():
            raise KeyboardInterrupt
        request_stop()

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, on_signal) for number in signals}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _requested.clear()
