"""Domains whose images are packed in one file: threads read ahead, the device augments."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path

import torch
from torch.utils.data import Dataset

from domainbed.datasets.domain import Domain, Draw, Minibatch
from domainbed.datasets.images.augmentation import (
    Augmentation,
    augment,
    augment_each,
    preprocess,
    preprocess_each,
)
from domainbed.datasets.images.packed import Pack
from domainbed.datasets.images.threads import in_order
from domainbed.datasets.images.transforms import Crop

_Gathered = tuple[torch.Tensor, torch.Tensor, "Augmentation | None"]


class PackedDomain(Domain, Dataset[tuple[torch.Tensor, int]]):
    """The images of one domain, in a pack; also a PyTorch dataset of them, not augmented.

    Attributes:
        pack: where they are.
        targets: their labels.
        shape: height and width as they are stored.
        crop: what the training augmentation cuts a part out of.
        files: that were packed.
    """

    def __init__(
        self,
        pack: Pack,
        start: int,
        targets: Sequence[int],
        crop: Crop = "image",
        files: Sequence[Path] = (),
    ) -> None:
        self.files = files
        self.pack, self._start, self.targets, self.crop = pack, start, list(targets), crop
        self.shape = pack.shape
        own = range(start, start + len(self.targets))
        self.unreadable = [number - start for number in pack.unreadable if number in own]

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        """As a network takes it for evaluation: (3, 224, 224), normalised; and its label."""
        return preprocess_each(self.images([index]))[0], self.targets[index]

    @cached_property
    def labels(self) -> torch.Tensor:
        return torch.tensor(self.targets)

    def images(self, indices: Sequence[int]) -> list[torch.Tensor]:
        """Each (H, W, 3) uint8, as it is stored."""
        return [self.pack.image(self._start + index) for index in indices]

    def sizes(self, indices: Sequence[int]) -> torch.Tensor:
        """(len(indices), 2) heights and widths of the original images."""
        return self.pack.sizes[self._start + torch.tensor(indices)]

    def batches(self, draws: Iterable[Draw], workers: int = 0) -> Iterator[Minibatch]:
        """See `Domain`. x is (B, 3, 224, 224); threads augment where the device is the CPU."""
        if self.device.type == "cpu":
            yield from in_order(self._read, draws, workers)
            return
        for gathered in in_order(self._gather, draws, workers):
            yield self._finished(*gathered)

    def _augmentation(self, draw: Draw) -> Augmentation | None:
        """Drawn for all of the images at once."""
        if not draw.augment:
            return None
        generator = torch.Generator().manual_seed(draw.batch_seed())
        sizes = self.sizes(draw.indices.tolist())
        return Augmentation.draw(sizes, self.shape, generator, self.crop)

    def _read(self, draw: Draw) -> Minibatch:
        images, drawn = self.images(draw.indices.tolist()), self._augmentation(draw)
        x = preprocess_each(images) if drawn is None else augment_each(images, drawn)
        return x, self.labels[draw.indices]

    def _gather(self, draw: Draw) -> _Gathered:
        """Images and labels in memory that goes to the device without waiting."""
        images, y = torch.stack(self.images(draw.indices.tolist())), self.labels[draw.indices]
        if self.device.type == "cuda":
            images, y = images.pin_memory(), y.pin_memory()
        return images, y, self._augmentation(draw)

    def _finished(
        self, images: torch.Tensor, y: torch.Tensor, drawn: Augmentation | None
    ) -> Minibatch:
        images = images.to(self.device, non_blocking=True)
        x = preprocess(images) if drawn is None else augment(images, drawn)
        return x, y.to(self.device, non_blocking=True)
