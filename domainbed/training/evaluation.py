"""Accuracies of the splits at a record."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch.utils.data import Dataset

from domainbed.images.packed import PackedDomain
from domainbed.seeding import batch_augmentation_seed
from domainbed.training.minibatches import (
    Minibatch,
    SeededImages,
    deliver,
    image_loader,
    keep_layout,
)
from domainbed.training.packed_batches import Part, read_packed
from domainbed.training.splits import Split

_GATHERED, _READ = 256, 48  # images per forward pass


@dataclass(frozen=True)
class EvaluationSplit:
    """A split to evaluate: its key in the record is `env{domain}_{kind}_acc`."""

    domain: int
    kind: str
    indices: list[int]

    @property
    def key(self) -> str:
        return f"env{self.domain}_{self.kind}_acc"


def splits_to_evaluate(
    splits: Sequence[Split], test_envs: Sequence[int], everything: bool
) -> list[EvaluationSplit]:
    """All out-splits and the test domains' in-splits; with `everything`, the others' as well."""
    chosen = []
    for domain, split in enumerate(splits):
        if everything or domain in test_envs:
            chosen.append(EvaluationSplit(domain, "in", split.inside))
        chosen.append(EvaluationSplit(domain, "out", split.out))
        if split.unlabeled:
            chosen.append(EvaluationSplit(domain, "uda", split.unlabeled))
    return chosen


class Evaluator:
    """Computes accuracies, of domains on the device, packed, or read image by image alike.

    Args:
        domains: all domains of the dataset.
        resident: for each the tensors on the device, or None if it is read image by image.
        device: where the algorithm is.
        num_workers: worker processes in all, for domains that are read.
        augmented: the domains to augment when they are evaluated (DomainBed's behaviour).
        seed: the run's seed, for that augmentation.
    """

    def __init__(
        self,
        domains: Sequence[Dataset[Any]],
        resident: Sequence[Minibatch | None],
        device: torch.device,
        num_workers: int = 0,
        augmented: Sequence[int] = (),
        seed: int = 0,
    ) -> None:
        self._domains, self._tensors = domains, resident
        self._device, self._num_workers = device, num_workers
        self._augmented, self._seed = augmented, seed
        self._images = SeededImages(domains, seed, [d in augmented for d in range(len(domains))])

    @torch.no_grad()
    def accuracies(
        self, algorithm: Any, splits: Sequence[EvaluationSplit], step: int
    ) -> dict[str, float]:
        """The fraction of right predictions of each split, by its key in the record."""
        algorithm.eval()
        try:
            right = self._count_right(algorithm, splits, step)
        finally:
            algorithm.train()
        return {
            split.key: count / len(split.indices) for split, count in zip(splits, right.tolist())
        }

    def _count_right(
        self, algorithm: Any, splits: Sequence[EvaluationSplit], step: int
    ) -> torch.Tensor:
        """(len(splits),) numbers of right predictions."""
        right = torch.zeros(len(splits), dtype=torch.long, device=self._device)
        for number, split in enumerate(splits):
            for x, y in chain(self._gathered(split), self._packed(split, step)):
                right[number] += _hits(algorithm.predict(x), y).sum()
        for owners, x, y in self._read(splits, step):
            right.index_add_(0, owners, _hits(algorithm.predict(x), y).long())
        return right

    def _gathered(self, split: EvaluationSplit) -> Iterator[Minibatch]:
        """The images of a split whose domain lies on the device; else none."""
        resident = self._tensors[split.domain]
        if resident is None:
            return
        x, y = resident
        for chosen in torch.tensor(split.indices, device=self._device).split(_GATHERED):
            yield keep_layout(x[chosen], x), y[chosen]

    def _packed(self, split: EvaluationSplit, step: int) -> Iterator[Minibatch]:
        """The images of a split whose domain is packed; else none."""
        domain = self._domains[split.domain]
        if not isinstance(domain, PackedDomain):
            return
        starts = range(0, len(split.indices), _READ)
        parts = ([self._part(domain, split, step, start)] for start in starts)
        for pairs in read_packed(parts, self._device, self._num_workers):
            yield pairs[0]

    def _part(self, domain: PackedDomain, split: EvaluationSplit, step: int, start: int) -> Part:
        """The images of a split from position `start` on, augmented where the domain is."""
        use = f"{split.kind} {start}"
        seed = batch_augmentation_seed(self._seed, split.domain, step, use)
        chosen = split.indices[start : start + _READ]
        return Part(domain, chosen, seed if split.domain in self._augmented else None)

    def _read(
        self, splits: Sequence[EvaluationSplit], step: int
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
        """The images of all other splits in one pass, each batch with its images' splits."""
        wanted = [
            (number, (split.domain, index, step, index))
            for number, split in enumerate(splits)
            if self._tensors[split.domain] is None
            and not isinstance(self._domains[split.domain], PackedDomain)
            for index in split.indices
        ]
        batches = [wanted[i : i + _READ] for i in range(0, len(wanted), _READ)]
        if not batches:
            return
        requests = ([request for _, request in batch] for batch in batches)
        read = image_loader(self._images, requests, self._num_workers, self._device)
        for batch, pair in zip(batches, read):
            owners = torch.tensor([number for number, _ in batch], device=self._device)
            yield owners, *deliver(pair, self._device)


def _hits(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """(B,) whether each prediction is right; a single logit is a binary decision at 0."""
    predicted = logits.squeeze(1) > 0 if logits.size(1) == 1 else logits.argmax(dim=1)
    return predicted == labels
