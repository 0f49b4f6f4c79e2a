"""Images of grey levels that stay bytes in memory, and become numbers when they are drawn."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch.utils.data import TensorDataset

from domainbed.core.transfer import sent
from domainbed.datasets.domain import Domain, Draw, Minibatch, on_device


class ByteImages(TensorDataset):
    """The pairs of a `TensorDataset` in a quarter of the memory, or less with several channels.

    x = levels / 255 in the channels that show the image, and 0 in the others.

    Args:
        levels: (n, H, W) uint8.
        labels: (n,) int64.
        shown: (n, C) bool, which channels show the image; None for one channel that does.
    """

    def __init__(
        self, levels: torch.Tensor, labels: torch.Tensor, shown: torch.Tensor | None = None
    ) -> None:
        self.levels, self.labels, self.shown = levels, labels, shown

    @property
    def tensors(self) -> tuple[torch.Tensor, ...]:  # type: ignore[override]
        """(n, C, H, W) float32 and the labels, made anew at each call."""
        return pixels(self.levels, self.shown), self.labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, ...]:
        shown = None if self.shown is None else self.shown[[index]]
        return pixels(self.levels[[index]], shown)[0], self.labels[index]


def pixels(levels: torch.Tensor, shown: torch.Tensor | None) -> torch.Tensor:
    """(n, H, W) uint8 and (n, C) bool to (n, C, H, W) float32 in [0, 1]; arguments as above."""
    x = levels.div(255).unsqueeze(1)
    return x if shown is None else x * shown[:, :, None, None]


class ByteDomain(Domain):
    """A domain of `ByteImages`, which lie on the device; they are never augmented."""

    def __init__(self, dataset: ByteImages) -> None:
        self._dataset, self._labels = dataset, dataset.labels.cpu()

    def __len__(self) -> int:
        return len(self._labels)

    @property
    def labels(self) -> torch.Tensor:
        return self._labels

    def to(self, device: torch.device) -> ByteDomain:
        moved, here = super().to(device), self._dataset
        shown = None if here.shown is None else here.shown.to(device)
        moved._dataset = ByteImages(here.levels.to(device), here.labels.to(device), shown)
        return moved

    def batches(self, draws: Iterable[Draw], workers: int = 0) -> Iterator[Minibatch]:
        here = self._dataset
        for draw in draws:
            chosen = sent(draw.indices, self.device)
            shown = None if here.shown is None else here.shown[chosen]
            x = pixels(here.levels[chosen], shown)
            yield on_device(x, self.device), here.labels[chosen]
