"""Colored MNIST as Arjovsky et al. (2019, section 5.1) made it: two training domains, one test.

An image shows its digit in one of two channels, and the other is zero. So it is kept as one grey
image and a colour, and the images of a domain are sorted by colour: a network's first layer then
multiplies grey images by half of its weights, where it would multiply zeros by the other half.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch

from domainbed.core.seeding import seed_hash
from domainbed.errors import UserError

COLOR_FLIPS = (0.2, 0.1, 0.9)
"""How often the colour differs from the label: in the two training domains and the test domain."""

_MNIST_TRAINING_IMAGES = 60_000
_BLOCK = 1024  # images; the activations of so many stay in a core's cache


@dataclass(frozen=True)
class Domain:
    """The images of a domain, those of colour 0 first.

    Attributes:
        images: (n, P) pixels of the grey images, in [0, 1].
        labels: (n, 1), 0 or 1, in the type of the images.
        color_sizes: how many images are of colour 0 and of colour 1; they sum to n.
    """

    images: torch.Tensor
    labels: torch.Tensor
    color_sizes: tuple[int, int]

    def blocks(self) -> list[tuple[int, torch.Tensor]]:
        """Colours and the grey images of that colour, (≤ 1024, P) each, in the domain's order."""
        of_colors = self.images.split(list(self.color_sizes))
        return [(c, block) for c, images in enumerate(of_colors) for block in images.split(_BLOCK)]

    def colored(self) -> torch.Tensor:
        """(n, 2P): the pixels of both channels, of which the channel 1 − colour is zero."""
        n, pixels = self.images.shape
        first = self.color_sizes[0]
        colored = self.images.new_zeros(n, 2 * pixels)
        colored[:first, :pixels] = self.images[:first]
        colored[first:, pixels:] = self.images[first:]
        return colored

    def gray(self) -> torch.Tensor:
        """(n, 2P): the same image in both channels."""
        return self.images.repeat(1, 2)

    def to(self, target: torch.device | torch.dtype | str) -> Domain:
        """The same domain on another device, or in another type."""
        return Domain(self.images.to(target), self.labels.to(target), self.color_sizes)


@cache  # a worker process reads the files once for all its restarts
def read_images(data_dir: str) -> tuple[torch.Tensor, torch.Tensor]:
    """MNIST's training images, every second pixel: (60000, 14, 14) uint8, and (60000,) digits.

    Raises:
        UserError: the files are not there and cannot be downloaded.
    """
    from domainbed.datasets import DATASETS

    images, digits = DATASETS["ColoredMNIST"].read(data_dir)
    images, digits = images[:_MNIST_TRAINING_IMAGES], digits[:_MNIST_TRAINING_IMAGES]
    return images[:, ::2, ::2].contiguous(), digits


def data_seed(restart: int) -> int:
    """The seed of a restart's shuffle, label noise and colours, whatever the algorithm."""
    return seed_hash("IRM Colored MNIST", "data", restart)


def make_domains(
    images: torch.Tensor, digits: torch.Tensor, restart: int, label_flip: float = 0.25
) -> list[Domain]:
    """Two training domains and the test domain.

    The last sixth of the images (10,000 of MNIST's 60,000) is the test domain; the others are
    shuffled and alternate between the two training domains. y = 1 if digit < 5, flipped with
    probability `label_flip`; colour = y, flipped with the domain's probability.

    Args:
        images: (N, H, W) uint8.
        digits: (N,).
        restart: decides the random draws.
        label_flip: 0.25 in table 2 of Ramé et al. 2022, 0 in their table 5.

    Raises:
        UserError: fewer than six images, which do not fill three domains.
    """
    if len(images) < 6:
        raise UserError(f"{len(images)} images: expected at least 6, for three domains")
    generator = torch.Generator().manual_seed(data_seed(restart))
    training = len(images) - len(images) // 6
    order = torch.randperm(training, generator=generator)
    members = (order[::2], order[1::2], torch.arange(training, len(images)))
    return [
        _color(images[indices], digits[indices], label_flip, color_flip, generator)
        for indices, color_flip in zip(members, COLOR_FLIPS, strict=True)
    ]


def _color(
    images: torch.Tensor,
    digits: torch.Tensor,
    label_flip: float,
    color_flip: float,
    generator: torch.Generator,
) -> Domain:
    def flip(bits: torch.Tensor, probability: float) -> torch.Tensor:
        return bits ^ (torch.rand(len(bits), generator=generator) < probability)

    labels = flip(digits < 5, label_flip)
    colors = flip(labels, color_flip)
    order = colors.int().argsort(stable=True)
    ones = int(colors.sum())
    return Domain(
        images[order].flatten(1).div(255),
        labels[order].float().unsqueeze(1),
        (len(colors) - ones, ones),
    )
