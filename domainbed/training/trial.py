"""One small run of an algorithm, to see whether it trains here."""

from __future__ import annotations

import io
import os
import signal
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from tempfile import TemporaryDirectory
from typing import Any
from unittest import mock

import torch
from torch import nn

from domainbed.config.run_facts import LentValue
from domainbed.config.run_fields import RunOptions
from domainbed.errors import UserError, one_line
from domainbed.spec import RunSpec
from domainbed.training.trainer import run


def trial(name: str, seconds: float = 120.0) -> tuple[str, str]:
    """One or two updates of a registered algorithm on random images, on the CPU.

    They are a run in a temporary folder: with records, evaluation and a checkpoint. Images are as
    small as DomainBed's digits, or of ImageNet's size where an algorithm does not run on these.
    Weights are not downloaded: where PyTorch would, random ones are tried. What a fork's registry
    does not give an algorithm, and another place in the fork does, is said.

    Args:
        name: of the algorithm.
        seconds: after which it is given up, in the main thread of a program.

    Returns:
        "runs", "runs with" or "does not run"; and what it needs, or why it does not run.
    """
    reasons = []
    options = RunOptions(device="cpu", num_workers=0, keep="none")
    for dataset, steps, size in (("Debug28", 2, []), ("Debug224", 1, ["images of 224 x 224"])):
        needs = list(size)
        try:
            with (
                _within(seconds),
                redirect_stdout(io.StringIO()),
                redirect_stderr(io.StringIO()),
                _without_weights(needs),
                TemporaryDirectory() as folder,
                warnings.catch_warnings(record=True) as said,
            ):
                warnings.simplefilter("always", LentValue)
                spec = RunSpec.create(dataset, name, [0], steps=steps, hparams={"batch_size": 4})
                run(spec, folder, options)
            needs += [str(each.message) for each in said if each.category is LentValue]
            return "runs with" if needs else "runs", ", ".join(dict.fromkeys(needs))
        except (Exception, SystemExit) as error:
            kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
            reasons.append(kind + one_line(error))
    return "does not run", "; ".join(dict.fromkeys(reasons))


@contextmanager
def _without_weights(needs: list[str]) -> Iterator[None]:
    """Leaves random weights where PyTorch would download others; notes each file in `needs`."""
    load = nn.Module.load_state_dict

    def download(url: str, file: str, *args: Any, **kwargs: Any) -> None:
        needs.append(f"weights of {url}")
        torch.save({}, file)

    with (
        TemporaryDirectory() as hub,
        mock.patch.dict(os.environ, {"TORCH_HOME": hub}),
        mock.patch("torch.hub.download_url_to_file", download),
        mock.patch.object(
            nn.Module,
            "load_state_dict",
            lambda module, state, *args, **kw: load(
                module, state or module.state_dict(), *args, **kw
            ),
        ),
    ):
        yield


@contextmanager
def _within(seconds: float) -> Iterator[None]:
    """Raises a UserError after a time."""

    def stop(*signalled: Any) -> None:
        raise UserError(f"no small run ended within {seconds:g} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
