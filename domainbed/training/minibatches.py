"""Minibatches: drawn uniformly with replacement, as a pure function of seed, domain and step.

Nothing is remembered between steps, so a run that was interrupted draws on as if it had not
been, and the number of worker processes changes nothing.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, TensorDataset, default_collate

from domainbed.errors import UserError
from domainbed.images.packed import PackedDomain
from domainbed.seeding import augmentation_seed, batch_augmentation_seed, minibatch_seed
from domainbed.training.packed_batches import Part, read_packed

Minibatch = tuple[torch.Tensor, torch.Tensor]
Request = tuple[int, int, int, int]  # domain, index, step, position

# Indices are drawn for many steps at once: one seeding and one transfer serve them all.
_BLOCK = 64


class IndexDraws:
    """Which images of one domain each step sees.

    Args:
        indices: the domain's split, as positions in the domain.
        batch_size: B.
        seed: the run's seed.
        domain: the domain's number.
        labels: (len(indices),) labels; if given, all classes are drawn equally often.
        device: where the draws are wanted.
    """

    def __init__(
        self,
        indices: Sequence[int],
        batch_size: int,
        seed: int,
        domain: int,
        labels: torch.Tensor | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        self._indices = torch.tensor(indices)
        self._batch_size = batch_size
        self._seed, self.domain = seed, domain
        self._weights = None if labels is None else 1 / labels.bincount()[labels].double()
        self._device = device
        self._block_number, self._block = -1, torch.empty(0)

    def at(self, step: int) -> torch.Tensor:
        """(B,) positions in the domain."""
        number, position = divmod(step, _BLOCK)
        if number != self._block_number:
            self._block_number, self._block = number, self._draw(number).to(self._device)
        return self._block[position]

    def _draw(self, number: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(minibatch_seed(self._seed, self.domain, number))
        shape = (_BLOCK, self._batch_size)
        if self._weights is None:
            chosen = torch.randint(len(self._indices), shape, generator=generator)
        else:
            chosen = self._weights.multinomial(
                _BLOCK * self._batch_size, replacement=True, generator=generator
            ).view(shape)
        return self._indices[chosen]


class TensorMinibatches:
    """Minibatches of domains that lie on the device as tensors: gathered, nothing more."""

    def __init__(self, domains: Sequence[Minibatch], draws: Sequence[IndexDraws]) -> None:
        self._domains, self._draws = domains, draws

    def iterate(self, steps: range) -> Iterator[list[Minibatch]]:
        """One list of (x, y) per step, with one pair per domain."""
        for step in steps:
            chosen = [draws.at(step) for draws in self._draws]
            yield [(keep_layout(x[i], x), y[i]) for (x, y), i in zip(self._domains, chosen)]


class LoadedMinibatches:
    """Minibatches of domains that are read image by image, by one pool of workers for all.

    Args:
        domains: all domains of the dataset; where one has `augmented(index)`, that is what is
            read.
        draws: one for each domain that is wanted.
        seed: the run's seed.
        device: where the minibatches go.
        num_workers: worker processes in all; 0 reads in this process.
        augment: whether to use `augmented`.
    """

    def __init__(
        self,
        domains: Sequence[Dataset[Any]],
        draws: Sequence[IndexDraws],
        seed: int,
        device: torch.device,
        num_workers: int,
        augment: bool,
    ) -> None:
        self._images = SeededImages(domains, seed, [augment] * len(domains))
        self._draws, self._device, self._num_workers = draws, device, num_workers

    def iterate(self, steps: range) -> Iterator[list[Minibatch]]:
        """One list of (x, y) per step, with one pair per domain.

        Raises:
            UserError: an image cannot be read.
        """
        requests = (self._requests(draws, step) for step in steps for draws in self._draws)
        batches = image_loader(self._images, requests, self._num_workers, self._device)
        for pairs in zip(*[batches] * len(self._draws)):
            yield [deliver(pair, self._device) for pair in pairs]

    def _requests(self, draws: IndexDraws, step: int) -> list[Request]:
        chosen = draws.at(step).tolist()
        return [(draws.domain, index, step, position) for position, index in enumerate(chosen)]


class SeededImages(Dataset[Any]):
    """Batches of a dataset's images, each image by (domain, index, step, position).

    What is random about an image (its augmentation, above all) depends on those four and the
    run's seed, not on who reads it: the global sources are seeded for each image.

    A batch is a collated one, or the UserError of an image in it that cannot be read: as a
    value, since an exception comes out of a worker process with its traceback as its message.
    """

    def __init__(self, domains: Sequence[Dataset[Any]], seed: int, augment: Sequence[bool]) -> None:
        self._domains, self._seed, self._augment = domains, seed, augment

    def __getitem__(self, requests: Sequence[Request]) -> Any:
        try:
            with _global_sources_kept():
                return default_collate([self._read(*request) for request in requests])
        except UserError as error:
            return error

    def _read(self, number: int, index: int, step: int, position: int) -> Any:
        domain = self._domains[number]
        _seed_global_sources(augmentation_seed(self._seed, number, step, position))
        if self._augment[number] and hasattr(domain, "augmented"):
            return domain.augmented(index)
        return domain[index]


@contextmanager
def _global_sources_kept() -> Iterator[None]:
    """Gives the global sources back as they were found.

    Of PyTorch's the CPU's alone: reading images must not touch the GPU's, which dropout uses.
    """
    python, array = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(array)


def _seed_global_sources(seed: int) -> None:
    """Seeds all sources that transforms may draw from."""
    random.seed(seed)
    np.random.seed(seed)
    torch.default_generator.manual_seed(seed)


def image_loader(
    images: SeededImages,
    batches: Iterator[list[Request]],
    num_workers: int,
    device: torch.device,
) -> Iterator[Any]:
    """Reads the given batches of requests, in their order.

    Raises:
        UserError: an image cannot be read.
    """
    loader: DataLoader[Any] = DataLoader(
        images,
        batch_size=None,
        sampler=batches,
        num_workers=num_workers,
        generator=torch.Generator(),  # else each pass would draw from the run's own source
        pin_memory=device.type == "cuda",
        prefetch_factor=2 if num_workers else None,
    )
    for batch in loader:
        if isinstance(batch, UserError):
            raise batch
        yield batch


class PackedMinibatches:
    """Minibatches of packed images; the arguments are those of `LoadedMinibatches`.

    Threads of this process take the place of worker processes.
    """

    def __init__(
        self,
        domains: Sequence[PackedDomain],
        draws: Sequence[IndexDraws],
        seed: int,
        device: torch.device,
        num_workers: int,
        augment: bool,
    ) -> None:
        self._domains, self._draws, self._seed = domains, draws, seed
        self._device, self._num_workers, self._augment = device, num_workers, augment

    def iterate(self, steps: range) -> Iterator[list[Minibatch]]:
        """One list of (x, y) per step, with one pair per domain."""
        batches = ([self._part(draws, step) for draws in self._draws] for step in steps)
        return read_packed(batches, self._device, self._num_workers)

    def _part(self, draws: IndexDraws, step: int) -> Part:
        number = draws.domain
        seed = batch_augmentation_seed(self._seed, number, step, "training")
        chosen = draws.at(step).tolist()
        return Part(self._domains[number], chosen, seed if self._augment else None)


def tensor_domain(domain: Dataset[Any], device: torch.device) -> Minibatch | None:
    """A `TensorDataset` of inputs and labels on the device, or None for any other domain."""
    if not isinstance(domain, TensorDataset):
        return None
    x, y = domain.tensors
    return to_device(x, device), y.to(device)


def to_device(x: torch.Tensor, device: torch.device) -> torch.Tensor:
    """To the device; images channels-last, which convolutions prefer."""
    if x.dim() == 4:
        return x.to(device, non_blocking=True, memory_format=torch.channels_last)
    return x.to(device, non_blocking=True)


def deliver(minibatch: Minibatch, device: torch.device) -> Minibatch:
    """What was read, on the device. A CPU's first convolution arranges images as it likes them."""
    x, y = minibatch
    if device.type == "cpu":
        return x, y
    return to_device(x, device), y.to(device, non_blocking=True)


def keep_layout(gathered: torch.Tensor, source: torch.Tensor) -> torch.Tensor:
    """`gathered` in the memory layout of `source`: gathering may lose channels-last."""
    if source.dim() == 4:
        return gathered.contiguous(memory_format=torch.channels_last)
    return gathered


def labels_of(domain: Dataset[Any], indices: Sequence[int]) -> torch.Tensor:
    """(len(indices),) labels, without reading images where the domain lists its targets."""
    if isinstance(domain, TensorDataset):
        return domain.tensors[1][torch.tensor(indices)]
    targets = getattr(domain, "targets", None)
    if targets is None:
        return torch.tensor([int(domain[i][1]) for i in indices])
    return torch.tensor([int(targets[i]) for i in indices])
