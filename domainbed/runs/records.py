"""Records in memory: a table of runs, and a tidy table of what they measured."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

# The columns of `Records.runs` that say which run of a grid it is.
RUN_KEYS = ["dataset", "algorithm", "test_envs", "hparams_seed", "trial_seed"]

# The columns of `Records.runs` that say under which conditions a run was made, as text.
PROTOCOL_KEYS = ["protocol", "protocol_version", "torch", "precision"]

NOT_RECORDED = "not recorded"  # what stands in them of runs that do not say

# The domain of a value that was measured on no domain's split, such as the training loss.
NO_DOMAIN = -1


@dataclass(frozen=True)
class Records:
    """What runs recorded, and by which metrics they are judged. A run and a step are one record.

    Attributes:
        runs: one row per run, numbered from 0: `folder`, `dataset`, `algorithm`, `test_envs`
            (tuple of int), `hparams_seed`, `trial_seed`, `num_domains`, `num_records`,
            `last_step`, `diverged` (whether its loss was not finite), `hparams` and `args`
            (dict), `output_dir`, `features` (what it was trained on in place of images, in
            words), `has_digest` (whether damage to its records would be noticed),
            `data` (what its dataset consisted of, see `datasets.listing`, or None), and
            `PROTOCOL_KEYS`. A folder whose file records a step twice
            has a row for each time.
        values: one row per number: `run` (row of `runs`), `step`, `domain` (or `NO_DOMAIN`),
            `split` ("in", "out", "uda", or "" of no domain), `metric` ("accuracy" in [0, 1],
            "loss", …) and `value`.
        metric: what is reported.
        selection_metric: what chooses.
        lower_is_better: whether the lower value of `selection_metric` is the better one.
        of_last_steps: a metric that is known of the last step of each run alone; "" if none is.
        rankings: what selection methods made of these records, by their names.
    """

    runs: pd.DataFrame
    values: pd.DataFrame
    metric: str = "accuracy"
    selection_metric: str = "accuracy"
    lower_is_better: bool = False
    of_last_steps: str = ""
    rankings: dict[str, pd.DataFrame] = field(init=False, default_factory=dict, repr=False)

    def __len__(self) -> int:
        """How many records there are."""
        return int(self.runs["num_records"].sum())

    def only(self, wanted: Any) -> Records:
        """The records of some runs, renumbered; `wanted` is a boolean for each run."""
        wanted = np.asarray(wanted, dtype=bool)
        if wanted.all():
            return self
        numbers = np.cumsum(wanted) - 1
        values = self.values[wanted[self.values["run"]]]
        values = values.assign(run=numbers[values["run"]])
        return replace(self, runs=self.runs[wanted].reset_index(drop=True), values=values)

    def as_reported(self) -> Records:
        """These records with the reported metric also in place of the one that chooses."""
        if self.selection_metric == self.metric and not self.lower_is_better:
            return self
        return replace(self, selection_metric=self.metric, lower_is_better=False)

    @property
    def table(self) -> MetricTable:
        """What chooses, one row per record. Of two values the higher is the better one.

        So a metric of which the lower value is better stands there with the opposite sign.
        """
        return self._tables[0]

    @cached_property
    def _tables(self) -> tuple[MetricTable, MetricTable]:
        """`table`, and the reported metric as it was recorded, with the same rows."""
        values = self.values
        metrics = list(dict.fromkeys([self.selection_metric, self.metric]))
        is_wanted = values["metric"].isin(metrics) & values["split"].isin(["in", "out"])
        chosen = np.flatnonzero(is_wanted)  # of columns: to filter the whole table takes far longer
        run, step, domain, value = (
            values[name].to_numpy()[chosen] for name in ("run", "step", "domain", "value")
        )
        is_out = (values["split"] == "out").to_numpy()[chosen].astype(int)
        which = (values["metric"] != metrics[0]).to_numpy()[chosen].astype(int)
        first = step.min(initial=0)
        span = step.max(initial=0) - first + 1  # one integer per record sorts far faster than two
        codes, seen = pd.factorize(run * span + (step - first))
        order = np.argsort(seen)  # of the records alone: to sort all values takes far longer
        found, rows = seen[order], np.argsort(order)[codes]
        domains = max([0, *self.runs["num_domains"], domain.max(initial=-1) + 1])
        splits = np.full((len(metrics), 2, len(found), domains), np.nan)
        splits[which, is_out, rows, domain] = value
        runs = self.runs[[*RUN_KEYS, "num_domains"]]
        runs = runs.astype({"dataset": object, "algorithm": object})  # repeated without a copy
        keys = runs.iloc[found // span].reset_index(drop=True)
        keys = keys.assign(step=found % span + first)
        reported = MetricTable(keys, *splits[-1])
        if self.lower_is_better:
            return MetricTable(keys, *-splits[0]), reported
        return MetricTable(keys, *splits[0]), reported

    @cached_property
    def of_single_domains(self) -> MetricTable:
        """`table` of runs with one test domain, with the keys `test_env` and `test`.

        `test` is the reported metric on the test domain's in-split, as it was recorded.
        """
        chooses, reported = self._tables
        is_single = chooses.keys["test_envs"].map(len) == 1
        table = chooses.only(is_single)
        test_env = np.array([envs[0] for envs in table.keys["test_envs"]], dtype=int)
        test = pick(reported.only(is_single).in_split, test_env)
        return replace(table, keys=table.keys.assign(test_env=test_env, test=test))


@dataclass(frozen=True)
class MetricTable:
    """The values of a metric side by side, one row per record, in the order of runs and steps.

    Attributes:
        keys: `RUN_KEYS` and `num_domains` of the run, and `step`.
        in_split, out_split: (records, domains), NaN where nothing was measured.
    """

    keys: pd.DataFrame
    in_split: np.ndarray
    out_split: np.ndarray

    def only(self, wanted: Any) -> MetricTable:
        """The rows where `wanted` is true."""
        rows = np.asarray(wanted, dtype=bool)
        if rows.all():
            return self
        return MetricTable(
            self.keys[rows].reset_index(drop=True), self.in_split[rows], self.out_split[rows]
        )


def pick(values: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """One value of each row: `values[row, columns[row]]`."""
    return values[np.arange(len(values)), columns]
