"""The selection methods of Gulrajani and Lopez-Paz 2021, section 3, and their contract."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from domainbed.core.registry import Registry
from domainbed.runs.records import RUN_KEYS, AccuracyTable, Records, pick

CELL_KEYS = ["trial_seed", "dataset", "algorithm", "test_env"]
SEED_KEYS = [*CELL_KEYS, "hparams_seed"]
STEP_KEYS = [*SEED_KEYS, "step"]
SCORE_COLUMNS = [*STEP_KEYS, "val_acc", "test_acc"]


def _check(entry: Any) -> None:
    if not isinstance(entry, SelectionMethod):
        raise ValueError(f"{entry!r} is no domainbed.selection.SelectionMethod")


SELECTION_METHODS: Registry[SelectionMethod] = Registry(
    "selection method", entry_point_group="domainbed.selection_methods", check=_check
)


@dataclass(frozen=True)
class SelectionMethod:
    """A way to choose a step and a hyper-parameter seed.

    Attributes:
        name: short name, for the command line.
        title: the name in the paper and in the tables.
        needs_pairs: whether runs with two test domains are needed too.
        reads: the least `eval_splits` with which runs record everything that it needs.
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


def score_training_domain(records: Records) -> pd.DataFrame:
    """Scores each hparams seed by its best step on held-out data of the training domains.

    The validation accuracy of a step is the mean out-split accuracy over the training domains.
    Only runs with a single test domain count.
    """
    singles = records.of_single_domains
    val_acc = mean_over_others(singles.out_split, singles.keys)
    return best_step(singles.keys.assign(val_acc=val_acc))


def score_leave_one_out(records: Records) -> pd.DataFrame:
    """Scores each hparams seed by its best step on runs that leave out one more domain.

    For test domain t, a step's validation accuracy is the mean, over the other domains d, of the
    in-split accuracy on d of the run whose test domains are {t, d}. The test accuracy is that of
    the run whose only test domain is t. A step counts only if all these runs have recorded it,
    the single one exactly once. Runs that left out some of these accuracies, with `eval_splits`
    "best", do not count: what they have are chosen steps.
    """
    singles = records.of_single_domains
    singles = singles.only(_is_of_whole_run(singles.keys, singles.keys["test_acc"].to_numpy()))
    singles = singles.only(~singles.keys.duplicated(STEP_KEYS, keep=False))
    held_out = _held_out_accuracies(singles, _pair_records(records))
    val_acc = mean_over_others(held_out, singles.keys)
    return best_step(singles.keys.assign(val_acc=val_acc).dropna(subset=["val_acc"]))


def _is_of_whole_run(keys: pd.DataFrame, values: np.ndarray) -> np.ndarray:
    """For each record whether its run has a number at all its records."""
    lacks = np.isnan(values)
    if not lacks.any():
        return ~lacks
    runs = pd.MultiIndex.from_frame(keys[RUN_KEYS])
    return ~runs.isin(runs[lacks])


def _pair_records(records: Records) -> pd.DataFrame:
    """Every record of a run on {a, b} twice: as a validation of a on b, and of b on a."""
    test_envs = records.accuracies.keys["test_envs"]
    pairs = records.accuracies.only([len(envs) == 2 and envs[0] != envs[1] for envs in test_envs])
    envs = np.array(pairs.keys["test_envs"].tolist(), dtype=int).reshape(-1, 2)
    whole = _is_of_whole_run(
        pairs.keys, pick(pairs.in_split, envs[:, 0]) + pick(pairs.in_split, envs[:, 1])
    )
    pairs, envs = pairs.only(whole), envs[whole]
    sides = [
        pairs.keys.assign(
            test_env=envs[:, t], val_env=envs[:, v], val_acc=pick(pairs.in_split, envs[:, v])
        )
        for t, v in ((0, 1), (1, 0))
    ]
    return pd.concat(sides, ignore_index=True)


def _held_out_accuracies(singles: AccuracyTable, pairs: pd.DataFrame) -> np.ndarray:
    """For each single record the validation accuracy on each other domain, or NaN if missing.

    If a pair was recorded twice the later record counts, as numpy keeps the last assignment.
    """
    held_out = np.full(singles.in_split.shape, np.nan)
    index = pd.MultiIndex.from_frame(singles.keys[STEP_KEYS])
    rows = index.get_indexer(pd.MultiIndex.from_frame(pairs[STEP_KEYS]))
    wanted = pairs[rows >= 0]
    held_out[rows[rows >= 0], wanted["val_env"]] = wanted["val_acc"]
    return held_out


def score_oracle(records: Records) -> pd.DataFrame:
    """Scores each hparams seed by the test domain's out-split accuracy at the last step.

    There is no early stopping: a method that sees the test domain may not look often. Only runs
    with a single test domain count, and of those that measure it at their last step alone, only
    those that have come there.
    """
    singles = records.of_single_domains
    val_acc = pick(singles.out_split, singles.keys["test_env"].to_numpy())
    scores = singles.keys.assign(val_acc=val_acc)[SCORE_COLUMNS]
    in_order = scores.sort_values([*SEED_KEYS, "step"], kind="stable")
    last = in_order.drop_duplicates(SEED_KEYS, keep="last")
    return last.dropna(subset=["val_acc", "test_acc"]).reset_index(drop=True)


# The order of the tables.
TRAINING_DOMAIN = register(
    SelectionMethod(
        name="training-domain",
        title="training-domain validation set",
        needs_pairs=False,
        score=score_training_domain,
        reads="best",
    )
)
LEAVE_ONE_OUT = register(
    SelectionMethod(
        name="leave-one-domain-out",
        title="leave-one-domain-out cross-validation",
        needs_pairs=True,
        score=score_leave_one_out,
        reads="selection",
    )
)
ORACLE = register(
    SelectionMethod(
        name="oracle",
        title="test-domain validation set (oracle)",
        needs_pairs=False,
        score=score_oracle,
        reads="best",
        chooses_last=True,
    )
)
