"""Everything that a killed run needs to go on exactly where its last record left it."""

from __future__ import annotations

import random
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from domainbed.errors import UserError
from domainbed.files import written_aside
from domainbed.training.state import capture, plain_numpy_state, restore

_VERSION = 3


@dataclass(frozen=True)
class Progress:
    """How far a run has come.

    Attributes:
        next_step: the first step not yet taken.
        records: the lines of results.jsonl so far, so that a file torn by a crash is replaced.
        seconds: time spent, over all sessions of the run.
    """

    next_step: int = 0
    records: tuple[str, ...] = ()
    seconds: float = 0.0


def save(file: Path, algorithm: nn.Module, progress: Progress) -> None:
    """Writes a checkpoint aside and moves it into place."""
    contents = {
        "version": _VERSION,
        "progress": asdict(progress),
        "algorithm": capture(algorithm),
        "random": _random_state(),
    }
    with written_aside(file) as aside:
        torch.save(contents, aside)


def load(file: Path, algorithm: nn.Module) -> Progress:
    """Restores the algorithm and all random sources; a fresh `Progress` if there is no file.

    Raises:
        UserError: the file is damaged, or the algorithm cannot go on from it, see `restore`.
    """
    if not file.exists():
        return Progress()
    # To the CPU: restoring moves each tensor to where its owner wants it, and an optimizer wants
    # its step counts there.
    try:
        contents = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # unpickling a damaged file raises anything
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(
            f"{file} is damaged ({reason}): remove it to begin the run again"
        ) from error
    if contents["version"] != _VERSION:
        return Progress()  # written by another version: begin again rather than guess
    restore(algorithm, contents["algorithm"])
    _set_random_state(contents["random"])
    progress = contents["progress"]
    return Progress(progress["next_step"], tuple(progress["records"]), progress["seconds"])


def _random_state() -> dict[str, Any]:
    return {
        "python": random.getstate(),
        "numpy": plain_numpy_state(np.random),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def _set_random_state(state: dict[str, Any]) -> None:
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    torch.set_rng_state(state["torch"].cpu())
    if state["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all([s.cpu() for s in state["cuda"]])
