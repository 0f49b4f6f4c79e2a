"""The processes of one run, if `torchrun` started several: how they meet, agree and end.

All take the same steps on the same minibatches, see `shared_passes`. The first one owns the run's
folder. Each of the others writes to a temporary folder.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import nn

from domainbed.core.device import choose_device
from domainbed.errors import UserError
from domainbed.runs.folder import RunFolder

T = TypeVar("T")

_NEEDED = ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
_REMEDY = "start several processes with torchrun, or unset WORLD_SIZE"
_STATUS = 2  # of the processes that end because another one said why
_LAST_PORT = 2**16 - 1
_number, _count = 0, 1


def count() -> int:
    """How many processes train the run."""
    return _count


def is_first() -> bool:
    """Whether this is the process that writes and prints."""
    return _number == 0


@contextmanager
def joined(device: str | None) -> Iterator[None]:
    """Joins the other processes of the run, if the variables of `torchrun` name any.

    Args:
        device: of the run's options.

    Raises:
        UserError: the machine has no such device for each process, a variable is missing or
            wrong, or the processes cannot meet.
    """
    global _number, _count
    if (processes := os.environ.get("WORLD_SIZE") or "1") == "1":
        yield
        return
    if lacking := [name for name in _NEEDED if name not in os.environ]:
        raise UserError(
            f"the environment variable WORLD_SIZE is {processes}, and {lacking[0]} is not set: "
            f"{_REMEDY}"
        )
    of_all = _whole_number("WORLD_SIZE", 1)
    _number, _count = _whole_number("RANK", 0, of_all - 1), of_all
    try:
        _meet("cpu:gloo,cuda:nccl" if _chosen_device(device).type == "cuda" else "gloo")
        yield
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
        _number, _count = 0, 1


def _whole_number(variable: str, least: int, most: int | None = None) -> int:
    """The value of an environment variable.

    Raises:
        UserError: it is not a whole number, or not between `least` and `most`.
    """
    given = os.environ[variable]
    number = int(given) if given.isdecimal() else -1
    if number < least or (most is not None and number > most):
        expected = f"from {least} on" if most is None else f"from {least} to {most}"
        raise UserError(
            f"the environment variable {variable} is {given!r}: expected a whole number "
            f"{expected}; {_REMEDY}"
        )
    return number


def _chosen_device(name: str | None) -> torch.device:
    """The device of this process, which becomes CUDA's current one."""
    local = _whole_number("LOCAL_RANK", 0, _count - 1)
    # Before anything is tried on a GPU: that would take memory of the first one.
    if name != "cpu" and local < torch.cuda.device_count():
        torch.cuda.set_device(local)
    return own_device(choose_device(name))


def _meet(backend: str) -> None:
    _whole_number("MASTER_PORT", 0, _LAST_PORT)
    try:
        dist.init_process_group(backend)
    except RuntimeError as error:
        place = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        reason = (str(error).splitlines() or [""])[0].rstrip(".")
        raise UserError(
            f"process {_number} of this run cannot meet the others at {place} ({reason}): see "
            "that MASTER_ADDR is a machine that it reaches, and that the port is free there, or "
            "give torchrun --standalone on a single machine"
        ) from error


def own_device(device: torch.device) -> torch.device:
    """The device of this process: each of several has its own GPU.

    Raises:
        UserError: there are fewer GPUs, a single one was named, or the processes cannot talk.
    """
    if _count == 1 or device.type == "cpu":
        return device
    if device.type != "cuda" or device.index is not None:
        raise UserError(
            f"device is {str(device)!r}, and {_count} processes train the run: choose cuda, which "
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
    """The part of n rows that this process computes."""
    return slice(_number * n // _count, (_number + 1) * n // _count)


@contextmanager
def own_folder(
    folder: RunFolder, claimed: Callable[[RunFolder], dict[str, Any] | None]
) -> Iterator[tuple[RunFolder, dict[str, Any] | None]]:
    """The folder that this process writes to, and what `claimed` returned in the first process.

    Args:
        folder: of the run, owned by the first process meanwhile.
        claimed: called by the first process once it owns the folder.
    """
    with ExitStack() as stack:

        def taken() -> dict[str, Any] | None:
            folder.refuse_foreign()
            stack.enter_context(folder.exclusive())
            return claimed(folder)

        told = of_first(together(lambda: taken() if is_first() else None))
        if is_first():
            yield folder, told
            return
        own = RunFolder(stack.enter_context(TemporaryDirectory(prefix="domainbed-")))
        for file in (folder.checkpoint, folder.checkpoint_before):
            if file.exists():  # it resumes from the same one
                (own.path / file.name).symlink_to(file.absolute())
        yield own, told


def together(work: Callable[[], T]) -> T:
    """What `work` returns, after it is done in all processes.

    If it fails in any process, all end, and one of them says why.

    Raises:
        SystemExit: it failed in another process.
        UserError: another process has ended.
    """
    if _count == 1:
        return work()
    error: Exception | None = None
    try:
        result = work()
    except Exception as raised:
        error = raised
    failed: list[bool] = [False] * _count
    with _among_all():
        dist.all_gather_object(failed, error is not None)
    if error is not None and failed.index(True) == _number:
        raise error
    if any(failed):
        raise SystemExit(_STATUS)
    return result


def any_of_them(here: bool) -> bool:
    """Whether `here` is true in any process; all get the same answer."""
    return here if _count == 1 else bool(add_up(torch.tensor([float(here)])))


def add_up(value: torch.Tensor) -> torch.Tensor:
    """`value`, which now holds the sum over all processes.

    Raises:
        UserError: another process has ended.
    """
    with _among_all():
        dist.all_reduce(value)
    return value


def of_first(value: T) -> T:
    """The first process's value.

    Raises:
        UserError: another process has ended.
    """
    told = [value]
    if _count > 1:
        with _among_all():
            dist.broadcast_object_list(told, 0)
    return told[0]


@contextmanager
def _among_all() -> Iterator[None]:
    """Wraps what waits for the other processes."""
    try:
        yield
    except RuntimeError as error:
        # Gloo has no error class; its errors name a file of its source.
        if not isinstance(error, dist.DistError) and "gloo" not in str(error):
            raise
        raise UserError(
            f"process {_number} of this run ends, because another one did: its line says why"
        ) from error


@torch.no_grad()
def align(network: nn.Module) -> None:
    """Gives all processes the first one's weights.

    They have these already, unless a GPU kernel sums in another order each time.
    """
    if _count == 1:
        return
    for own in (*network.parameters(), *network.buffers()):
        if not own.is_floating_point():  # a count
            continue
        value = own.contiguous()  # a broadcast takes no other layout
        with _among_all():
            dist.broadcast(value, 0)
        own.copy_(value)
