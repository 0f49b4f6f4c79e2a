"""The processes of one run, where `torchrun` started several: how they meet, agree and end.

All of them do the same steps on the same minibatches, see `shared_passes`. The first one owns the
run's folder. Each of the others writes to a folder of its own, which is removed at its end.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import nn

from domainbed.errors import UserError
from domainbed.run_fields import RunOptions
from domainbed.run_folder import RunFolder
from domainbed.training.machine import choose_device

T = TypeVar("T")

_VARIABLES = ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
_STATUS = 2  # of the processes that end because another one said why
_number, _count = 0, 1


def number() -> int:
    """Of this process, from 0."""
    return _number


def count() -> int:
    """How many processes do the run."""
    return _count


def is_first() -> bool:
    """Whether this is the process that writes and prints."""
    return _number == 0


@contextmanager
def joined(device: str | None) -> Iterator[None]:
    """Meets the other processes of the run, as the variables of `torchrun` name them, if any.

    Args:
        device: of the run's options.

    Raises:
        UserError: the machine has no such device for each of them, or a variable is not set.
    """
    global _number, _count
    if (processes := os.environ.get("WORLD_SIZE") or "1") == "1":
        yield
        return
    if lacking := [name for name in _VARIABLES if name not in os.environ]:
        raise UserError(
            f"the environment variable WORLD_SIZE is {processes}, and {lacking[0]} is not set: "
            "start several processes with torchrun, or unset it"
        )
    _number, _count = int(os.environ["RANK"]), int(processes)
    try:
        own = own_device(choose_device(device))
        if own.type == "cuda":
            torch.cuda.set_device(own)
        dist.init_process_group("cpu:gloo,cuda:nccl" if own.type == "cuda" else "gloo")
        try:
            yield
        finally:
            dist.destroy_process_group()
    finally:
        _number, _count = 0, 1


def own_device(device: torch.device) -> torch.device:
    """That of this process: of several, each has a GPU of its own.

    Raises:
        UserError: there are fewer GPUs, a single one was named, or the processes cannot talk.
    """
    if _count == 1 or device.type == "cpu":
        return device
    if device.type != "cuda" or device.index is not None:
        raise UserError(
            f"device is {str(device)!r}, and {_count} processes do the run: choose cuda, which "
            "gives each a GPU of its own, or cpu",
            "device",
        )
    local, gpus = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
    if local >= gpus:
        raise UserError(
            f"process {local} of this machine has no GPU, as there are {gpus}: give torchrun "
            f"--nproc-per-node {gpus}"
        )
    return torch.device("cuda", local)


def own_rows(n: int) -> slice:
    """Those of n rows that this process sees to."""
    return slice(_number * n // _count, (_number + 1) * n // _count)


def own_options(options: RunOptions) -> RunOptions:
    """Only the first process keeps weights, and tells the trackers."""
    if is_first():
        return options
    return options.model_copy(update={"keep": "none", "trackers": ()})


@contextmanager
def own_folder(
    folder: RunFolder, claimed: Callable[[RunFolder], dict[str, Any] | None]
) -> Iterator[tuple[RunFolder, dict[str, Any] | None]]:
    """The folder that this process writes to, and what `claimed` returned in the first one.

    Args:
        folder: the run's, which the first process owns meanwhile.
        claimed: called by the first one, when it owns the folder.
    """
    with ExitStack() as stack:

        def taken() -> dict[str, Any] | None:
            folder.refuse_foreign()
            stack.enter_context(folder.exclusive())
            return claimed(folder)

        told = [together(lambda: taken() if is_first() else None)]
        if _count > 1:
            dist.broadcast_object_list(told, 0)
        if not is_first():
            folder = _copy_of(folder, stack.enter_context(TemporaryDirectory(prefix="domainbed-")))
        yield folder, told[0]


def _copy_of(folder: RunFolder, path: str) -> RunFolder:
    """Another folder to go on from the same checkpoint, which stays where it is."""
    copy = RunFolder(path)
    for file in (folder.checkpoint, folder.checkpoint_before):
        if file.exists():
            (Path(path) / file.name).symlink_to(file.absolute())
    return copy


def together(work: Callable[[], T]) -> T:
    """What `work` returns. Where it fails in any process, all end, and one of them says why.

    Raises:
        SystemExit: it failed in another process.
    """
    if _count == 1:
        return work()
    error: Exception | None = None
    try:
        result = work()
    except Exception as raised:
        error = raised
    failed: list[bool] = [False] * _count
    dist.all_gather_object(failed, error is not None)
    if error is not None and failed.index(True) == _number:
        raise error
    if any(failed):
        raise SystemExit(_STATUS)
    return result


def any_of_them(here: bool) -> bool:
    """Whether it is so in any process; all get the same answer."""
    return here if _count == 1 else bool(add_up(torch.tensor([float(here)])))


def add_up(value: torch.Tensor) -> torch.Tensor:
    """`value`, which now holds the sum of those of all processes.

    Raises:
        UserError: another process has ended.
    """
    try:
        dist.all_reduce(value)
    except RuntimeError as error:
        raise UserError(
            f"process {_number} of this run ends, because another one did: its line says why"
        ) from error
    return value


@torch.no_grad()
def align(network: nn.Module) -> None:
    """Gives all processes the first one's weights.

    They have them already, unless a kernel of a GPU adds up in another order each time.
    """
    if _count == 1:
        return
    for own in (*network.parameters(), *network.buffers()):
        if not own.is_floating_point():  # a count
            continue
        value = own.contiguous()  # a broadcast takes no other layout
        dist.broadcast(value, 0)
        own.copy_(value)
