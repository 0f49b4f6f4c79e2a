"""Everything that a run needs to resume exactly where its last checkpoint left it."""

import errno
import io
import random
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from domainbed.core.files import CHANGED, check_guard, digest_of, written_aside
from domainbed.errors import UserError, is_out_of_memory, one_line
from domainbed.networks.pretrained import load_plain
from domainbed.runs.folder import RunFolder, seal_of
from domainbed.training.ranks import count, is_first
from domainbed.training.restoring import restore
from domainbed.training.state import capture, plain_numpy_state

_VERSION = 6


@dataclass(frozen=True)
class Progress:
    """How far a run has come.

    Attributes:
        stage: the number of the stage under way, from 1.
        next_step: the first of its steps not yet taken; the number of steps if it has ended.
        records: the lines of results.jsonl so far, so that a file torn by a crash is replaced;
            without any there is nothing to resume from.
        seconds: time spent, over all sessions of the run.
        history: by name, what each update since the last record returned.
    """

    stage: int = 1
    next_step: int = 0
    records: tuple[str, ...] = ()
    seconds: float = 0.0
    history: Mapping[str, Sequence[float]] = field(default_factory=dict)


def save(
    folder: RunFolder,
    run_id: str,
    algorithm: nn.Module,
    progress: Progress,
    averages: Mapping[str, Any] | None = None,
) -> None:
    """Writes a checkpoint aside, reads it back, and moves it into place; one process of a run does.

    The one before stays until then, and is kept beside it as the one to fall back on. `averages`
    is the state of the averages of the weights.
    """
    if not is_first():
        return
    stream = io.BytesIO()
    torch.save(
        {
            "version": _VERSION,
            "run_id": run_id,
            "progress": asdict(progress),
            "algorithm": capture(algorithm),
            "averages": dict(averages or {}),
            "random": _random_state(),
        },
        stream,
    )
    payload = stream.getvalue()
    with written_aside(folder.checkpoint) as aside:
        seal = seal_of("".join(progress.records).encode()).encode()
        aside.write_bytes(_title_of(payload) + b"; " + seal + b"\n" + payload)
        _payload(aside)  # raises if the disk does not hold what was written
        check_guard(folder.path)
        with suppress(FileNotFoundError):
            folder.checkpoint.replace(folder.checkpoint_before)


def load(
    folder: RunFolder,
    run_id: str,
    algorithm_of: Callable[[int], nn.Module],
    restore_averages: Callable[[dict[str, Any]], None] = lambda state: None,
    say: Callable[[str], None] = lambda line: None,
) -> Progress:
    """Restores an algorithm and all random sources; a fresh `Progress` if there is no file.

    A damaged checkpoint is passed over for the one before it.

    Args:
        folder: of the run.
        run_id: of the run.
        algorithm_of: makes the algorithm of a stage, as its constructor does.
        restore_averages: takes the state of the averages of the weights.
        say: takes a line for each checkpoint that is passed over.

    Raises:
        UserError: no checkpoint is whole, it is another run's, or the algorithm cannot
            resume from it, see `restore`.
    """
    reasons = []
    for file in filter(Path.exists, (folder.checkpoint, folder.checkpoint_before)):
        try:
            contents = _read(file)
        except OSError as error:
            reasons.append(f"{file} is damaged ({error.strerror})")
            continue
        for reason in reasons:
            say(f"{reason}: resuming from {file.name}, the one before")
        if contents["version"] != _VERSION:  # starting again is better than guessing
            say(f"{file} was written by another version of this program: the run starts again")
            return Progress()
        if contents["run_id"] != run_id:
            raise UserError(
                f"{file} is of another run ({contents['run_id']}): remove it to start the run again"
            )
        try:
            progress = Progress(**contents["progress"])
            restore(algorithm_of(progress.stage), contents["algorithm"])
            restore_averages(contents["averages"])
            _set_random_state(contents["random"])
        except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            if is_out_of_memory(error):
                raise
            raise UserError(
                f"{file} does not fit the run ({type(error).__name__}: {one_line(error)}): remove "
                "it to resume from the one before, or to start the run again"
            ) from error
        return progress
    if reasons:
        raise UserError(f"{'; '.join(reasons)}: remove it to start the run again")
    return Progress()


def remove(folder: RunFolder) -> None:
    """Of a run that is done."""
    folder.checkpoint.unlink(missing_ok=True)
    folder.checkpoint_before.unlink(missing_ok=True)


def _title_of(payload: bytes) -> bytes:
    return f"domainbed checkpoint, sha256 {digest_of(payload)}".encode()


def _payload(file: Path) -> bytes:
    """What follows the first line.

    Raises:
        OSError: it cannot be read, or does not have the digest in the first line.
    """
    title, _, payload = file.read_bytes().partition(b"\n")
    if title.partition(b"; ")[0] != _title_of(payload):
        raise OSError(errno.EIO, CHANGED, str(file))
    return payload


def _read(file: Path) -> dict[str, Any]:
    """The contents of a checkpoint.

    Raises:
        OSError: it cannot be read.
    """
    payload = _payload(file)
    # To the CPU: restoring moves each tensor to where its owner wants it, and an optimizer wants
    # its step counts there.
    try:
        return dict(load_plain(io.BytesIO(payload)))
    except Exception as error:  # unpickling what nobody here wrote raises anything
        # PyTorch's own message advises to trust the file.
        raise OSError(errno.EIO, type(error).__name__) from error


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
        states = [s.cpu() for s in state["cuda"]]
        # Of several processes each continues, on a GPU of its own, as the first one was; and there
        # may be fewer GPUs than where the run started, or more.
        gpus = torch.cuda.device_count()
        first = states[:1] * gpus
        torch.cuda.set_rng_state_all(first if count() > 1 else [*states, *first][:gpus])
