"""Domains: what training, evaluation and diagnostics need of them, and two ways to store them.

Inputs lie on the device as tensors, or are read one at a time by worker processes.
"""

import copy
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import tee
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch.utils.data import DataLoader, Dataset, default_collate

from domainbed.core.device import sent
from domainbed.core.minibatch import Join, Minibatch, Nest, mapped, taken, tensors_of
from domainbed.core.seeding import global_sources_kept, seed_everything, seed_hash
from domainbed.errors import UserError, one_line

# x (B, …), or a nest of inputs, and labels y (B,); and extras where there are any.
Batch = Sequence[Any]

# Images per forward pass without training, however the images are stored.
EVALUATION_BATCH = 64

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
        domain: the domain's number, where it is known.
        step: of training.
        use: "training", or what is evaluated, and from which position on: "out 64".
        augment: whether to augment the images, where the domain can.
    """

    indices: torch.Tensor
    seed: int = 0
    domain: int | None = None
    step: int = 0
    use: str = TRAINING
    augment: bool = False

    def image_seeds(self) -> list[int]:
        """A seed for each image: by its place in the minibatch, or in the domain if evaluated."""
        places = range(len(self.indices)) if self.use == TRAINING else self.indices.tolist()
        seed = (self.seed, "augmentation", self.domain or 0, self.step)
        return [seed_hash(*seed, place) for place in places]

    def batch_seed(self) -> int:
        """The seed of what is drawn for all images at once."""
        return seed_hash(self.seed, "augmentation", self.domain or 0, self.step, self.use)


def evaluation_draws(
    indices: Sequence[int],
    batch_size: int = EVALUATION_BATCH,
    *,
    split: str = "",
    seed: int = 0,
    domain: int | None = None,
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
        groups: by position what a split never cuts, such as the patient; None where it may cut
            anything.
        noted: what the dataset notes of its samples, by name a tensor (n, …) or a list of n
            values: minibatches have it in their extras.
        files: of the images, by position; empty where they are not files.
        contents: (n, 16) uint8 digests of the files, zeros where one cannot be read; empty before
            they are read.
        labels_at_hand: whether `labels` is known without reading all images.
        join: how inputs of several domains are joined; None for zeros where lengths differ.
    """

    device: torch.device = torch.device("cpu")
    unreadable: Sequence[int] = ()
    out_split: Sequence[int] | None = None
    groups: Sequence[str] | None = None
    noted: Mapping[str, Any] = {}
    files: Sequence[Path] = ()
    contents: Any = ()
    labels_at_hand: bool = True
    join: Join | None = None

    @abstractmethod
    def __len__(self) -> int:
        """The number of images n, unreadable ones included."""

    @property
    @abstractmethod
    def labels(self) -> torch.Tensor:
        """(n, …) as the label type says, on the CPU; of classes (n,) int64."""

    @abstractmethod
    def batches(self, draws: Iterable[Draw], workers: int = 0) -> Iterator[Batch]:
        """(x, y) or (x, y, extras) of each draw, in their order, on the device.

        Args:
            draws: taken when needed, or a little ahead.
            workers: threads or processes that read images ahead; 0 reads here. Their number
                changes no image.

        Raises:
            UserError: an image cannot be read.
        """

    def minibatches(self, draws: Iterable[Draw], workers: int = 0) -> Iterator[Minibatch]:
        """As `batches`, with what is noted, the positions in the domain and its number."""
        drawn, asked = tee(draws)
        for (x, y, *extras), draw in zip(self.batches(asked, workers), drawn):
            if self.noted:
                extras = [dict(*extras) | values_at(draw.indices, self.noted, self.device)]
            yield Minibatch(x, y, *extras, index=draw.indices, domain=draw.domain, join=self.join)

    def to(self: AnyDomain, device: torch.device) -> AnyDomain:
        """The same images, delivered on `device`."""
        moved = copy.copy(self)
        moved.device, moved.noted = device, on_device(self.noted, device)
        return moved

    def evaluation_batches(
        self, indices: Sequence[int], batch_size: int = EVALUATION_BATCH, workers: int = 0
    ) -> Iterator[Minibatch]:
        """The images at `indices` in that order, not augmented, at most `batch_size` at a time."""
        return self.minibatches(evaluation_draws(indices, batch_size), workers)

    def first_sample(self) -> Minibatch | None:
        """The first one that can be read, as a batch of one; None if there is none."""
        readable = set(range(len(self))).difference(self.unreadable)
        return next(self.evaluation_batches([min(readable)])) if readable else None


def values_at(
    indices: torch.Tensor, values: Mapping[str, Any], device: torch.device
) -> dict[str, Any]:
    """Of each of `values`, a tensor on the device or a list, those at `indices` (B,) on the CPU."""
    chosen = sent(indices, device)
    return {
        name: each[chosen]
        if isinstance(each, torch.Tensor)
        else [each[index] for index in indices.tolist()]
        for name, each in values.items()
    }


