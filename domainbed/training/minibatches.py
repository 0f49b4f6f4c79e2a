"""Minibatches: drawn uniformly, as a pure function of seed, domain and step.

Nothing is remembered between steps, so a run that was interrupted draws on as if it had not
been, and the number of worker processes changes nothing.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence

import torch

from domainbed.core.seeding import minibatch_seed
from domainbed.datasets.domain import Domain, Draw, Minibatch

# Indices are drawn for many steps at once: one seeding serves them all.
_BLOCK = 64


class IndexDraws:
    """Which images of one domain each step sees, drawn with replacement.

    Args:
        indices: the domain's split, as positions in the domain.
        batch_size: B.
        seed: the run's seed.
        domain: the domain's number.
        labels: (len(indices),) labels; if given, all classes are drawn equally often.
    """

    def __init__(
        self,
        indices: Sequence[int],
        batch_size: int,
        seed: int,
        domain: int,
        labels: torch.Tensor | None = None,
    ) -> None:
        self._indices = torch.tensor(indices)
        self._batch_size = batch_size
        self._seed, self.domain = seed, domain
        self._weights = None if labels is None else 1 / labels.bincount()[labels].double()
        self._steps = _BLOCK
        self._block_number, self._block = -1, torch.empty(0)

    def at(self, step: int) -> torch.Tensor:
        """(B,) positions in the domain."""
        number, position = divmod(step, self._steps)
        if number != self._block_number:
            self._block_number, self._block = number, self._draw(number)
        return self._block[position]

    def over(self, steps: range, augment: bool) -> Iterator[Draw]:
        """One draw per step."""
        for step in steps:
            yield Draw(self.at(step), self._seed, self.domain, step, augment=augment)

    def _draw(self, number: int) -> torch.Tensor:
        """(steps, B) positions in the domain: those of the steps that one seeding serves."""
        generator = torch.Generator().manual_seed(minibatch_seed(self._seed, self.domain, number))
        return self._indices[self._chosen(generator)]

    def _chosen(self, generator: torch.Generator) -> torch.Tensor:
        """(steps, B) positions in the split."""
        shape = (self._steps, self._batch_size)
        if self._weights is None:
            return torch.randint(len(self._indices), shape, generator=generator)
        drawn = self._weights.multinomial(math.prod(shape), replacement=True, generator=generator)
        return drawn.view(shape)


class EpochDraws(IndexDraws):
    """Minibatches without replacement: each epoch holds the images once, in an order of its own.

    As in DomainBed, images that fill no minibatch are left out of their epoch; and where classes
    are to be drawn equally often, it is the minibatch that holds no image twice, not the epoch.
    (DomainBed waits for ever where there are fewer images than a minibatch takes: such a split is
    drawn with replacement.)
    """

    def __init__(
        self,
        indices: Sequence[int],
        batch_size: int,
        seed: int,
        domain: int,
        labels: torch.Tensor | None = None,
    ) -> None:
        super().__init__(indices, batch_size, seed, domain, labels)
        self._is_small = len(indices) < batch_size
        if labels is None and not self._is_small:
            self._steps = len(indices) // batch_size  # one seeding serves an epoch

    def _chosen(self, generator: torch.Generator) -> torch.Tensor:
        if self._is_small:
            return super()._chosen(generator)
        if self._weights is None:
            order = torch.randperm(len(self._indices), generator=generator)
            return order[: self._steps * self._batch_size].view(self._steps, -1)
        weights = self._weights.expand(self._steps, -1)
        return weights.multinomial(self._batch_size, replacement=False, generator=generator)


class WholeDraws(IndexDraws):
    """The whole split at every step, in its order."""

    def at(self, step: int) -> torch.Tensor:
        return self._indices

    def over(self, steps: range, augment: bool) -> Iterator[Draw]:
        return super().over(steps, augment=False)


def minibatches(
    domains: Sequence[Domain],
    draws: Sequence[IndexDraws],
    steps: range,
    augmented: Collection[int] = (),
    workers: int = 0,
) -> Iterator[list[Minibatch]]:
    """One list of (x, y) per step, with one pair for each of `draws`.

    Args:
        domains: all of the dataset, on the device.
        draws: one for each domain that is wanted.
        steps: which of them.
        augmented: the numbers of the domains whose images to augment.
        workers: that read images, in all: they are shared out among the domains.

    Raises:
        UserError: an image cannot be read.
    """
    each = max(1, workers // len(draws)) if workers else 0
    sources = [
        domains[own.domain].batches(own.over(steps, own.domain in augmented), each) for own in draws
    ]
    return map(list, zip(*sources))
