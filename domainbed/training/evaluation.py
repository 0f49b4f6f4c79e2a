"""Metrics of splits, and which splits a record evaluates."""

import json
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch

from domainbed.algorithms import Algorithm
from domainbed.algorithms.base import named_predictor_of
from domainbed.core.minibatch import Minibatch, joined_extras, mapped
from domainbed.core.names import average_key, record_key
from domainbed.datasets.domain import Domain, evaluation_draws
from domainbed.errors import log
from domainbed.metrics import Value, describe_metric, get_metric
from domainbed.metrics.accumulators import values_of_samples
from domainbed.metrics.labels import LabelType, label_type
from domainbed.spec import RunSpec
from domainbed.training.ranks import is_first
from domainbed.training.sampling import Split


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
    return [
        EvaluationSplit(domain, name, indices)
        for domain, split in enumerate(splits)
        for name, indices in (("in", split.inside), ("out", split.out), ("uda", split.unlabeled))
        if indices and (name != "in" or everything or domain in test_envs)
    ]


_Taken = tuple[torch.Tensor, Minibatch | None]
"""Of a batch: the sum of each metric of samples, and the outputs for metrics of whole splits."""


class Evaluator:
    """Computes metrics, in batches of one domain and one split.

    Args:
        domains: all domains of the dataset, on the device.
        workers: that read images.
        augmented: the domains to augment when they are evaluated (DomainBed's behaviour).
        seed: the run's seed, for that augmentation.
        metrics: names, as in the field `metrics`.
        labels: the type of the labels; None for classes.
        group: the key of the samples' group in their extras.
    """

    def __init__(
        self,
        domains: Sequence[Domain],
        workers: int = 0,
        augmented: Sequence[int] = (),
        seed: int = 0,
        metrics: Sequence[str] = ("accuracy",),
        labels: LabelType | None = None,
        group: str = "group",
    ) -> None:
        self._domains, self._workers = domains, workers
        self._augmented, self._seed, self._group = augmented, seed, group
        self._labels = labels or label_type("classes")
        self._metrics = [get_metric(name) for name in metrics]
        self._of_samples = {
            metric.name: metric.per_sample(self._labels)
            for metric in self._metrics
            if metric.per_sample
        }
        self._of_splits = [metric for metric in self._metrics if metric.per_sample is None]

    @torch.no_grad()
    def evaluate(
        self,
        algorithm: Any,
        splits: Sequence[EvaluationSplit],
        step: int,
        on_batch: Callable[[int, int], None] = lambda done, total: None,
    ) -> list[Value]:
        """The metrics of each split.

        Args:
            algorithm: in training mode afterwards.
            splits: none empty.
            step: of training.
            on_batch: called after every batch, with the number of images done and of all.

        Raises:
            UserError: a metric has a value of another shape than it should.
        """
        done, total = 0, sum(len(split.indices) for split in splits)
        found: list[Value] = []
        algorithm.eval()
        try:
            for split in splits:
                taken: dict[str, list[_Taken]] = defaultdict(list)
                predict = named_predictor_of(algorithm)
                for batch in self._batches(split, step):
                    x, labels = batch
                    for suffix, outputs in predict(x).items():
                        taken[suffix].append(self._taken(outputs, labels, batch.extras))
                    done += len(labels)
                    on_batch(done, total)
                for suffix, of_batches in taken.items():
                    found += self._values(split, suffix, of_batches)
        finally:
            algorithm.train()
        for value in found:
            if math.isnan(value.value) and value.metric not in self._of_samples and is_first():
                _warn_undefined(value.metric, value.domain, value.split)
        return found

    def _batches(self, split: EvaluationSplit, step: int) -> Iterator[Minibatch]:
        draws = evaluation_draws(
            split.indices,
            split=split.name,
            seed=self._seed,
            domain=split.domain,
            step=step,
            augment=split.domain in self._augmented,
        )
        return self._domains[split.domain].minibatches(draws, self._workers)

    def _taken(self, outputs: torch.Tensor, labels: torch.Tensor, extras: Any) -> _Taken:
        """Sums over a batch, left on the device: nothing waits for them. Outputs, if needed."""
        sums = [
            values_of_samples(name, function, outputs, labels).float().sum()
            for name, function in self._of_samples.items()
        ]
        on_cpu = None
        if self._of_splits:
            extras = mapped(torch.Tensor.cpu, extras)
            on_cpu = Minibatch(outputs.float().cpu(), labels.cpu(), extras)
        return torch.stack(sums) if sums else outputs.new_zeros(0), on_cpu

    def _values(self, split: EvaluationSplit, suffix: str, taken: list[_Taken]) -> list[Value]:
        """The metrics of a whole split, of what one of the algorithm's predictors predicts."""
        sums, kept = zip(*taken)
        totals = torch.stack(sums).cpu().double().sum(dim=0).tolist()
        found = {name: each / len(split.indices) for name, each in zip(self._of_samples, totals)}
        if self._of_splits:
            outputs, targets = (torch.cat(part) for part in zip(*kept))
            extras = joined_extras(kept)
            if extras and self._group in extras:
                extras["group"] = extras[self._group]
            for metric in self._of_splits:
                found |= metric.measured(self._labels, outputs, targets, extras)
        names = [name for metric in self._metrics for name in metric.recorded]
        ending = f"_{suffix}" if suffix else ""
        return [Value(split.domain, split.name, name + ending, found[name]) for name in names]


