"""Times left count what runs cost."""

import sys

import pytest

from domainbed.launchers import Event
from domainbed.runs.states import DONE, PROGRESS, STARTED
from domainbed.sweeps import display


def test_a_slow_algorithm_takes_longer_than_its_steps_say(monkeypatch):
    """Of runs with 100 steps each, ERM takes 10 s and SWAD 200 s, one after the other."""
    clock = [0.0]
    monkeypatch.setattr(display.time, "monotonic", lambda: clock[0])
    left = display.TimeLeft([100] * 5, ["ERM", "SWAD", "ERM", "SWAD", "Fishr"])

    def told(kind, index, after, steps=None):
        clock[0] += after
        left.on_event(Event(kind, index, steps or 0))
        return left.seconds()

    assert told(STARTED, 0, 0) is None
    assert told(PROGRESS, 0, 0.1, 1) is None  # a hundredth of its steps says too little
    assert told(DONE, 0, 9.9) == pytest.approx(40)  # all cost as much as ERM, as far as is known
    told(STARTED, 1, 0)
    told(PROGRESS, 1, 0, 1)
    assert told(DONE, 1, 200) == pytest.approx(10 + 200 + 105)  # Fishr as much as the others
    told(STARTED, 3, 0)
    assert told(PROGRESS, 3, 50, 25) == pytest.approx(10 + 150 + 105)
    assert told(STARTED, 2, 0) == pytest.approx((10 + 150 + 105) / 2)  # two at a time


def test_steps_of_an_earlier_launch_take_no_time(monkeypatch):
    """A run of 100 steps that resumes at step 80 takes 40 s, another from the start 200 s."""
    clock = [0.0]
    monkeypatch.setattr(display.time, "monotonic", lambda: clock[0])
    left = display.TimeLeft([100, 100], ["ERM", "ERM"])
    for kind, after, steps in ((STARTED, 0, 0), (PROGRESS, 2, 81), (PROGRESS, 18, 90)):
        clock[0] += after
        left.on_event(Event(kind, 0, steps))
    assert left.seconds() == pytest.approx(10 * 2 + 100 * 2)
    clock[0] += 20
    left.on_event(Event(DONE, 0))
    assert left.seconds() == pytest.approx(100 * 2)


def test_notebooks_show_a_bar_and_logs_lines(monkeypatch, capsys):
    for kernel, is_bar in ((None, False), (sys, True)):
        monkeypatch.setitem(sys.modules, "ipykernel", kernel)
        if kernel is None:
            monkeypatch.delitem(sys.modules, "ipykernel")
        shown = display.Display([2])
        shown.on_event(Event(PROGRESS, 0, 1))
        shown.close()
        assert ("50%|" in capsys.readouterr().err) == is_bar
