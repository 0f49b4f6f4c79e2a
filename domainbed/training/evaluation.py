"""Metrics of the splits at a record."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from domainbed.algorithms.base import predictor_of
from domainbed.datasets.domain import Domain, Minibatch, evaluation_draws
from domainbed.metrics import METRICS
from domainbed.training.splits import Split

OnBatch = Callable[[int, int], None]


class Value(NamedTuple):
    """One row of a record: a metric's mean over a domain's split."""

    domain: int
    split: str
    metric: str
    value: float


@dataclass(frozen=True)
class EvaluationSplit:
    """Images to evaluate together: a domain's split, "in", "out" or "uda"."""

    domain: int
    name: str
    indices: list[int]


def splits_to_evaluate(
    splits: Sequence[Split], test_envs: Sequence[int], everything: bool
) -> list[EvaluationSplit]:
    """All out-splits and the test domains' in-splits; with `everything`, the others' as well.

    A split without images is left out.
    """
    chosen = []
    for domain, split in enumerate(splits):
        if everything or domain in test_envs:
            chosen.append(EvaluationSplit(domain, "in", split.inside))
        if split.out:
            chosen.append(EvaluationSplit(domain, "out", split.out))
        if split.unlabeled:
            chosen.append(EvaluationSplit(domain, "uda", split.unlabeled))
    return chosen


class Evaluator:
    """Computes metrics, in batches of one domain and one split.

    Args:
        domains: all domains of the dataset, on the device.
        workers: that read images.
        augmented: the domains to augment when they are evaluated (DomainBed's behaviour).
        seed: the run's seed, for that augmentation.
        metrics: registered names.
    """

    def __init__(
        self,
        domains: Sequence[Domain],
        workers: int = 0,
        augmented: Sequence[int] = (),
        seed: int = 0,
        metrics: Sequence[str] = ("accuracy",),
    ) -> None:
        self._domains, self._workers = domains, workers
        self._augmented, self._seed = augmented, seed
        self._metrics = {name: METRICS[name] for name in metrics}

    @torch.no_grad()
    def evaluate(
        self,
        algorithm: Any,
        splits: Sequence[EvaluationSplit],
        step: int,
        on_batch: OnBatch | None = None,
    ) -> list[Value]:
        """The metrics of each split.

        Args:
            algorithm: in training mode afterwards.
            splits: none empty.
            step: of training.
            on_batch: called after every batch, with the number of images done and of all.
        """
        done, total = 0, sum(len(split.indices) for split in splits)
        values: list[Value] = []
        algorithm.eval()
        try:
            for split in splits:
                sums, predict = [], predictor_of(algorithm)
                for x, labels in self._batches(split, step):
                    sums.append(self._sums(predict(x), labels))
                    done += len(labels)
                    if on_batch:
                        on_batch(done, total)
                values += self._values(split, sums)
        finally:
            algorithm.train()
        return values

    def _batches(self, split: EvaluationSplit, step: int) -> Iterator[Minibatch]:
        draws = evaluation_draws(
            split.indices,
            split=split.name,
            seed=self._seed,
            domain=split.domain,
            step=step,
            augment=split.domain in self._augmented,
        )
        return self._domains[split.domain].batches(draws, self._workers)

    def _sums(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """(number of metrics,) sums over a batch, left on the device: nothing waits for it."""
        values = [metric(logits, labels) for metric in self._metrics.values()]
        return torch.stack([each.float().sum() for each in values])

    def _values(self, split: EvaluationSplit, sums: Sequence[torch.Tensor]) -> Iterator[Value]:
        totals = torch.stack(list(sums)).cpu().double().sum(dim=0)
        for metric, total in zip(self._metrics, totals.tolist()):
            yield Value(split.domain, split.name, metric, total / len(split.indices))
