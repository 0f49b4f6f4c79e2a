"""Batches of packed images, augmented where the algorithm is."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from domainbed.images.augmentation import (
    Augmentation,
    augment,
    augment_each,
    preprocess,
    preprocess_each,
)
from domainbed.images.packed import PackedDomain
from domainbed.images.threads import in_order

Pairs = list[tuple[torch.Tensor, torch.Tensor]]


@dataclass(frozen=True)
class Part:
    """Some images of one domain.

    Attributes:
        domain: in which they are.
        indices: their positions there.
        seed: of their augmentation; None leaves them as they are.
    """

    domain: PackedDomain
    indices: list[int]
    seed: int | None

    def images(self) -> list[torch.Tensor]:
        """Each (H, W, 3) uint8, as it is stored."""
        return self.domain.images(self.indices)

    def labels(self) -> torch.Tensor:
        return torch.tensor([self.domain.targets[i] for i in self.indices])

    def augmentation(self, seed: int) -> Augmentation:
        """Drawn for all of the images at once."""
        generator = torch.Generator().manual_seed(seed)
        return Augmentation.draw(self.domain.sizes(self.indices), self.domain.shape, generator)


def read_packed(
    batches: Iterable[Sequence[Part]], device: torch.device, threads: int
) -> Iterator[Pairs]:
    """An (x, y) pair per part, for each batch in turn: x (B, 3, 224, 224), y (B,), on the device.

    Threads read ahead. They also augment where the device is the CPU; elsewhere the device does
    that, for all parts of a batch at once.
    """
    if device.type == "cpu":
        yield from in_order(_read_here, batches, threads)
        return
    for gathered in in_order(partial(_Gathered, device), batches, threads):
        yield gathered.finished()


def _read_here(parts: Sequence[Part]) -> Pairs:
    return [(_pixels(part), part.labels()) for part in parts]


def _pixels(part: Part) -> torch.Tensor:
    if part.seed is None:
        return preprocess_each(part.images())
    return augment_each(part.images(), part.augmentation(part.seed))


class _Gathered:
    """The images of a batch as one tensor, ready to go to the device."""

    def __init__(self, device: torch.device, parts: Sequence[Part]) -> None:
        self._device, self._sizes = device, [len(part.indices) for part in parts]
        images = torch.stack([image for part in parts for image in part.images()])
        labels = torch.cat([part.labels() for part in parts])
        pinned = device.type == "cuda"
        self._images = images.pin_memory() if pinned else images
        self._labels = labels.pin_memory() if pinned else labels
        drawn = [part.augmentation(part.seed) for part in parts if part.seed is not None]
        self._augmentation = Augmentation.join(drawn) if drawn else None

    def finished(self) -> Pairs:
        images = self._images.to(self._device, non_blocking=True)
        y = self._labels.to(self._device, non_blocking=True)
        x = augment(images, self._augmentation) if self._augmentation else preprocess(images)
        return list(zip(x.split(self._sizes), y.split(self._sizes)))
