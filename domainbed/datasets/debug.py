"""Random numbers instead of images, to try out code: nothing can be learned from them."""

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch.utils.data import TensorDataset

from domainbed.datasets.base import published
from domainbed.datasets.small_images import DrawnDataset

_PER_DOMAIN = 16


class _Debug(DrawnDataset):
    """Three domains of 16 standard normal inputs, with random labels.

    DomainBed draws other ones in each process; here they come from the trial seed (or a
    `data_seed`), so that a run can be repeated.
    """

    num_classes = 2
    size: ClassVar[int]

    def make_domains(self, root: str) -> Sequence[TensorDataset]:
        return [
            TensorDataset(
                torch.randn((_PER_DOMAIN, 3, self.size, self.size), generator=self.generator),
                torch.randint(self.num_classes, (_PER_DOMAIN,), generator=self.generator),
            )
            for _ in self.ENVIRONMENTS
        ]


@published
class Debug28(_Debug):
    """Random inputs of (3, 28, 28), for the search spaces and the network of small images."""

    size = 28
    small_images = True


@published
class Debug224(_Debug):
    """Random inputs of (3, 224, 224), for the search spaces of natural images."""

    size = 224
