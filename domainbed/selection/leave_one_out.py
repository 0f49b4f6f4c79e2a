"""Leave-one-domain-out cross-validation (Gulrajani and Lopez-Paz 2021, section 3)."""

from __future__ import annotations

import numpy as np
import pandas as pd

from domainbed.runs.records import RUN_KEYS, AccuracyTable, Records, pick
from domainbed.selection.base import (
    SEED_KEYS,
    SelectionMethod,
    best_step,
    mean_over_others,
    register,
)

STEP_KEYS = [*SEED_KEYS, "step"]


def score_leave_one_out(records: Records) -> pd.DataFrame:
    """Scores each hparams seed by its best step.

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


LEAVE_ONE_OUT = register(
    SelectionMethod(
        name="leave-one-domain-out",
        title="leave-one-domain-out cross-validation",
        needs_pairs=True,
        score=score_leave_one_out,
        reads="selection",
    )
)
