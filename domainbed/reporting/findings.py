"""What the figures and tables of a report show, each computed once, on first use."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np
import pandas as pd

from domainbed.core.names import order_algorithms, passes
from domainbed.reporting import comparison
from domainbed.reporting.statistics import CriticalDifference
from domainbed.reporting.units import Unit
from domainbed.runs.records import Records
from domainbed.selection import mean_over_others

_CELL = ["dataset", "algorithm", "test_env"]
_RUN = [*_CELL, "trial_seed", "hparams_seed"]

RANKED = "domain"
"""What ranks count as one observation; the trials of a test domain share their images."""


@dataclass(frozen=True)
class Findings:
    """Numbers from some records.

    Attributes:
        records: those of the datasets and algorithms that are asked for, judged by one metric.
        selection: short names of selection methods.
        baseline: what the algorithms are compared with.
    """

    records: Records
    selection: Sequence[str]
    baseline: str = "ERM"

    @cached_property
    def chosen(self) -> pd.DataFrame:
        """As from `comparison.chosen_values`."""
        return comparison.chosen_values(self.records, self.selection)

    @cached_property
    def unit(self) -> Unit:
        """Of the metric."""
        return comparison.unit_of(self.records, self.chosen)

    @cached_property
    def differences(self) -> pd.DataFrame:
        """As from `comparison.differences`; an observation is a trial.

        Raises:
            UserError: there is nothing to compare.
        """
        return comparison.differences(self.records, self.selection, self.baseline)

    @cached_property
    def ranks(self) -> dict[str, CriticalDifference]:
        """As from `comparison.critical_differences`; an observation is a test domain."""
        return comparison.critical_differences(self.records, self.selection, RANKED)

    @cached_property
    def last_records(self) -> pd.DataFrame:
        """As from `comparison.in_and_out`."""
        return comparison.in_and_out(self.records)

    @cached_property
    def lines(self) -> pd.DataFrame:
        """As from `comparison.accuracy_on_the_line`."""
        return comparison.accuracy_on_the_line(self.records)

    @cached_property
    def expected(self) -> pd.DataFrame:
        """As from `comparison.expected_best`."""
        return comparison.expected_best(self.records, self.selection)

    @cached_property
    def costs(self) -> pd.DataFrame:
        """What methods achieve, the mean over test domains and trials, beside what updates cost.

        Columns: `selection`, `dataset`, `algorithm`, the metric under its name; `ms`, see
        `update_times`; `times`, their ratio to the baseline's; and `passes`, see `names.PASSES`.
        """
        of_cell = self.chosen.groupby(["selection", "dataset", "algorithm"], sort=False)
        found = of_cell[self.records.metric].mean().reset_index()
        found = found.join(update_times(self.records), on=["dataset", "algorithm"])
        of_baseline = found[found["algorithm"] == self.baseline].groupby("dataset")["ms"].first()
        return found.assign(
            times=found["ms"] / found["dataset"].map(of_baseline),
            passes=found["algorithm"].map(passes),
        )

    @cached_property
    def curves(self) -> pd.DataFrame:
        """The course of the chosen runs, the mean over their trials.

        Columns: `selection`, `dataset`, `algorithm`, `test_env`, `step`; `validation`, on the
        out-splits of the training domains, and `test`, on the test domain, as in the tables, NaN
        where a trial has not measured it; `trials`, how many have a record of that step; `chosen`,
        in how many of them it is the chosen one.
        """
        table, factor = self.records.as_reported().of_single_domains, self.unit.factor
        of_records = table.keys[[*_RUN, "step"]].assign(
            test=factor * table.keys["test"],
            validation=factor * mean_over_others(table.out_split, table.keys),
        )
        picked = self.chosen[["selection", *_RUN, "step"]].rename(columns={"step": "best"})
        course = of_records.merge(picked, on=_RUN)
        course["chosen"] = course["step"] == course["best"]
        of_step = course.groupby(["selection", *_CELL, "step"], sort=False)
        found = of_step.agg(
            validation=("validation", "mean"), test=("test", "mean"), measured=("test", "count"),
            trials=("chosen", "size"), chosen=("chosen", "sum"),
        )  # fmt: skip
        found["test"] = found["test"].where(found.pop("measured") == found["trials"])
        return found.reset_index().sort_values(["selection", *_CELL, "step"], ignore_index=True)

    @cached_property
    def tuning(self) -> pd.DataFrame:
        """What each run did with each hyper-parameter that was not the same in all draws.

        Columns: `dataset`, `algorithm`, `test_env`, `trial_seed`, `hparams_seed`; `name` of the
        hyper-parameter and its `value`; `gain`, the metric on the test domain at the last record,
        minus the mean of all runs of the dataset and test domain, in percentage points or in its
        unit; and `chosen`, whether the first selection method took the run.
        """
        scores = self.last_records[[*_RUN, "out_of_domain"]]
        means = scores.groupby(["dataset", "test_env"])["out_of_domain"].transform("mean")
        scores = scores.assign(gain=scores["out_of_domain"] - means)
        first = self.chosen[self.chosen["selection"] == self.selection[0]]
        scores = scores.merge(first[_RUN].assign(chosen=True), on=_RUN, how="left")
        scores["chosen"] = scores["chosen"].eq(True)
        values = self._hparams.drop_duplicates([*_RUN, "name"])
        both = scores.merge(values, on=_RUN).drop(columns="out_of_domain")
        return both.sort_values([*_RUN, "name"], ignore_index=True)

    @cached_property
    def choices(self) -> pd.DataFrame:
        """Each choice: `chosen`, with its hyper-parameters that differ between draws, as text."""
        values = self._hparams["value"].map(
            lambda v: f"{v:.4g}" if isinstance(v, float) else str(v)
        )
        texts = self._hparams.assign(hparams=self._hparams["name"] + "=" + values)
        joined = texts.groupby(_RUN, sort=False)["hparams"].agg(", ".join).reset_index()
        both = self.chosen.merge(joined, on=_RUN, how="left")
        return both.assign(hparams=both["hparams"].fillna("same in all draws"))

    @cached_property
    def _hparams(self) -> pd.DataFrame:
        """Of each run with one test domain the hyper-parameters that not all draws share."""
        runs = self.records.runs[self.records.runs["test_envs"].map(len) == 1]
        runs = runs.assign(test_env=runs["test_envs"].str[0])
        rows = [
            (*key, name, value)
            for *key, hparams in runs[[*_RUN, "hparams"]].itertuples(index=False, name=None)
            for name, value in sorted(hparams.items())
        ]
        found = pd.DataFrame(rows, columns=[*_RUN, "name", "value"], dtype=object)
        texts = found["value"].map(partial(json.dumps, sort_keys=True, default=str))
        shared_by = [found[column] for column in ("dataset", "algorithm", "name")]
        return found[texts.groupby(shared_by).transform("nunique") > 1].infer_objects()


def update_times(records: Records) -> pd.Series:
    """The median milliseconds of an update, by dataset and algorithm, where records were made."""
    times = records.values[records.values["metric"] == "step_time"]
    runs = records.runs[["dataset", "algorithm"]].loc[times["run"]]
    return runs.assign(ms=1000 * times["value"].to_numpy()).groupby([*runs])["ms"].median()


def ranges(tuning: pd.DataFrame) -> pd.DataFrame:
    """Where the choices lie in the range that was drawn: do they crowd at an end?

    Columns: `algorithm`, `name`, `lowest` and `highest` drawn, the number of `choices`, and how
    many of them are `low` and `high`, in the outer tenths of that range (of the logarithms, if
    it spans a factor of ten and more; 0 counts as a tenth of the lowest other number).
    """
    rows = []
    for algorithm in order_algorithms(tuning["algorithm"]):
        for name, of_name in tuning[tuning["algorithm"] == algorithm].groupby("name", sort=False):
            if is_numeric(of_name["value"]):
                values = of_name["value"].astype(float)
                places = position(values)[of_name["chosen"].to_numpy()]
                low, high = int((places <= 0.1).sum()), int((places >= 0.9).sum())
                ends = (float(values.min()), float(values.max()))
                rows.append((algorithm, name, *ends, len(places), low, high))
    columns = ["algorithm", "name", "lowest", "highest", "choices", "low", "high"]
    return pd.DataFrame(rows, columns=columns)


def is_numeric(values: pd.Series) -> bool:
    """Whether all are finite numbers, and not merely true or false."""
    numbers = all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in values)
    return numbers and bool(np.isfinite(values.astype(float)).all())


def is_logarithmic(values: pd.Series) -> bool:
    """Whether numbers span a factor of ten and more, so that their logarithms tell more.

    Zeros do not count: many defaults are 0 where the draws are logarithmic.
    """
    others = values[values > 0]
    is_wide = len(others) > 0 and others.max() >= 10 * others.min()
    return bool(is_wide and values.min() >= 0)


def position(values: pd.Series) -> np.ndarray:
    """Where each number lies between the lowest, 0, and the highest, 1."""
    numbers = values.to_numpy()
    if is_logarithmic(values):  # zeros become a tenth of the lowest other number
        numbers = np.log(np.where(numbers > 0, numbers, numbers[numbers > 0].min() / 10))
    spread = np.ptp(numbers)
    return (numbers - numbers.min()) / spread if spread else np.full(len(numbers), 0.5)
