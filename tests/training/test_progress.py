"""What the table of progress says of evaluations."""

import pytest

from domainbed.training import progress
from domainbed.training.progress import ProgressTable

TRAINING = 600.0  # seconds between two evaluations


class Clock:
    """Time that passes only when it is told to."""

    def __init__(self):
        self.now = 1000.0

    def monotonic(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    return clock


def evaluate(table, clock, total, batch, seconds_per_batch):
    for done in [*range(batch, total, batch), total]:
        clock.now += seconds_per_batch
        table.evaluating(done, total)


def test_training_between_evaluations_of_different_sizes_is_not_counted(clock, tmp_path, capsys):
    table = ProgressTable(tmp_path / "out.txt", True, 10)
    for total in (360, 1797, 360, 1797):
        evaluate(table, clock, total, 64, 0.01)
        clock.now += TRAINING
    assert capsys.readouterr().err == ""


def test_an_evaluation_in_two_calls_is_two_evaluations(clock, tmp_path, capsys):
    table = ProgressTable(tmp_path / "out.txt", True, 10)
    for _ in range(2):
        evaluate(table, clock, 30, 64, 0.01)  # fewer images than the next one's first batch
        evaluate(table, clock, 640, 64, 0.01)
        clock.now += TRAINING
    assert capsys.readouterr().err == ""


def test_the_estimate_is_that_of_the_evaluation_under_way(clock, tmp_path, capsys):
    table = ProgressTable(tmp_path / "out.txt", True, 10)
    evaluate(table, clock, 100, 50, 0.01)
    clock.now += TRAINING
    evaluate(table, clock, 1000, 50, 2.0)  # 20 batches
    evaluate(table, clock, 1000, 50, 2.0)
    assert capsys.readouterr().err == "each evaluation of 1,000 images takes about 40s\n"


def test_whoever_does_not_watch_is_told_nothing(clock, tmp_path, capsys):
    table = ProgressTable(tmp_path / "out.txt", False, 10)
    evaluate(table, clock, 1000, 50, 2.0)
    assert capsys.readouterr().err == ""
