"""Being asked to stop."""

import os
import signal
import threading

import pytest

from domainbed.core.stopping import (
    Interrupted,
    request_stop,
    stop_requested,
    stop_signal,
    stopping_at_once,
    stopping_on,
)


def test_the_first_signal_requests_a_stop_and_the_second_interrupts():
    before = signal.getsignal(signal.SIGTERM)
    with stopping_on([signal.SIGTERM]):
        assert not stop_requested()
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop_requested()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGTERM)
    assert not stop_requested()
    assert signal.getsignal(signal.SIGTERM) is before


def test_in_another_thread_signals_are_left_alone():
    before, found = signal.getsignal(signal.SIGTERM), []

    def work():
        with stopping_on([signal.SIGTERM]):
            found.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [before]


def test_what_was_requested_is_over_with_the_work():
    with stopping_on([signal.SIGTERM]):
        request_stop()
        assert stop_requested()
    assert not stop_requested()


def test_another_signal_is_no_repetition():
    with stopping_on([signal.SIGUSR2, signal.SIGTERM]):
        for number in (signal.SIGUSR2, signal.SIGTERM):
            os.kill(os.getpid(), number)
            assert stop_signal() == number
    assert stop_signal() == 0


def test_where_nothing_is_lost_work_stops_at_once():
    with stopping_on([signal.SIGTERM]):
        with pytest.raises(Interrupted), stopping_at_once():
            os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(Interrupted), stopping_at_once():
            raise AssertionError("it was asked to stop before")
