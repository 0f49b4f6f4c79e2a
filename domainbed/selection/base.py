"""What the selection methods share: the contract, and array operations over records."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from domainbed.core.registry import Registry
from domainbed.runs.records import Records

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
        reads: the least `eval_splits` of runs whose records it can choose from; of some test
            accuracies that are left out there, it reads none.
        score: a function from records to a table with `SCORE_COLUMNS`: for every (trial, dataset,
            algorithm, test domain, hparams seed) that can be scored one row, with the chosen
            step and its validation and test accuracy in [0, 1].
        chooses_last: whether it chooses the last step of every run.
    """

    name: str
    title: str
    needs_pairs: bool
    score: Callable[[Records], pd.DataFrame]
    reads: str = "needed"
    chooses_last: bool = False

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
        return test_env in test_envs and self.counts(test_envs)

    def counts(self, test_envs: tuple[int, ...]) -> bool:
        """Whether a run with these test domains counts for any choice."""
        return len(test_envs) in ((1, 2) if self.needs_pairs else (1,))


def register(method: SelectionMethod) -> SelectionMethod:
    """Registers `method` under its short name, and returns it."""
    SELECTION_METHODS.register(method, name=method.name)
    return method


def mean_over_others(values: np.ndarray, keys: pd.DataFrame) -> np.ndarray:
    """Each row's mean over its domains without the test domain; NaN if none is left.

    The rows are summed as `np.mean` sums a list, so that ties are ties to the last bit.
    """
    test_env, count = keys["test_env"].to_numpy(), keys["num_domains"].to_numpy()
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
    best_first = candidates[SCORE_COLUMNS].sort_values(keys, ascending=ascending, kind="stable")
    return best_first.drop_duplicates(SEED_KEYS, ignore_index=True)
