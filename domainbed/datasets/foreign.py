"""Domains of datasets written for PyTorch or DomainBed, wrapped once, where a run begins."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property
from typing import Any

import torch
from torch.utils.data import TensorDataset

from domainbed.core.seeding import global_sources_kept
from domainbed.datasets.byte_images import ByteDomain, ByteImages
from domainbed.datasets.domain import Domain
from domainbed.datasets.loaded_domain import LoadedDomain
from domainbed.datasets.tensor_domain import TensorDomain
from domainbed.errors import UserError


class ForeignDomain(LoadedDomain):
    """A `torch.utils.data.Dataset` of (x, y) pairs.

    Args:
        dataset: with a length. What else it has is used: `augmented(index)`, an augmented pair;
            `targets`, the labels; `unreadable`, positions of images to leave out.
        num_classes: of the labels, which are checked as they are read; None if it is not known.
    """

    def __init__(self, dataset: Any, num_classes: int | None = None) -> None:
        self._dataset, self._num_classes = dataset, num_classes
        self._can_augment = hasattr(dataset, "augmented")
        self.labels_at_hand = hasattr(dataset, "targets")
        self.unreadable = list(getattr(dataset, "unreadable", ()))

    def __len__(self) -> int:
        return len(self._dataset)

    @cached_property
    def labels(self) -> torch.Tensor:
        targets = getattr(self._dataset, "targets", None)
        if targets is None:
            with global_sources_kept(gpus=False):
                targets = [self._dataset[index][1] for index in range(len(self))]
        return torch.tensor([int(target) for target in targets])

    def read(self, index: int, augment: bool) -> tuple[torch.Tensor, Any]:
        augmented = augment and self._can_augment
        x, y = self._dataset.augmented(index) if augmented else self._dataset[index]
        if self._num_classes is not None and not 0 <= y < self._num_classes:
            raise UserError(
                f"image {index} has the label {int(y)}, expected 0 to {self._num_classes - 1} "
                f"(num_classes is {self._num_classes})",
                "dataset",
            )
        return x, y


def domains_of(dataset: Iterable[Any]) -> list[Domain]:
    """The domains of any dataset that keeps DomainBed's contract, on the CPU.

    Args:
        dataset: its elements are a `Domain` each, a `TensorDataset`, or any other dataset of
            (x, y) pairs. Where it has `out_splits`, these positions validate.
    """
    num_classes = getattr(dataset, "num_classes", None)
    domains = [_domain(each, num_classes) for each in dataset]
    out_splits = getattr(dataset, "out_splits", None)
    if out_splits is None:
        return domains
    return [domain.with_out_split(out) for domain, out in zip(domains, out_splits)]


def _domain(dataset: Any, num_classes: int | None) -> Domain:
    if isinstance(dataset, Domain):
        return dataset
    if isinstance(dataset, ByteImages):
        return ByteDomain(dataset)
    if isinstance(dataset, TensorDataset):
        return TensorDomain(*dataset.tensors)
    return ForeignDomain(dataset, num_classes)
