"""A small dataset of each ready-made label type: three domains of vectors."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch.utils.data import TensorDataset

from domainbed.datasets import MultipleDomainDataset

SAMPLES, WIDTH = 40, 5


class Labelled(MultipleDomainDataset):
    """Labels that follow from a linear function of the inputs."""

    ENVIRONMENTS = ("a", "b", "c")
    N_STEPS, CHECKPOINT_FREQ, small_images = 4, 3, True
    count: ClassVar[int] = 3

    def __init__(self, root: str, test_envs: Any, hparams: Any) -> None:
        source = torch.Generator().manual_seed(0)
        weights = torch.randn(WIDTH, self.count, generator=source)
        self.input_shape, self.num_classes = (WIDTH,), self.count
        inputs = [torch.randn(SAMPLES, WIDTH, generator=source) + e for e in range(3)]
        self.datasets = [TensorDataset(x, self.labelled(x @ weights)) for x in inputs]

    def labelled(self, scores: torch.Tensor) -> torch.Tensor:
        """(n, count) to labels."""
        return scores.argmax(dim=1)


class BinaryVectors(Labelled):
    labels, count = "binary", 2

    def labelled(self, scores: torch.Tensor) -> torch.Tensor:
        return (scores[:, 0] > 0).long()


class MultilabelVectors(Labelled):
    labels = "multilabel"

    def labelled(self, scores: torch.Tensor) -> torch.Tensor:
        return (scores > scores.mean(dim=0)).float()


class RegressionVectors(Labelled):
    labels, count = "regression", 1

    def labelled(self, scores: torch.Tensor) -> torch.Tensor:
        return scores.squeeze(1)


class VectorRegressionVectors(Labelled):
    labels, count = "regression", 2

    def labelled(self, scores: torch.Tensor) -> torch.Tensor:
        return scores


KINDS: dict[str, type[Labelled]] = {
    cls.__name__: cls for cls in (Labelled, BinaryVectors, MultilabelVectors, RegressionVectors)
}
