"""Reporting: load the records of sweeps, aggregate them into tables, render, explain gaps."""

from collections.abc import Sequence

import pandas as pd

from domainbed.reporting.explain import explain, planned_gaps, planned_selection
from domainbed.reporting.render import RENDERERS, cell_text, to_frame
from domainbed.reporting.tables import Cell, Column, Report, Table, build_report, only
from domainbed.runs import exported  # it was a part of this room, and code imports it from here
from domainbed.runs.load import Folders, load_records
from domainbed.selection.judging import judged_alike

__all__ = [
    "RENDERERS",
    "Cell",
    "Column",
    "Report",
    "Table",
    "build_report",
    "cell_text",
    "collect",
    "compare",
    "explain",
    "exported",
    "load_records",
    "only",
    "planned_gaps",
    "planned_selection",
    "to_frame",
]


def collect(
    folders: Folders,
    selection: Sequence[str] | None = None,
    datasets: Sequence[str] | None = None,
    algorithms: Sequence[str] | None = None,
    metric: str | None = None,
    selection_metric: str | None = None,
) -> pd.DataFrame:
    """The results tables of one or several sweep folders, one row per cell.

    Args:
        folders: a sweep folder, a run folder, or a list of these.
        selection: short names of selection methods; None for those that a sweep was planned for.
        datasets: only these; None for all that have records.
        algorithms: only these; None for all that have records.
        metric: what is reported; None for the selection metric.
        selection_metric: what chooses; None for that of the runs, see `selection.judging.judged`.

    Returns:
        The table that `to_frame` describes; percentages in percent, unrounded.

    Raises:
        UserError: a folder or a record is damaged, or a name is unknown.

    Examples:
        >>> cells = collect("results/quickstart", selection=["oracle"])  # doctest: +SKIP
        >>> cells.pivot(index="algorithm", columns="test_env", values="mean")  # doctest: +SKIP
    """
    methods, gaps = selection or planned_selection(folders), planned_gaps(folders)
    asked = methods, datasets, algorithms, gaps, metric, selection_metric
    return to_frame(build_report(load_records(folders), *asked))


def compare(
    folders: Folders,
    selection: Sequence[str] | None = None,
    datasets: Sequence[str] | None = None,
    algorithms: Sequence[str] | None = None,
    baseline: str = "ERM",
    unit: str = "trial",
    rope: float | None = None,
    metric: str | None = None,
    selection_metric: str | None = None,
) -> pd.DataFrame:
    """Each algorithm's difference to a baseline, paired by dataset, test domain and trial.

    Args:
        folders: a sweep folder, a run folder, or a list of these.
        selection: short names of selection methods; None for those that a sweep was planned for.
        datasets: only these; None for all that have records.
        algorithms: only these, and the baseline; None for all that have records.
        baseline: what the others are compared with.
        unit: what wins and tests count as one observation: "trial", "domain" or "dataset".
        rope: differences up to it, in percentage points or in the unit of the metric, are
            practically none: adds a Bayesian test of that.
        metric: what is compared; None for the selection metric.
        selection_metric: what chooses; None for that of the runs, see `selection.judging.judged`.

    Returns:
        The table that `comparison.differences` describes, unrounded.

    Raises:
        UserError: a folder or a record is damaged, a name is unknown, nothing can be compared, or
            the datasets are judged by different metrics.

    Examples:
        >>> compare("results/quickstart", selection=["oracle"])  # doctest: +SKIP
    """
    from domainbed.reporting.comparison import differences  # SciPy's statistics take a second

    wanted = algorithms and list(dict.fromkeys([baseline, *algorithms]))
    records = only(load_records(folders), datasets, wanted)
    records = judged_alike(records, metric, selection_metric)
    return differences(records, selection or planned_selection(folders), baseline, unit, rope)
