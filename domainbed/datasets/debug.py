"""Random numbers instead of images, to try out code: nothing can be learned from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch.utils.data import TensorDataset

from domainbed.config.dataset_info import DatasetInfo
from domainbed.core import seeding
from domainbed.core.names import DATASET_DOMAINS
from domainbed.datasets.base import DATASETS, MultipleDomainDataset

_PER_DOMAIN = 16


class _Debug(MultipleDomainDataset):
    """Three domains of 16 standard normal inputs, with random labels.

    DomainBed draws other ones in each process; here they come from the trial seed (or a
    `data_seed`), so that a run can be repeated.
    """

    shareable = True
    num_classes = 2
    size: ClassVar[int]
    ENVIRONMENTS = DATASET_DOMAINS["Debug28"]
    info = DatasetInfo(
        domains=ENVIRONMENTS,
        classes=None,
        num_classes=2,
        images=(_PER_DOMAIN,) * 3,
        source="drawn at random when it is loaded",
        licence="none needed",
        citation="DomainBed (Gulrajani and Lopez-Paz, arXiv 2007.01434)",
        note="to try out code; accuracies mean nothing",
    )

    def __init__(
        self,
        root: str,
        test_envs: Sequence[int],
        hparams: Mapping[str, Any],
        trial_seed: int = 0,
        data_seed: int | None = None,
    ) -> None:
        seed = seeding.data_seed(trial_seed) if data_seed is None else data_seed
        generator = torch.Generator().manual_seed(seed)
        self.input_shape = (3, self.size, self.size)
        self.datasets = [self._domain(generator) for _ in self.ENVIRONMENTS]

    def _domain(self, generator: torch.Generator) -> TensorDataset:
        x = torch.randn((_PER_DOMAIN, *self.input_shape), generator=generator)
        y = torch.randint(self.num_classes, (_PER_DOMAIN,), generator=generator)
        return TensorDataset(x, y)


@DATASETS.register
class Debug28(_Debug):
    """Random inputs of (3, 28, 28), for the search spaces and the network of small images."""

    size = 28
    small_images = True


@DATASETS.register
class Debug224(_Debug):
    """Random inputs of (3, 224, 224), for the search spaces of natural images."""

    size = 224
