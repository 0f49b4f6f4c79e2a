"""What the selection methods share: the contract, and array operations over records."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from domainbed.records import Accuracies, Records
from domainbed.registry import Registry

CELL_KEYS = ["trial_seed", "dataset", "algorithm", "test_env"]
SEED_KEYS = [*CELL_KEYS, "hparams_seed"]
SCORE_COLUMNS = [*SEED_KEYS, "step", "val_acc", "test_acc"]

SELECTION_METHODS: Registry[SelectionMethod] = Registry("selection method")


@dataclass(frozen=True)
class SelectionMethod:
    """A way to choose a step and a hyper-parameter seed.

    Attributes:
        name: short name, for the command line.
        title: the name in the paper and in the tables.
        needs_pairs: whether runs with two test domains are needed too.
        score: a function from records to a table with `SCORE_COLUMNS`: for every (trial, dataset,
            algorithm, test domain, hparams seed) that can be scored one row, with the chosen
            step and its validation and test accuracy in [0, 1].
    """

    name: str
    title: str
    needs_pairs: bool
    score: Callable[[Records], pd.DataFrame]

    def rank(self, records: Records) -> pd.DataFrame:
        """The scores of all hparams seeds, within each cell and trial from best to worst.

        Of equal validation accuracies the highest hparams seed comes first.
        """
        keys = [*CELL_KEYS, "val_acc", "hparams_seed"]
        ascending = [True] * len(CELL_KEYS) + [False, False]
        return self.score(records).sort_values(keys, ascending=ascending, ignore_index=True)

    def select(self, records: Records) -> pd.DataFrame:
        """The choice: one row of `SCORE_COLUMNS` for each (trial, dataset, algorithm, domain)."""
        return self.rank(records).drop_duplicates(CELL_KEYS, ignore_index=True)

    def uses(self, test_envs: tuple[int, ...], test_env: int) -> bool:
        """Whether a run with these test domains counts for the choice on `test_env`."""
        return test_env in test_envs and len(test_envs) in ((1, 2) if self.needs_pairs else (1,))


def register(method: SelectionMethod) -> SelectionMethod:
    """Registers `method` under its short name, and returns it."""
    SELECTION_METHODS.register(method, name=method.name)
    return method


@dataclass(frozen=True)
class SingleDomainRecords:
    """The records of runs with one test domain, ordered by run and step; row i of each is one.

    Attributes:
        keys: `SEED_KEYS`, `step`, and the test domain's in-split accuracy `test_acc`.
        in_split, out_split: accuracies in [0, 1], (records, domains), or NaN.
        test_env: the test domain.
        num_domains: how many domains the record knows.
    """

    keys: pd.DataFrame
    in_split: np.ndarray
    out_split: np.ndarray
    test_env: np.ndarray
    num_domains: np.ndarray

    def only(self, wanted: np.ndarray) -> SingleDomainRecords:
        """The records where `wanted` is true."""
        arrays = (self.in_split, self.out_split, self.test_env, self.num_domains)
        return SingleDomainRecords(self.keys[wanted], *(array[wanted] for array in arrays))

    def scores(self, val_acc: np.ndarray) -> pd.DataFrame:
        """The table of `SCORE_COLUMNS` with these validation accuracies."""
        return self.keys.assign(val_acc=val_acc)[SCORE_COLUMNS]


def single_domain_records(records: Records) -> SingleDomainRecords:
    """The records of runs with one test domain."""
    keys, found = records_of_runs(records, [len(envs) == 1 for envs in records.runs["test_envs"]])
    test_env = np.array([envs[0] for envs in keys["test_envs"]], dtype=int)
    keys = keys.assign(test_env=test_env, test_acc=pick(found.in_split, test_env))
    count = keys["num_domains"].to_numpy(dtype=int)
    return SingleDomainRecords(keys, found.in_split, found.out_split, test_env, count)


def records_of_runs(records: Records, wanted: list[bool]) -> tuple[pd.DataFrame, Accuracies]:
    """Of the wanted runs, for each record the run's columns with `step`, and the accuracies."""
    found = records.accuracies
    found = found.only(np.array(wanted, dtype=bool)[found.run])
    columns = ["trial_seed", "dataset", "algorithm", "hparams_seed", "test_envs", "num_domains"]
    keys = records.runs[columns].iloc[found.run].reset_index(drop=True)
    return keys.assign(step=found.step), found


def pick(values: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """One value of each row: `values[row, columns[row]]`."""
    return values[np.arange(len(values)), columns]


def mean_over_others(values: np.ndarray, test_env: np.ndarray, count: np.ndarray) -> np.ndarray:
    """Each row's mean over the domains 0 … count − 1 without the test domain; NaN if none is left.

    The rows are summed as `np.mean` sums a list, so that ties are ties to the last bit.
    """
    means = np.full(len(values), np.nan)
    for test, domains in {*zip(test_env.tolist(), count.tolist(), strict=True)}:
        others = [i for i in range(domains) if i != test]
        rows = (test_env == test) & (count == domains)
        if others:  # contiguous rows: else numpy adds in another order when there are many domains
            means[rows] = np.ascontiguousarray(values[rows][:, others]).sum(axis=1) / len(others)
    return means


def best_step(candidates: pd.DataFrame) -> pd.DataFrame:
    """For each hparams seed the candidate with the highest `val_acc`; the earliest of equals."""
    keys: list[Any] = [*SEED_KEYS, "val_acc", "step"]
    ascending = [True] * len(SEED_KEYS) + [False, True]
    best_first = candidates.sort_values(keys, ascending=ascending, kind="stable")
    return best_first.drop_duplicates(SEED_KEYS, ignore_index=True)
