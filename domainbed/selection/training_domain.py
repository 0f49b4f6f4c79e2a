"""Selection on held-out data of the training domains (Gulrajani and Lopez-Paz 2021, section 3)."""

from __future__ import annotations

import pandas as pd

from domainbed.selection.base import (
    SelectionMethod,
    accuracies,
    best_step,
    mean_over_others,
    num_domains,
    register,
    single_domain_records,
)


def score_training_domain(records: pd.DataFrame) -> pd.DataFrame:
    """Scores each hparams seed by its best step.

    The validation accuracy of a step is the mean out-split accuracy over the training domains.
    Only runs with a single test domain count.
    """
    runs = single_domain_records(records)
    test_env = runs["test_env"].to_numpy()
    val_acc = mean_over_others(accuracies(runs, "out"), test_env, num_domains(runs))
    return best_step(runs.assign(val_acc=val_acc))


TRAINING_DOMAIN = register(
    SelectionMethod(
        name="training-domain",
        title="training-domain validation set",
        needs_pairs=False,
        score=score_training_domain,
    )
)
