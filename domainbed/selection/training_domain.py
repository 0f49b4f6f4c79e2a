"""Selection on held-out data of the training domains (Gulrajani and Lopez-Paz 2021, section 3)."""

from __future__ import annotations

import pandas as pd

from domainbed.runs.records import Records
from domainbed.selection.base import (
    SelectionMethod,
    best_step,
    mean_over_others,
    register,
)


def score_training_domain(records: Records) -> pd.DataFrame:
    """Scores each hparams seed by its best step.

    The validation accuracy of a step is the mean out-split accuracy over the training domains.
    Only runs with a single test domain count.
    """
    singles = records.of_single_domains
    val_acc = mean_over_others(singles.out_split, singles.keys)
    return best_step(singles.keys.assign(val_acc=val_acc))


TRAINING_DOMAIN = register(
    SelectionMethod(
        name="training-domain",
        title="training-domain validation set",
        needs_pairs=False,
        score=score_training_domain,
        reads="best",
    )
)
