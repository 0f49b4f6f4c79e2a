"""Domains that are read image by image, by worker processes."""

from __future__ import annotations

import os
from abc import abstractmethod
from collections.abc import Iterable, Iterator
from itertools import tee
from typing import Any, Protocol

import torch
from torch.utils.data import DataLoader, Dataset, default_collate

from domainbed.core.seeding import global_sources_kept, seed_everything
from domainbed.datasets.domain import Domain, Draw, Minibatch, on_device
from domainbed.errors import UserError

_Request = tuple[list[int], list[int], bool]  # indices, a seed for each, whether to augment


class Sharing(Protocol):
    """Several processes that all need the same batches, and each read a part of them."""

    def own_rows(self, n: int) -> slice:
        """The rows of a batch of n that this process reads; at least one."""

    def all_rows(self, own: torch.Tensor, n: int) -> torch.Tensor:
        """All n rows, given this process's own; called by all processes in the same order."""


class LoadedDomain(Domain):
    """Images that `read` reads one at a time.

    What is random about an image (its augmentation, above all) does not depend on who reads it:
    the global sources of Python, NumPy and PyTorch are seeded for each image.

    Attributes:
        sharing: the processes that read batches together; None where this one reads alone.
    """

    sharing: Sharing | None = None

    @abstractmethod
    def read(self, index: int, augment: bool) -> tuple[torch.Tensor, Any]:
        """One image and its label; it may draw from the global sources."""

    def batches(self, draws: Iterable[Draw], workers: int = 0) -> Iterator[Minibatch]:
        drawn, asked = tee(draws)
        loader: DataLoader[Any] = DataLoader(
            _Batches(self),
            batch_size=None,
            sampler=map(self._request, asked),
            num_workers=workers,
            generator=torch.Generator(),  # else each pass would draw from the run's own source
            pin_memory=self.device.type == "cuda",
            prefetch_factor=2 if workers else None,
            worker_init_fn=_leave_group,
        )
        for batch, draw in zip(loader, drawn):
            if isinstance(batch, UserError):
                raise batch
            if self.sharing is not None:
                own = [each.to(self.device, non_blocking=True) for each in batch]
                batch = [self.sharing.all_rows(each, len(draw.indices)) for each in own]
            x, y = batch
            if self.device.type == "cpu":  # its first convolution chooses the memory format
                yield x, y
            else:
                yield on_device(x, self.device), y.to(self.device, non_blocking=True)

    def _request(self, draw: Draw) -> _Request:
        rows = self.sharing.own_rows(len(draw.indices)) if self.sharing else slice(None)
        return draw.indices.tolist()[rows], draw.image_seeds()[rows], draw.augment


def _leave_group(worker: int) -> None:
    """Leaves the group of processes to which Ctrl-C and torchrun send their signals.

    They ask the run to stop, and it still needs its readers to finish a step: they end with it.
    """
    if hasattr(os, "setpgrp"):
        os.setpgrp()


class _Batches(Dataset[Any]):
    """A domain's batches by request: the object that is sent to worker processes.

    A batch is a collated one, or the UserError of an image in it that cannot be read: as a
    value, since an exception from a worker process has its traceback in its message.
    """

    def __init__(self, domain: LoadedDomain) -> None:
        self._domain = domain

    def __getitem__(self, request: _Request) -> Any:
        indices, seeds, augment = request
        pairs = []
        try:
            # Reading must not touch the sources of GPUs, which dropout uses.
            with global_sources_kept(gpus=False):
                for index, seed in zip(indices, seeds):
                    seed_everything(seed, gpus=False)
                    pairs.append(self._domain.read(index, augment))
                return default_collate(pairs)
        except UserError as error:
            return error
