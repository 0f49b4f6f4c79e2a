"""Selection on held-out data of the test domain (Gulrajani and Lopez-Paz 2021, section 3)."""

from __future__ import annotations

import pandas as pd

from domainbed.runs.records import Records, pick
from domainbed.selection.base import (
    SCORE_COLUMNS,
    SEED_KEYS,
    SelectionMethod,
    register,
)


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
