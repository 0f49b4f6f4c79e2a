"""Domains that lie on the device as tensors: a minibatch is gathered, nothing more."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch

from domainbed.core.transfer import sent
from domainbed.datasets.domain import Domain, Draw, Minibatch, on_device


class TensorDomain(Domain):
    """Images that fit in memory; they are never augmented.

    Args:
        x: (n, …).
        y: (n,) labels.
    """

    def __init__(self, x: torch.Tensor, y: torch.Tensor) -> None:
        self._x, self._y, self._labels = x, y, y.cpu()

    def __len__(self) -> int:
        return len(self._labels)

    @property
    def labels(self) -> torch.Tensor:
        return self._labels

    def to(self, device: torch.device) -> TensorDomain:
        moved = super().to(device)
        moved._x, moved._y = on_device(self._x, device), self._y.to(device)
        return moved

    def batches(self, draws: Iterable[Draw], workers: int = 0) -> Iterator[Minibatch]:
        for draw in draws:
            chosen = sent(draw.indices, self.device)
            yield self._gathered(chosen), self._y[chosen]

    def _gathered(self, chosen: torch.Tensor) -> torch.Tensor:
        x = self._x[chosen]
        if x.dim() == 4:  # gathering may lose channels-last
            return x.contiguous(memory_format=torch.channels_last)
        return x