def on_device(x: Nest, device: torch.device) -> Nest:
    """Moves x to the device; images become channels-last, which convolutions prefer."""

    def moved(tensor: torch.Tensor) -> torch.Tensor:
        layout = torch.channels_last if tensor.dim() == 4 else torch.preserve_format
        return tensor.to(device, non_blocking=True, memory_format=layout)

    return mapped(moved, x)


class TensorDomain(Domain):
    """Inputs that fit in memory, on the device; they are never augmented.

    Args:
        x: (n, …), or a nest of such tensors.
        y: (n,) labels.
        extras: by name a tensor (n, …), or a list of n values.

    Raises:
        UserError: an input or an extra has another number of samples.
    """

    def __init__(
        self, x: Nest, y: torch.Tensor, extras: Mapping[str, torch.Tensor | Sequence[Any]] = {}
    ) -> None:
        self.x, self.y, self.extras, self._labels = x, y, extras, y.cpu()
        for values in (*tensors_of(x), *extras.values()):
            if len(values) != len(y):
                raise UserError(
                    f"there are {len(y)} labels, and {len(values)} samples of an input or an "
                    "extra: give one of each per sample",
                    "dataset",
                )

    def __len__(self) -> int:
        return len(self._labels)

    @property
    def labels(self) -> torch.Tensor:
        return self._labels

    def to(self: AnyTensorDomain, device: torch.device) -> AnyTensorDomain:
        moved = super().to(device)
        moved.x, moved.y = on_device(self.x, device), self.y.to(device)
        moved.extras = on_device(self.extras, device)
        return moved

    def batches(self, draws: Iterable[Draw], workers: int = 0) -> Iterator[Batch]:
        for draw in draws:
            chosen = sent(draw.indices, self.device)
            # Gathering may lose channels-last.
            pair = on_device(self.inputs(draw, chosen), self.device), self.y[chosen]
            extras = values_at(draw.indices, self.extras, self.device)
            yield (*pair, extras) if extras else pair

    def inputs(self, draw: Draw, chosen: torch.Tensor) -> Nest:
        """x of the images at `chosen`, which are the draw's indices on the device."""
        return taken(self.x, chosen)


class LoadedDomain(Domain):
    """Images that `read` reads one at a time.

    What is random about an image, such as its augmentation, does not depend on the process that
    reads it: the global sources of Python, NumPy and PyTorch are seeded for each image.

    Attributes:
        collate: from a list of samples as `read` returns them to a batch, as a `DataLoader` takes
            it; None for PyTorch's own, which stacks tensors of one shape.
        own_rows: the rows of a batch of n that this process reads, at least one, where several
            processes need the same batches; None where this one reads alone.
        all_rows: all n rows, given this process's own; called by all processes in the same order.
    """

    collate: Callable[[list[Any]], Batch] | None = None
    own_rows: Callable[[int], slice] | None = None
    all_rows: Callable[[torch.Tensor, int], torch.Tensor] | None = None

    @abstractmethod
    def read(self, index: int, augment: bool) -> tuple[Any, ...]:
        """One input, its label and any extras; it may draw from the global sources."""

    def batches(self, draws: Iterable[Draw], workers: int = 0) -> Iterator[Batch]:
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
            # On a CPU the first convolution chooses the memory format.
            yield tuple(batch if self.device.type == "cpu" else on_device(batch, self.device))

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

    A batch is a collated one, or the UserError of a sample that cannot be read, or of samples
    that make no batch: as a value, since an exception from a worker process has its traceback in
    its message.
    """

    def __init__(self, domain: LoadedDomain) -> None:
        self._domain = domain

    def __getitem__(self, request: _Request) -> Any:
        indices, seeds, augment = request
        samples = []
        try:
            # Reading must not touch the sources of GPUs, which dropout uses.
            with global_sources_kept(gpus=False):
                for index, seed in zip(indices, seeds):
                    seed_everything(seed, gpus=False)
                    samples.append(self._domain.read(index, augment))
                return self._collated(samples, indices)
        except UserError as error:
            return error

    def _collated(self, samples: list[Any], indices: list[int]) -> Batch:
        if self._domain.collate is not None:
            return self._domain.collate(samples)
        try:
            return default_collate(samples)
        except (TypeError, KeyError, RuntimeError) as error:
            shapes = {str([each.shape for each in tensors_of(sample)]) for sample in samples}
            if isinstance(error, RuntimeError) and len(shapes) == 1:  # no memory, say
                raise
            raise UserError(
                f"samples {indices[:3]} make no batch ({one_line(error)}): give the dataset a "
                "'collate', or return tensors of one shape with their labels",
                "dataset",
            ) from error
