"""One small run of an algorithm, to see whether it trains here."""

import io
import os
import re
import signal
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
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

# The files of this package, of others that are installed, and of Python.
_NOT_A_FORK = re.compile(f"site-packages|lib/python3|{re.escape(str(Path(__file__).parents[1]))}")

SECONDS = 120  # after which a small run is given up


def trial(name: str) -> tuple[str, str]:
    """One or two updates of a registered algorithm on random images, on the CPU.

    They are a run in a temporary folder: with records, evaluation and a checkpoint. Images are as
    small as DomainBed's digits, or of ImageNet's size where an algorithm does not run on these.
    Weights are not downloaded: where PyTorch would, random ones are tried. What a fork's registry
    does not give an algorithm, and another place in the fork does, is said.

    Args:
        name: of the algorithm.

    Returns:
        "runs", "runs with" or "does not run"; and what it needs, or why it does not run.
    """
    reasons = []
    signal.signal(signal.SIGALRM, _give_up)
    for dataset, steps, size in (("Debug28", 2, []), ("Debug224", 1, ["images of 224 x 224"])):
        needs = list(size)
        signal.alarm(SECONDS)
        try:
            with (
                redirect_stdout(io.StringIO()),
                redirect_stderr(io.StringIO()),
                _without_weights(needs),
                TemporaryDirectory() as folder,
                warnings.catch_warnings(record=True) as warned,
            ):
                warnings.simplefilter("always", LentValue)
                spec = RunSpec.create(dataset, name, [0], steps=steps, hparams={"batch_size": 4})
                run(spec, folder, RunOptions(device="cpu", num_workers=0, keep="none"))
            needs += [str(each.message) for each in warned if each.category is LentValue]
            return "runs with" if needs else "runs", ", ".join(dict.fromkeys(needs))
        except (Exception, SystemExit) as error:
            places = traceback.extract_tb(error.__traceback__)
            own = [each for each in places if not _NOT_A_FORK.search(each.filename)] or places
            of_fork = f"{error!r} ({own[-1].filename}, line {own[-1].lineno})"
            reasons.append(one_line(error) if isinstance(error, UserError) else of_fork)
        finally:
            signal.alarm(0)
    return "does not run", "; ".join(dict.fromkeys(reasons))


def _give_up(*signalled: Any) -> None:
    raise UserError(f"no small run ended within {SECONDS} s")


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