@cache  # once, however often a run is evaluated
def _warn_undefined(metric: str, domain: int, split: str) -> None:
    log.warning(
        "warning: %s is not defined on the %s-split of domain %d: recorded without a value",
        *(metric, split, domain),
    )


class RecordedSplits:
    """The splits that the records of a run evaluate.

    With `eval_splits` "all" they are all; with "needed" all but the training domains' in-splits,
    which the last step has. "selection" and "best" leave out what no selection method can read.
    Let v be the mean, over the training domains' out-splits, of the metric to select by:

    - Training-domain selection reads v at each record, and the test domain's in-split where v is
      better than before (of equal ones the first is chosen). So do the tables of runs that train
      on one domain.
    - The oracle reads both splits of the test domain at the last record.
    - Leave-one-domain-out cross-validation reads both test domains' in-splits of a run on a pair
      at each record, and no out-split. Of a single test domain it reads the in-split at a record
      that other runs decide on, so at any: "best" is "selection" for sweeps without it.

    The last record has everything. What is left out is NaN, under the keys that "needed" has.
    Where any record may be the last one, since the algorithm ends stages itself or there are
    several, both are as "needed".

    Args:
        spec: of the run.
        algorithm: of the run.
        train_envs: the numbers of the training domains.
        validates: whether a metric on the training domains' out-splits is needed at each record.
        last: the last step that has a record.
        metric: to select by, by its name in records.
    """

    def __init__(
        self,
        spec: RunSpec,
        algorithm: Algorithm,
        train_envs: Sequence[int],
        validates: bool,
        last: int,
        metric: str = "accuracy",
    ) -> None:
        self._metric, self._sign = metric, 1 if describe_metric(metric).higher_is_better else -1
        self._test_envs, self._train_envs = spec.test_envs, train_envs
        self._all_records = spec.eval_splits == "all"
        ends_anywhere = type(algorithm).on_record is not Algorithm.on_record
        ends_anywhere |= len(algorithm.training_stages()) > 1
        self._leaves_out = spec.eval_splits in ("selection", "best") and not ends_anywhere
        self._last_step = last if self._leaves_out else spec.steps - 1
        cross_validates = spec.eval_splits == "selection"  # by leave-one-domain-out
        self._reads_tests = cross_validates and len(spec.test_envs) <= 2
        is_pair = cross_validates and len(spec.test_envs) == 2
        self._reads_validation = not is_pair or len(train_envs) == 1 or validates
        self._best: dict[str, float] = {}

    def measure(
        self,
        splits: Sequence[Split],
        step: int,
        evaluate: Callable[[Sequence[EvaluationSplit]], list[Value]],
        average: str = "",
    ) -> list[Value]:
        """The values of one record, in the order of domains and splits.

        Args:
            splits: of each domain, at the run's stage.
            step: of the record.
            evaluate: called with the splits to evaluate, once or twice.
            average: the one whose weights the algorithm has; empty for the last weights.
        """
        everything = self._all_records or step == self._last_step
        chosen = splits_to_evaluate(splits, self._test_envs, everything)
        if everything or not self._leaves_out:
            return evaluate(chosen)
        values = evaluate([split for split in chosen if self._is_always_read(split)])
        validation = [v.value for v in values if (v.split, v.metric) == ("out", self._metric)]
        if not self._reads_tests and self._is_best(average, validation):
            values += evaluate([split for split in chosen if split.name == "in"])
        return _filled(chosen, values)

    def restore(self, lines: Iterable[str], averages: Iterable[str]) -> None:
        """Continues after the records of these lines."""
        records = [json.loads(line) for line in lines] if self._leaves_out else []
        keys = [record_key(domain, "out", self._metric) for domain in self._train_envs]
        for record in records:
            for name in ("", *averages):
                own = [average_key(name, key) if name else key for key in keys]
                found = [record[key] for key in own if key in record]
                self._is_best(name, [math.nan if value is None else value for value in found])

    def _is_always_read(self, split: EvaluationSplit) -> bool:
        if split.domain in self._test_envs:
            return split.name == "in" and self._reads_tests
        return self._reads_validation

    def _is_best(self, average: str, values: Sequence[float]) -> bool:
        """Notes v of a record; returns whether it is better than at all records before."""
        if not values:
            return True
        # As selection computes it, so that ties are ties to the last bit; it takes NaN as worst.
        mean, best = self._sign * float(np.mean(values)), self._best.get(average)
        is_best = best is None or mean > best or (math.isnan(best) and not math.isnan(mean))
        if is_best:
            self._best[average] = mean
        return is_best


def _filled(splits: Sequence[EvaluationSplit], values: Sequence[Value]) -> list[Value]:
    """The values of the splits; NaN for those that were not evaluated."""
    found = {(v.domain, v.split, v.metric): v.value for v in values}
    metrics = dict.fromkeys(v.metric for v in values)
    return [
        Value(s.domain, s.name, metric, found.get((s.domain, s.name, metric), math.nan))
        for s in splits
        for metric in metrics
    ]
