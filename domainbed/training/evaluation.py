"""Accuracies of the splits at a record."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import Dataset

from domainbed.training.minibatches import (
    SeededImages,
    image_loader,
    keep_layout,
    tensor_domain,
    to_device,
)
from domainbed.training.splits import Split

_CHUNK = 256


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
    """Computes accuracies, of domains on the device and of domains read image by image alike.

    Args:
        domains: all domains of the dataset.
        device: where the algorithm is.
        num_workers: worker processes in all, for domains that are read.
        augmented: the domains to augment when they are evaluated (DomainBed's behaviour).
        seed: the run's seed, for that augmentation.
    """

    def __init__(
        self,
        domains: Sequence[Dataset[Any]],
        device: torch.device,
        num_workers: int = 0,
        augmented: Sequence[int] = (),
        seed: int = 0,
    ) -> None:
        self._device, self._num_workers = device, num_workers
        self._tensors = [tensor_domain(domain, device) for domain in domains]
        self._images = SeededImages(domains, seed, [d in augmented for d in range(len(domains))])

    @torch.no_grad()
    def accuracies(
        self, algorithm: Any, splits: Sequence[EvaluationSplit], step: int
    ) -> dict[str, float]:
        """The fraction of right predictions of each split, by its key in the record."""
        algorithm.eval()
        try:
            return {split.key: self._accuracy(algorithm, split, step) for split in splits}
        finally:
            algorithm.train()

    def _accuracy(self, algorithm: Any, split: EvaluationSplit, step: int) -> float:
        right = torch.zeros((), dtype=torch.long, device=self._device)
        for x, y in self._batches(split, step):
            right += _right(algorithm.predict(x), y)
        return right.item() / len(split.indices)

    def _batches(
        self, split: EvaluationSplit, step: int
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        resident = self._tensors[split.domain]
        if resident is None:
            yield from self._read(split, step)
            return
        x, y = resident
        for chosen in torch.tensor(split.indices, device=self._device).split(_CHUNK):
            yield keep_layout(x[chosen], x), y[chosen]

    def _read(
        self, split: EvaluationSplit, step: int
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        requests = [(split.domain, index, step, index) for index in split.indices]
        batches = (requests[i : i + 64] for i in range(0, len(requests), 64))
        for x, y in image_loader(self._images, batches, self._num_workers, self._device):
            yield to_device(x, self._device), y.to(self._device)


def _right(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """How many predictions are right; a single logit is a binary decision at 0."""
    predicted = logits.squeeze(1) > 0 if logits.size(1) == 1 else logits.argmax(dim=1)
    return (predicted == labels).sum()
