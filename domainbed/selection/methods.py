"""The selection methods of Gulrajani and Lopez-Paz 2021, section 3, two more, and their contract.

A method chooses by the records' `selection_metric`, and never asks for its direction: in
`Records.table` and `Records.of_single_domains` the higher of two values is the better one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from domainbed.core.registry import Registry
from domainbed.errors import UserError
from domainbed.metrics import recorded_names, selecting_metric
from domainbed.runs.records import RUN_KEYS, MetricTable, Records, pick

CELL_KEYS = ["trial_seed", "dataset", "algorithm", "test_env"]
SEED_KEYS = [*CELL_KEYS, "hparams_seed"]
STEP_KEYS = [*SEED_KEYS, "step"]
SCORE_COLUMNS = [*STEP_KEYS, "val", "test"]


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
            step, its validation `val`, of which the higher is the better one, and `test`, the
            reported metric on the test domain.
        chooses_last: whether it chooses the last step of every run.
        suffix: what stands behind the name of the selection metric in that of the value that it
            chooses by.
    """

    name: str
    title: str
    needs_pairs: bool
    score: Callable[[Records], pd.DataFrame]
    reads: str = "needed"
    chooses_last: bool = False
    suffix: str = ""

    def chooses_by(self, metric: str) -> str:
        """The name in records of what it chooses by, where `metric` is to select."""
        return metric if metric.endswith(self.suffix) else metric + self.suffix

    def require(self, asked: str | None, labels: str, metrics: Sequence[str]) -> None:
        """Makes sure that runs record what it chooses by; arguments as of `selecting_metric`.

        Raises:
            UserError: they do not.
        """
        by = self.chooses_by(selecting_metric(asked, labels, metrics))
        if by not in recorded_names(metrics):
            raise UserError(
                f"{self.name} chooses by {by}, and the runs record {', '.join(metrics)}: add it to "
                "metrics, or set another selection_metric",
                "metrics",
            )

    def rank(self, records: Records) -> pd.DataFrame:
        """The scores of all hparams seeds, within each cell and trial from best to worst.

        Of equal validations the highest hparams seed comes first. `val` has the sign with which
        the selection metric was recorded.

        Raises:
            UserError: it chooses a step, and a metric is known of the last steps alone.
        """
        if records.of_last_steps and not self.chooses_last:
            raise UserError(
                f"{self.name} chooses a step, and {records.of_last_steps} is known of the last "
                "step of each run alone: choose --selection oracle"
            )
        if self.name not in records.rankings:  # comparisons ask for them many times
            keys = [*CELL_KEYS, "val", "hparams_seed"]
            ascending = [True] * len(CELL_KEYS) + [False, False]
            ranked = self.score(records).sort_values(keys, ascending=ascending, ignore_index=True)
            sign = -1 if records.lower_is_better else 1
            records.rankings[self.name] = ranked.assign(val=sign * ranked["val"])
        return records.rankings[self.name].copy()

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
    """For each hparams seed the candidate with the highest `val`; the earliest of equals."""
    keys: list[Any] = [*SEED_KEYS, "val", "step"]
    ascending = [True] * len(SEED_KEYS) + [False, True]
    best_first = candidates[SCORE_COLUMNS].sort_values(keys, ascending=ascending, kind="stable")
    return best_first.drop_duplicates(SEED_KEYS, ignore_index=True)


def score_training_domain(records: Records) -> pd.DataFrame:
    """Scores each hparams seed by its best step on held-out data of the training domains.

    The validation of a step is the mean over the training domains' out-splits. Only runs with a
    single test domain count.
    """
    singles = records.of_single_domains
    return best_step(singles.keys.assign(val=mean_over_others(singles.out_split, singles.keys)))


def score_worst_domain(records: Records) -> pd.DataFrame:
    """As `score_training_domain`, but the validation is the worst of the training domains."""
    singles = records.of_single_domains
    others = singles.out_split.copy()
    others[np.arange(len(others)), singles.keys["test_env"]] = np.nan
    return best_step(singles.keys.assign(val=pd.DataFrame(others).min(axis=1).to_numpy()))


def score_worst_part(name: str, records: Records) -> pd.DataFrame:
    """As `score_training_domain`, by the worst group of samples, or class, in each out-split.

    Args:
        name: of the selection method.
        records: of all runs.

    Raises:
        UserError: the runs did not record it.
    """
    metric = records.selection_metric
    worst = SELECTION_METHODS[name].chooses_by(metric)
    if not (records.values["metric"] == worst).any():
        of = "group, on data whose samples have groups" if name == "worst-group" else "class"
        raise UserError(
            f"{name} selects by {worst}, which no run recorded: train with --metrics "
            f"{metric} {metric}_by_{of}"
        )
    return score_training_domain(replace(records, selection_metric=worst))


