"""Minibatches: drawn uniformly with replacement, as a pure function of seed, domain and step.

Nothing is remembered between steps, so a run that was interrupted draws on as if it had not
been, and the number of worker processes changes nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

import torch

from domainbed.datasets.domain import Domain, Draw, Minibatch
from domainbed.seeding import minibatch_seed

# Indices are drawn for many steps at once: one seeding serves them all.
_BLOCK = 64


class IndexDraws:
    """Which images of one domain each step sees.

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
        self._block_number, self._block = -1, torch.empty(0)

    def at(self, step: int) -> torch.Tensor:
        """(B,) positions in the domain."""
        number, position = divmod(step, _BLOCK)
        if number != self._block_number:
            self._block_number, self._block = number, self._draw(number)
        return self._block[position]

    def over(self, steps: range, augment: bool) -> Iterator[Draw]:
        """One draw per step."""
        for step in steps:
            yield Draw(self.at(step), self._seed, self.domain, step, augment=augment)

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
