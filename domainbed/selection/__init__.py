"""Model selection: pure functions from a table of records to a choice."""

from domainbed.selection.methods import (
    CELL_KEYS,
    LEAVE_ONE_OUT,
    ORACLE,
    PUBLISHED_METHODS,
    SEED_KEYS,
    SELECTION_METHODS,
    TRAINING_DOMAIN,
    SelectionMethod,
    best_step,
    mean_over_others,
    register,
)

__all__ = [
    "CELL_KEYS",
    "LEAVE_ONE_OUT",
    "ORACLE",
    "PUBLISHED_METHODS",
    "SEED_KEYS",
    "SELECTION_METHODS",
    "TRAINING_DOMAIN",
    "SelectionMethod",
    "best_step",
    "mean_over_others",
    "register",
]