def score_leave_one_out(records: Records) -> pd.DataFrame:
    """Scores each hparams seed by its best step on runs that leave out one more domain.

    For test domain t, a step's validation is the mean, over the other domains d, of the metric on
    the in-split of d in the run whose test domains are {t, d}. What is reported is of the run
    whose only test domain is t. A step counts only if all these runs have recorded it, the single
    one exactly once. Runs that left out some of these values, with `eval_splits` "best", do not
    count: what they have are chosen steps.
    """
    singles = records.of_single_domains
    singles = singles.only(_is_of_whole_run(singles.keys, singles.keys["test"].to_numpy()))
    singles = singles.only(~singles.keys.duplicated(STEP_KEYS, keep=False))
    val = mean_over_others(_held_out(singles, _pair_records(records)), singles.keys)
    return best_step(singles.keys.assign(val=val).dropna(subset=["val"]))


def _is_of_whole_run(keys: pd.DataFrame, values: np.ndarray) -> np.ndarray:
    """For each record whether its run has a number at all its records."""
    lacks = np.isnan(values)
    if not lacks.any():
        return ~lacks
    runs = pd.MultiIndex.from_frame(keys[RUN_KEYS])
    return ~runs.isin(runs[lacks])


def _pair_records(records: Records) -> pd.DataFrame:
    """Every record of a run on {a, b} twice: as a validation of a on b, and of b on a."""
    test_envs = records.table.keys["test_envs"]
    pairs = records.table.only([len(envs) == 2 and envs[0] != envs[1] for envs in test_envs])
    envs = np.array(pairs.keys["test_envs"].tolist(), dtype=int).reshape(-1, 2)
    whole = _is_of_whole_run(
        pairs.keys, pick(pairs.in_split, envs[:, 0]) + pick(pairs.in_split, envs[:, 1])
    )
    pairs, envs = pairs.only(whole), envs[whole]
    sides = [
        pairs.keys.assign(
            test_env=envs[:, t], val_env=envs[:, v], val=pick(pairs.in_split, envs[:, v])
        )
        for t, v in ((0, 1), (1, 0))
    ]
    return pd.concat(sides, ignore_index=True)


def _held_out(singles: MetricTable, pairs: pd.DataFrame) -> np.ndarray:
    """For each single record the validation on each other domain, or NaN if missing.

    If a pair was recorded twice the later record counts, as numpy keeps the last assignment.
    """
    held_out = np.full(singles.in_split.shape, np.nan)
    index = pd.MultiIndex.from_frame(singles.keys[STEP_KEYS])
    rows = index.get_indexer(pd.MultiIndex.from_frame(pairs[STEP_KEYS]))
    wanted = pairs[rows >= 0]
    held_out[rows[rows >= 0], wanted["val_env"]] = wanted["val"]
    return held_out


def score_oracle(records: Records) -> pd.DataFrame:
    """Scores each hparams seed by the test domain's out-split at the last step.

    There is no early stopping: a method that sees the test domain may not look often. Only runs
    with a single test domain count, and of those that measure it at their last step alone, only
    those that have come there.
    """
    singles = records.of_single_domains
    val = pick(singles.out_split, singles.keys["test_env"].to_numpy())
    scores = singles.keys.assign(val=val)[SCORE_COLUMNS]
    in_order = scores.sort_values([*SEED_KEYS, "step"], kind="stable")
    last = in_order.drop_duplicates(SEED_KEYS, keep="last")
    return last.dropna(subset=["val", "test"]).reset_index(drop=True)


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
register(
    SelectionMethod(
        name="worst-domain",
        title="worst training domain's validation set",
        needs_pairs=False,
        score=score_worst_domain,
    )
)
for _part in ("group", "class"):  # with the groups of validation samples, and without
    register(
        SelectionMethod(
            name=f"worst-{_part}",
            title=f"worst {_part} of the training-domain validation set",
            needs_pairs=False,
            score=partial(score_worst_part, f"worst-{_part}"),
            suffix=f"_worst_{_part}",
        )
    )
PUBLISHED_METHODS = (TRAINING_DOMAIN.name, LEAVE_ONE_OUT.name, ORACLE.name)
"""Those of the tables, where no others are asked for."""
