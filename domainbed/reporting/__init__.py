"""Reporting: load the records of sweeps, aggregate them into tables, render, explain gaps."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from domainbed.reporting.explain import explain
from domainbed.reporting.load import Folders, load_records, planned_selection
from domainbed.reporting.render import RENDERERS, cell_text, to_frame
from domainbed.reporting.tables import Cell, Column, Report, Table, build_report

__all__ = [
    "RENDERERS",
    "Cell",
    "Column",
    "Report",
    "Table",
    "build_report",
    "cell_text",
    "collect",
    "explain",
    "load_records",
    "planned_selection",
    "to_frame",
]


def collect(
    folders: Folders,
    selection: Sequence[str] | None = None,
    datasets: Sequence[str] | None = None,
    algorithms: Sequence[str] | None = None,
) -> pd.DataFrame:
    """The results tables of one or several sweep folders, one row per cell.

    Args:
        folders: a sweep folder, a run folder, or a list of such.
        selection: short names of selection methods; None for all.
        datasets: only these; None for all that have records.
        algorithms: only these; None for all that have records.

    Returns:
        The table that `to_frame` describes; accuracies in percent, unrounded.

    Raises:
        UserError: a folder or a record is damaged, or a name is unknown.

    Example:
        >>> cells = collect("results/quickstart", selection=["oracle"])  # doctest: +SKIP
        >>> cells.pivot(index="algorithm", columns="test_env", values="mean")  # doctest: +SKIP
    """
    return to_frame(build_report(load_records(folders), selection, datasets, algorithms))
