"""Being asked to stop."""

import os
import signal
import threading

import pytest

from domainbed.stopping import request_stop, stop_requested, stopping_on


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
