"""Domains that are read image by image, by worker processes."""

from __future__ import annotations

import os
import random
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from itertools import tee
from typing import Any, Protocol

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, default_collate

from domainbed.core.seeding import global_sources_kept
from domainbed.datasets.domain import Domain, Draw, Minibatch, on_device
from domainbed.errors import UserError

_Request = tuple[list[int], list[int], bool]  # indices, a seed for each, whether to augment


class Sharing(Protocol):
    """Several processes that all want the same batches, and read a part of each."""

    def own_rows(self, n: int) -> slice:
        """Those of a batch of n that this process reads; at least one."""

    def all_rows(self, own: torch.Tensor, n: int) -> torch.Tensor:
        """All n, of which these are this process's; called by all processes in turn."""


class LoadedDomain(Domain):
    """Images that `read` reads one at a time.

    What is random about an image (its augmentation, above all) does not depend on who reads it:
    the global sources of Python, NumPy and PyTorch are seeded for each image.

    Attributes:
        sharing: with the processes that read batches together; None where this one reads alone.
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
            yield self._delivered(*self._whole(batch, len(draw.indices)))

    def _request(self, draw: Draw) -> _Request:
        rows = self.sharing.own_rows(len(draw.indices)) if self.sharing else slice(None)
        return draw.indices.tolist()[rows], draw.image_seeds()[rows], draw.augment

    def _whole(self, batch: Minibatch, n: int) -> Sequence[torch.Tensor]:
        """What all processes read of a batch of n."""
        if self.sharing is None:
            return batch
        moved = [each.to(self.device, non_blocking=True) for each in batch]
        return [self.sharing.all_rows(each, n) for each in moved]

    def _delivered(self, x: torch.Tensor, y: torch.Tensor) -> Minibatch:
        """On the device. A CPU's first convolution arranges images as it likes them."""
        if self.device.type == "cpu":
            return x, y
        return on_device(x, self.device), y.to(self.device, non_blocking=True)


def _leave_group(worker: int) -> None:
    """Ctrl-C, and torchrun's signals, go to a group of processes, and ask the run to stop.

    Its step under way still needs those that read: they end when the run does.
    """
    if hasattr(os, "setpgrp"):
        os.setpgrp()


class _Batches(Dataset[Any]):
    """A domain's batches by what is requested: what travels to worker processes.

    A batch is a collated one, or the UserError of an image in it that cannot be read: as a
    value, since an exception comes out of a worker process with its traceback as its message.
    """

    def __init__(self, domain: LoadedDomain) -> None:
        self._domain = domain

    def __getitem__(self, request: _Request) -> Any:
        indices, seeds, augment = request
        try:
            # Reading must not touch the sources of GPUs, which dropout uses.
            with global_sources_kept(gpus=False):
                return default_collate(
                    [self._read(index, seed, augment) for index, seed in zip(indices, seeds)]
                )
        except UserError as error:
            return error

    def _read(self, index: int, seed: int, augment: bool) -> tuple[torch.Tensor, Any]:
        _seed_global_sources(seed)
        return self._domain.read(index, augment)


def _seed_global_sources(seed: int) -> None:
    """Seeds all sources that transforms may draw from."""
    random.seed(seed)
    np.random.seed(seed)
    torch.default_generator.manual_seed(seed)
