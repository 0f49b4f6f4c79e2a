"""Asking the work of this process to stop where it can be taken up again, and whether it should."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

SIGNALS = [
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
]
"""Ctrl-C; what a system says that shuts down, or a person; what a terminal says that is closed."""

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
    """Asks what this process is at to stop, and to raise `Interrupted`.

    Called by a signal's handler, it raises that itself where nothing would be lost.
    """
    _requested.set()
    if _at_once and threading.current_thread() is threading.main_thread():
        raise Interrupted


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

    That raises KeyboardInterrupt, as Ctrl-C does. Signals that this process ignores, as `nohup`
    makes it, stay ignored. At its end no stop is requested any more.
    """

    def on_signal(number: int, frame: FrameType | None) -> None:
        global _signal
        repeated, _signal = number == _signal, number
        if repeated:
            raise KeyboardInterrupt(number)
        request_stop()

    global _signal
    try:
        with _handled(signals, on_signal):
            yield
    finally:
        _requested.clear()
        _signal = 0


@contextmanager
def interrupting_on(signals: Iterable[signal.Signals]) -> Iterator[None]:
    """These signals raise KeyboardInterrupt, as Ctrl-C does; `signal_of` tells which did."""

    def on_signal(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt(number)

    with _handled(signals, on_signal):
        yield


def signal_of(interrupt: KeyboardInterrupt) -> int:
    """The signal that it came of; Python's own is Ctrl-C's."""
    return interrupt.args[0] if interrupt.args else signal.SIGINT


@contextmanager
def _handled(
    signals: Iterable[signal.Signals], handler: Callable[[int, FrameType | None], None]
) -> Iterator[None]:
    """In a thread other than the main one, which signals never reach, this does nothing."""
    before: dict[signal.Signals, Any] = {}
    if threading.current_thread() is threading.main_thread():
        heeded = [number for number in signals if signal.getsignal(number) != signal.SIG_IGN]
        before = {number: signal.signal(number, handler) for number in heeded}
    try:
        yield
    finally:
        for number, usual in before.items():
            signal.signal(number, usual)
