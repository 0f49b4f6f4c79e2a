"""One small run of an algorithm, to see whether it trains here."""

from __future__ import annotations

import io
import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import Any, NamedTuple

from domainbed.config.run_fields import RunOptions
from domainbed.errors import one_line
from domainbed.spec import RunSpec
from domainbed.training.trainer import run

_DATA = {"Debug28": "", "Debug224": "images of 224 x 224"}
"""Datasets of random images to try, and what it takes to run on them alone."""


class Trial(NamedTuple):
    """How a small run of an algorithm went.

    Attributes:
        result: "runs", "runs with" or "does not run".
        note: what it needs, or why it does not run; empty if it runs as it is.
    """

    result: str
    note: str = ""


def trial(name: str, seconds: float = 60.0) -> Trial:
    """Three updates of a registered algorithm on small random images, on the CPU.

    They are a run in a temporary folder: with records, evaluation and a checkpoint. Images are as
    small as DomainBed's digits, or of ImageNet's size where an algorithm does not run on these.

    Args:
        name: of the algorithm.
        seconds: after which it is given up, in the main thread of a program.
    """
    reasons = []
    options = RunOptions(device="cpu", num_workers=0, keep="none")
    for dataset, note in _DATA.items():
        try:
            with _silent_within(seconds), tempfile.TemporaryDirectory() as folder:
                fixed = {"batch_size": 4}
                spec = RunSpec.create(dataset, name, [0], steps=3, checkpoint_freq=2, hparams=fixed)
                run(spec, folder, options)
            return Trial("runs with" if note else "runs", note)
        except (Exception, SystemExit) as error:
            reasons.append(f"{type(error).__name__}: {one_line(error)}")
    return Trial("does not run", "; ".join(dict.fromkeys(reasons)))


@contextmanager
def _silent_within(seconds: float) -> Iterator[None]:
    """Hides what foreign code prints, and raises `TimeoutError` after a time."""

    def stop(*signalled: Any) -> None:
        raise TimeoutError(f"no update ended within {seconds:g} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
