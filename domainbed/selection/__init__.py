"""Model selection: pure functions from a table of records to a choice.

The order of the imports is the order of the tables.
"""

# ruff: isort: off
from domainbed.selection.base import (
    CELL_KEYS,
    SELECTION_METHODS,
    SEED_KEYS,
    SelectionMethod,
    register,
)
from domainbed.selection.training_domain import TRAINING_DOMAIN
from domainbed.selection.leave_one_out import LEAVE_ONE_OUT
from domainbed.selection.oracle import ORACLE

__all__ = [
    "CELL_KEYS",
    "LEAVE_ONE_OUT",
    "ORACLE",
    "SEED_KEYS",
    "SELECTION_METHODS",
    "TRAINING_DOMAIN",
    "SelectionMethod",
    "register",
]
