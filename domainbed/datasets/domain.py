"""Domains: what training, evaluation and diagnostics need of them, and two ways to store them.

Inputs lie on the device as tensors, or are read one at a time by worker processes.
"""

from __future__ import annotations

import copy
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import tee
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch.utils.data import DataLoader, Dataset, default_collate

from domainbed.core.device import sent
from domainbed.core.seeding import global_sources_kept, seed_everything, seed_hash
from domainbed.errors import UserError

Minibatch = tuple[torch.Tensor, torch.Tensor]
"""x (B, …) and the labels y (B,)."""

EVALUATION_BATCH = 64
"""Images per forward pass without training, however the images are stored."""

TRAINING = "training"

_Request = tuple[list[int], list[int], bool]  # indices, a seed for each, whether to augment

AnyDomain = TypeVar("AnyDomain", bound="Domain")
AnyTensorDomain = TypeVar("AnyTensorDomain", bound="TensorDomain")


@dataclass(frozen=True, eq=False)
class Draw:
    """Which images of a domain one batch holds, and the seeds of all that is random about them.

    Attributes:
        indices: (B,) positions in the domain, on the CPU.
        seed: the run's.
        domain: the domain's number.
        step: of training.
        use: "training", or what is evaluated, and from which position on: "out 64".
        augment: whether to augment the images, where the domain can.
    """

    indices: torch.Tensor
    seed: int = 0
    domain: int = 0
    step: int = 0
    use: str = TRAINING
    augment: bool = False

    def image_seeds(self) -> list[int]:
        """A seed for each image: by its place in the minibatch, or in the domain if evaluated."""
        places = range(len(self.indices)) if self.use == TRAINING else self.indices.tolist()
        seed = (self.seed, "augmentation", self.domain, self.step)
        return [seed_hash(*seed, place) for place in places]

    def batch_seed(self) -> int:
        """The seed of what is drawn for all images at once."""
        return seed_hash(self.seed, "augmentation", self.domain, self.step, self.use)


def evaluation_draws(
    indices: Sequence[int],
    batch_size: int = EVALUATION_BATCH,
    *,
    split: str = "",
    seed: int = 0,
    domain: int = 0,
    step: int = 0,
    augment: bool = False,
) -> Iterator[Draw]:
    """Draws that together hold each image at `indices` once, in that order."""
    for number, chosen in enumerate(torch.tensor(indices, dtype=torch.long).split(batch_size)):
        use = f"{split} {number * batch_size}"
        yield Draw(chosen, seed, domain, step, use, augment)


class Domain(ABC):
    """The images of one domain, however they are stored.

    Attributes:
        device: where batches are delivered.
        unreadable: positions of the images to leave out, because they cannot be read.
        out_split: positions of the images that validate, where the dataset decides that; None
            where the trial does.
        files: of the images, by position; empty where they are not files.
        labels_at_hand: whether `labels` is known without reading all images.
    """

    device: torch.device = torch.device("cpu")
    unreadable: Sequence[int] = ()
    out_split: Sequence[int] | None = None
    files: Sequence[Path] = ()
    labels_at_hand: bool = True

    @abstractmethod
    def __len__(self) -> int:
        """The number of images n, unreadable ones included."""

    @property
    @abstractmethod
    def labels(self) -> torch.Tensor:
        """(n,) int64, on the CPU."""

    @abstractmethod
    def batches(self, draws: Iterable[Draw], workers: int = 0) -> Iterator[Minibatch]:
        """The images and labels of each draw, in their order, on the device.

        Args:
            draws: taken when needed, or a little ahead.
            workers: threads or processes that read images ahead; 0 reads here. Their number
                changes no image.

        Raises:
            UserError: an image cannot be read.
        """

    def to(self: AnyDomain, device: torch.device) -> AnyDomain:
        """The same images, delivered on `device`."""
        moved = copy.copy(self)
        moved.device = device
        return moved

    def with_out_split(self: AnyDomain, positions: Sequence[int] | None) -> AnyDomain:
        """The same images, of which those at `positions` validate."""
        fixed = copy.copy(self)
        fixed.out_split = positions
        return fixed

    def evaluation_batches(
        self, indices: Sequence[int], batch_size: int = EVALUATION_BATCH, workers: int = 0
    ) -> Iterator[Minibatch]:
        """The images at `indices` in that order, not augmented, at most `batch_size` at a time."""
        return self.batches(evaluation_draws(indices, batch_size), workers)


def on_device(x: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Moves x to the device; images become channels-last, which convolutions prefer."""
    layout = torch.channels_last if x.dim() == 4 else torch.preserve_format
    return x.to(device, non_blocking=True, memory_format=layout)


class TensorDomain(Domain):
    """Inputs that fit in memory, on the device; they are never augmented.

    Args:
        x: (n, …).
        y: (n,) labels.
    """

    def __init__(self, x: torch.Tensor, y: torch.Tensor) -> None:
        self.x, self.y, self._labels = x, y, y.cpu()

    def __len__(self) -> int:
        return len(self._labels)

    @property
    def labels(self) -> torch.Tensor:
        return self._labels

    def to(self: AnyTensorDomain, device: torch.device) -> AnyTensorDomain:
        moved = super().to(device)
        moved.x, moved.y = on_device(self.x, device), self.y.to(device)
        return moved

    def batches(self, draws: Iterable[Draw], workers: int = 0) -> Iterator[Minibatch]:
        for draw in draws:
            chosen = sent(draw.indices, self.device)
            # Gathering may lose channels-last.
            yield on_device(self.inputs(draw, chosen), self.device), self.y[chosen]

    def inputs(self, draw: Draw, chosen: torch.Tensor) -> torch.Tensor:
        """x of the images at `chosen`, which are the draw's indices on the device."""
        return self.x[chosen]


class LoadedDomain(Domain):
    """Images that `read` reads one at a time.

    What is random about an image, such as its augmentation, does not depend on the process that
    reads it: the global sources of Python, NumPy and PyTorch are seeded for each image.

    Attributes:
        own_rows: the rows of a batch of n that this process reads, at least one, where several
            processes need the same batches; None where this one reads alone.
        all_rows: all n rows, given this process's own; called by all processes in the same order.
    """

    own_rows: Callable[[int], slice] | None = None
    all_rows: Callable[[torch.Tensor, int], torch.Tensor] | None = None

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
            if self.all_rows is not None:
                own = [each.to(self.device, non_blocking=True) for each in batch]
                batch = [self.all_rows(each, len(draw.indices)) for each in own]
            x, y = batch
            if self.device.type == "cpu":  # its first convolution chooses the memory format
                yield x, y
            else:
                yield on_device(x, self.device), y.to(self.device, non_blocking=True)

    def _request(self, draw: Draw) -> _Request:
        rows = self.own_rows(len(draw.indices)) if self.own_rows else slice(None)
        return draw.indices.tolist()[rows], draw.image_seeds()[rows], draw.augment


def _leave_group(worker: int) -> None:
    """Leaves the group of processes to which Ctrl-C and torchrun send their signals.

    The signals ask the run to stop, which still needs its readers to finish a step.
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
