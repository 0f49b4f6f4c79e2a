"""Which splits each record evaluates: all of them, or those that somebody can still read."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from domainbed.algorithms import Algorithm
from domainbed.runs.record_keys import average_key, record_key
from domainbed.training.evaluation import EvaluationSplit, Value, splits_to_evaluate
from domainbed.training.experiment import Experiment

Evaluate = Callable[[Sequence[EvaluationSplit]], list[Value]]


class RecordedSplits:
    """The splits that the records of a run evaluate.

    With `eval_splits` "all" they are all; with "needed" all but the training domains' in-splits,
    which the last step has. "selection" and "best" leave out what no selection method can read.
    Let v be the mean accuracy on the training domains' out-splits:

    - Training-domain selection reads v at each record, and the test domain's in-split where v is
      higher than before (of equal ones the first is chosen). So do the tables of runs that train
      on one domain.
    - The oracle reads both splits of the test domain at the last record.
    - Leave-one-domain-out cross-validation reads both test domains' in-splits of a run on a pair
      at each record, and no out-split. Of a single test domain it reads the in-split at a record
      that other runs decide on, so at any: "best" is "selection" for sweeps without it.

    The last record has everything. What is left out is NaN, under the keys that "needed" has.
    Where any record may be the last one, since the algorithm ends stages itself or there are
    several, both are as "needed".

    Args:
        experiment: of the run.
        last: the last step that has a record.
    """

    def __init__(self, experiment: Experiment, last: int) -> None:
        spec = experiment.spec
        self._test_envs, self._train_envs = spec.test_envs, experiment.train_envs
        self._last, self._all_records = last, spec.eval_splits == "all"
        self._leaves_out = spec.eval_splits in ("selection", "best")
        self._leaves_out &= not _may_end_anywhere(experiment.algorithm)
        self._last_step = last if self._leaves_out else spec.steps - 1
        validated = spec.eval_splits == "selection"  # by leave-one-domain-out
        self._reads_tests = validated and len(spec.test_envs) <= 2
        is_pair = validated and len(spec.test_envs) == 2
        self._reads_validation = (
            not is_pair or len(self._train_envs) == 1 or bool(experiment.validation)
        )
        self._highest: dict[str, float] = {}

    def measure(
        self, experiment: Experiment, step: int, evaluate: Evaluate, average: str = ""
    ) -> list[Value]:
        """The values of one record, in the order of domains and splits.

        Args:
            experiment: at its stage.
            step: of the record.
            evaluate: called with the splits to evaluate, once or twice.
            average: the name of that whose weights are in place; empty for the last ones.
        """
        everything = self._all_records or step == self._last_step
        splits = splits_to_evaluate(experiment.stage_splits, self._test_envs, everything)
        if everything or not self._leaves_out:
            return evaluate(splits)
        values = evaluate([split for split in splits if self._is_always_read(split)])
        if not self._reads_tests and self._is_highest(values, average):
            values += evaluate([split for split in splits if split.name == "in"])
        return _filled(splits, values)

    def restore(self, lines: Iterable[str], averages: Iterable[str]) -> None:
        """Goes on after the records of these lines."""
        records = [json.loads(line) for line in lines] if self._leaves_out else []
        names = ["", *averages]
        keys = [record_key(domain, "out", "accuracy") for domain in self._train_envs]
        for record in records:
            for name in names:
                found = [record.get(average_key(name, key) if name else key) for key in keys]
                self._take(name, [value for value in found if value is not None])

    def _is_always_read(self, split: EvaluationSplit) -> bool:
        if split.domain in self._test_envs:
            return split.name == "in" and self._reads_tests
        return self._reads_validation

    def _is_highest(self, values: Sequence[Value], average: str) -> bool:
        """Whether v is higher than at all records before, of the same weights."""
        return self._take(
            average, [v.value for v in values if (v.split, v.metric) == ("out", "accuracy")]
        )

    def _take(self, name: str, accuracies: list[float]) -> bool:
        # As selection computes it, so that ties are ties to the last bit.
        mean = float(np.mean(accuracies)) if accuracies else math.nan
        is_highest = not mean <= self._highest.get(name, -math.inf)
        if is_highest:
            self._highest[name] = mean
        return is_highest


def _may_end_anywhere(algorithm: Algorithm) -> bool:
    ends_stages = type(algorithm).on_record is not Algorithm.on_record
    return ends_stages or len(algorithm.training_stages()) > 1


def _filled(splits: Sequence[EvaluationSplit], values: Sequence[Value]) -> list[Value]:
    """The values of the splits, NaN of those that were not evaluated."""
    found = {(v.domain, v.split, v.metric): v.value for v in values}
    metrics = dict.fromkeys(v.metric for v in values)
    return [
        Value(s.domain, s.name, metric, found.get((s.domain, s.name, metric), math.nan))
        for s in splits
        for metric in metrics
    ]
