"""Requests to stop the work of this process where it can be resumed."""

import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

SIGNALS = [
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
]
"""Of Ctrl-C, of a system that shuts down or a person, and of a terminal that is closed."""

_requested = threading.Event()
_signal = 0
_at_once = False


class Interrupted(Exception):
    """The work stopped because it was asked to; it can be resumed from what it wrote."""


def stop_requested() -> bool:
    """Whether this process was asked to stop: checked wherever work could be resumed."""
    return _requested.is_set()


def stop_signal() -> int:
    """The signal that requested the stop; 0 if none did."""
    return _signal


def request_stop() -> None:
    """Asks the work of this process to stop and to raise `Interrupted`.

    In a signal handler it raises that itself where nothing would be lost.
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
    """The first of these signals requests a stop; the same again raises KeyboardInterrupt.

    That drops what is under way, as Ctrl-C does. Signals that this process ignores, as under
    `nohup`, stay ignored. At the end the request is over.
    """

    def on_signal(number: int, frame: FrameType | None) -> None:
        global _signal
        repeated, _signal = number == _signal, number
        if repeated:
            raise KeyboardInterrupt(number)
        request_stop()

    global _signal
    try:
        with handled(signals, on_signal):
            yield
    finally:
        _requested.clear()
        _signal = 0


@contextmanager
def interrupting_on(signals: Iterable[signal.Signals]) -> Iterator[None]:
    """These signals raise KeyboardInterrupt, as Ctrl-C does; `signal_of` tells which did."""

    def on_signal(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt(number)

    with handled(signals, on_signal):
        yield


def signal_of(interrupt: KeyboardInterrupt) -> int:
    """The signal that raised it; Python's own comes from Ctrl-C."""
    return interrupt.args[0] if interrupt.args else signal.SIGINT


@contextmanager
def handled(
    signals: Iterable[signal.Signals], handler: Callable[[int, FrameType | None], None]
) -> Iterator[None]:
    """Calls `handler` for these signals, but for those that this process ignores.

    In a thread other than the main one, which signals never reach, this does nothing.
    """
    before: dict[signal.Signals, Any] = {}
    if threading.current_thread() is threading.main_thread():
        heeded = [number for number in signals if signal.getsignal(number) != signal.SIG_IGN]
        before = {number: signal.signal(number, handler) for number in heeded}
    try:
        yield
    finally:
        for number, usual in before.items():
            signal.signal(number, usual)
