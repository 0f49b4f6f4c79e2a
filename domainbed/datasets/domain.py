"""The contract of a domain: what training, evaluation and diagnostics need of its images."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch

from domainbed.core.seeding import augmentation_seed, batch_augmentation_seed
from domainbed.core.transfer import sent

Minibatch = tuple[torch.Tensor, torch.Tensor]
"""x (B, …) and the labels y (B,)."""

EVALUATION_BATCH = 64
"""Images per forward pass without training, however the images are stored."""

TRAINING = "training"

AnyDomain = TypeVar("AnyDomain", bound="Domain")
AnyTensorDomain = TypeVar("AnyTensorDomain", bound="TensorDomain")


@dataclass(frozen=True, eq=False)
class Draw:
    """Which images of a domain one batch holds, and what decides all that is random about them.

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
        return [augmentation_seed(self.seed, self.domain, self.step, place) for place in places]

    def batch_seed(self) -> int:
        """The seed of what is drawn for all images at once."""
        return batch_augmentation_seed(self.seed, self.domain, self.step, self.use)


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
    """Draws that together hold the images at `indices` once, in that order."""
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
            workers: threads or processes that read ahead, where images are read; 0 reads here.
                Their number changes no image.

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
    """To the device; images channels-last, which convolutions prefer."""
    if x.dim() == 4:
        return x.to(device, non_blocking=True, memory_format=torch.channels_last)
    return x.to(device, non_blocking=True)


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
