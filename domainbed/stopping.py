"""Asking the work of this process to stop where it can be taken up again, and whether it should."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import FrameType

_requested = threading.Event()
_signal = 0
_at_once = False


class Interrupted(Exception):
    """The work stopped because it was asked to; what it wrote lets it go on from there."""


def stop_requested() -> bool:
    """Whether this process was asked to stop: work looks at it wherever it could go on from."""
    return _requested.is_set()


def stop_signal() -> int:
    """The signal that asked for it; 0 if none did."""
    return _signal


def request_stop() -> None:
    """Asks what this process is at to stop, and to raise `Interrupted`."""
    _requested.set()


@contextmanager
def stopping_at_once() -> Iterator[None]:
    """While nothing would be lost: a signal that requests a stop, or did, raises `Interrupted`."""
    global _at_once
    before, _at_once = _at_once, True
    try:
        if stop_requested():
            raise Interrupted
        yield
    finally:
        _at_once = before


@contextmanager
def stopping_on(signals: Iterable[signal.Signals]) -> Iterator[None]:
    """The first of these signals requests a stop; at its repetition, what is under way is dropped.

    That raises KeyboardInterrupt, as Ctrl-C does. In a thread other than the main one,
    which signals never reach, this does nothing. At its end no stop is requested any more.
    """

    def on_signal(number: int, frame: FrameType | None) -> None:
        global _signal
        repeated, _signal = number == _signal, number
        if repeated:
            raise KeyboardInterrupt
        request_stop()
        if _at_once:
            raise Interrupted

    global _signal
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
        _signal = 0
