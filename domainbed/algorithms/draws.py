"""Random draws inside updates, from a source of each algorithm's own."""

from __future__ import annotations

import torch
from numpy.random import RandomState

from domainbed.core.seeding import prediction_draws_seed, update_draws_seed


class Draws:
    """What an algorithm draws in its updates: permutations, weights, noise.

    DomainBed takes them from the global sources of NumPy, PyTorch's CPU and the device, so that
    anything else that draws changes them. Here they follow from the seed that PyTorch had when
    the algorithm was built, on every device alike, and are saved and restored with its state.
    Building one draws nothing from the global sources: the network's weights stay as they are.
    """

    def __init__(self, seed: int | None = None) -> None:
        self._seed = update_draws_seed(torch.initial_seed()) if seed is None else seed
        self._generator = torch.Generator().manual_seed(self._seed)
        self._random_state = RandomState(self._seed)

    def of_a_prediction(self) -> Draws:
        """A source of its own, the same each time: a prediction changes no update after it."""
        return Draws(prediction_draws_seed(self._seed))

    def permutation(self, size: int) -> torch.Tensor:
        """(size,) the whole numbers below `size` in random order."""
        return torch.randperm(size, generator=self._generator)

    def uniform(self, *shape: int) -> torch.Tensor:
        """Numbers in [0, 1), float32."""
        return torch.rand(shape, generator=self._generator)

    def normal(self, *shape: int) -> torch.Tensor:
        """Numbers from N(0, 1), float32."""
        return torch.randn(shape, generator=self._generator)

    def integer(self, below: int) -> int:
        """A whole number in [0, below)."""
        return int(self._random_state.randint(0, below))

    def beta(self, a: float, b: float) -> float:
        """A number from the Beta(a, b) distribution."""
        return float(self._random_state.beta(a, b))
