"""Aggregation: from a table of records to the cells of the results tables."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from domainbed.errors import UserError
from domainbed.names import DATASET_DOMAINS, order_algorithms, order_datasets
from domainbed.selection import SELECTION_METHODS, SelectionMethod

log = logging.getLogger(__name__)

NO_RESULT = "X"
AVERAGE = "Avg"
MEAN_RANK = "Mean rank"

CellKey = tuple[str, str, int]  # dataset, algorithm, test domain
Accuracies = dict[CellKey, dict[int, float]]  # for each trial the selected test accuracy


@dataclass(frozen=True)
class Cell:
    """One number of a table.

    Attributes:
        mean: in percent, unrounded (in the column "Mean rank": a rank); None if there is none.
        std_err: the standard error over trials, in percent; None for averages of means.
        n_trials: how many trials the mean is over; for averages the smallest such number.
        text: what is printed.
        best: whether no other algorithm prints a better number in this column.
    """

    mean: float | None = None
    std_err: float | None = None
    n_trials: int = 0
    text: str = NO_RESULT
    best: bool = False


@dataclass(frozen=True)
class Column:
    """What a column is about: `test_env` is a domain's number, "Avg" or "Mean rank"."""

    label: str
    dataset: str
    test_env: str


@dataclass(frozen=True)
class Table:
    """The cells of one dataset (or, with `dataset` None, the averages) under one method."""

    selection: str
    title: str
    dataset: str | None
    columns: list[Column]
    rows: dict[str, list[Cell]]


@dataclass(frozen=True)
class Report:
    """All tables of a table of records, and what they were made from.

    Attributes:
        records: those in the tables.
        methods: the selection methods.
        tables: for each method one per dataset, then the averages.
        datasets, algorithms: the names that were asked for; None for all.
    """

    records: pd.DataFrame
    methods: list[SelectionMethod]
    tables: list[Table]
    datasets: Sequence[str] | None = None
    algorithms: Sequence[str] | None = None

    def wants(self, dataset: str, algorithm: str) -> bool:
        """Whether the report was asked for this dataset and algorithm."""
        return (self.datasets is None or dataset in self.datasets) and (
            self.algorithms is None or algorithm in self.algorithms
        )


def build_report(
    records: pd.DataFrame,
    selection: Sequence[str] | None = None,
    datasets: Sequence[str] | None = None,
    algorithms: Sequence[str] | None = None,
) -> Report:
    """Makes the tables of every selection method: one per dataset, then the averages.

    Args:
        records: as from `load_records`.
        selection: short names of selection methods; None for all.
        datasets: only these; None for all in the records.
        algorithms: only these; None for all in the records.

    Raises:
        UserError: a name is unknown, or no record is left. Cells without a result, or on fewer
            trials than others, are no error: they are counted in a warning.
    """
    names = list(SELECTION_METHODS) if selection is None else dict.fromkeys(selection)
    methods = [SELECTION_METHODS[name] for name in names]
    records = _only(_only(records, "dataset", datasets), "algorithm", algorithms)
    if records.empty:
        raise UserError(f"no records of {algorithms} on {datasets}: choose others")
    tables = [table for method in methods for table in _method_tables(records, method)]
    report = Report(records, methods, tables, datasets, algorithms)
    _warn_of_gaps(report)
    return report


def to_frame(report: Report) -> pd.DataFrame:
    """The report in long form, one row per cell.

    Columns: `selection`, `table` ("dataset" or "averages"), `dataset`, `algorithm`, `test_env`
    (number of the domain, "Avg" or "Mean rank"), `domain` (its name), and the cell's `mean`,
    `std_err`, `n_trials` and `text`.
    """
    rows = [
        {
            "selection": table.selection,
            "table": "dataset" if table.dataset else "averages",
            "dataset": column.dataset,
            "algorithm": algorithm,
            "test_env": column.test_env,
            "domain": column.label if table.dataset else column.test_env,
            "mean": cell.mean,
            "std_err": cell.std_err,
            "n_trials": cell.n_trials,
            "text": cell.text,
        }
        for table in report.tables
        for algorithm, cells in table.rows.items()
        for column, cell in zip(table.columns, cells, strict=True)
    ]
    return pd.DataFrame(rows).astype({"mean": float, "std_err": float})


def domain_names(records: pd.DataFrame, dataset: str) -> list[str]:
    """The names of a dataset's domains: as published, as recorded, or else their numbers."""
    of_dataset = records[records["dataset"] == dataset]
    names = list(DATASET_DOMAINS.get(dataset) or _recorded_names(of_dataset))
    count = max(len(names), int(of_dataset["num_domains"].max()))
    return names + [str(i) for i in range(len(names), count)]


def _recorded_names(records: pd.DataFrame) -> list[str]:
    for args in records["args"]:
        if isinstance(args.get("environments"), list):
            return [str(name) for name in args["environments"]]
    return []


def _only(records: pd.DataFrame, column: str, names: Sequence[str] | None) -> pd.DataFrame:
    if names is None:
        return records
    present = set(records[column])
    for name in names:
        if name not in present:
            known = ", ".join(sorted(present))
            raise UserError(f"no records of {column} {name!r}: the folder has {known or 'none'}")
    return records[records[column].isin(names)]


def _method_tables(records: pd.DataFrame, method: SelectionMethod) -> list[Table]:
    accuracies = selected_accuracies(records, method)
    datasets = order_datasets(records["dataset"])
    algorithms = order_algorithms(records["algorithm"])
    tables = []
    for dataset in datasets:
        names = domain_names(records, dataset)
        columns = [Column(name, dataset, str(env)) for env, name in enumerate(names)]
        columns.append(Column(AVERAGE, dataset, AVERAGE))
        rows = {name: _dataset_row(accuracies, dataset, name, len(names)) for name in algorithms}
        tables.append(Table(method.name, method.title, dataset, columns, _mark_best(rows)))
    columns = [Column(dataset, dataset, AVERAGE) for dataset in datasets]
    columns += [Column(label, AVERAGE, label) for label in (AVERAGE, MEAN_RANK)]
    rows = _averages_rows(accuracies, datasets, algorithms)
    tables.append(Table(method.name, method.title, None, columns, _mark_best(rows, ranks=True)))
    return tables


def selected_accuracies(records: pd.DataFrame, method: SelectionMethod) -> Accuracies:
    """For each (dataset, algorithm, test domain) the test accuracies by trial, in [0, 1].

    Trials come in ascending order, and within a trial the test domains too.
    """
    found: Accuracies = defaultdict(dict)
    chosen = method.select(records)
    columns = [chosen[name].tolist() for name in ("dataset", "algorithm", "test_env")]
    trials, test_accs = chosen["trial_seed"].tolist(), chosen["test_acc"].tolist()
    for *key, trial, test_acc in zip(*columns, trials, test_accs, strict=True):
        found[tuple(key)][trial] = test_acc
    return dict(found)


def _dataset_row(accuracies: Accuracies, dataset: str, algorithm: str, count: int) -> list[Cell]:
    trials = [accuracies.get((dataset, algorithm, env), {}) for env in range(count)]
    cells = [mean_over_trials(list(by_trial.values())) for by_trial in trials]
    return [*cells, mean_of_cells(cells)]


def _averages_rows(
    accuracies: Accuracies, datasets: list[str], algorithms: list[str]
) -> dict[str, list[Cell]]:
    by_trial: dict[tuple[str, str], dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for (dataset, algorithm, _), trials in sorted(accuracies.items()):
        for trial, accuracy in trials.items():
            by_trial[dataset, algorithm][trial].append(accuracy)
    rows = {}
    for algorithm in algorithms:
        trials_of = [by_trial[dataset, algorithm] for dataset in datasets]
        cells = [
            mean_over_trials([float(np.mean(trials[trial])) for trial in sorted(trials)])
            for trials in trials_of
        ]
        rows[algorithm] = [*cells, mean_of_cells(cells)]
    ranks = mean_ranks([[cell.mean for cell in cells[:-1]] for cells in rows.values()])
    for cells, rank in zip(rows.values(), ranks, strict=True):
        cells.append(Cell() if rank is None else replace(cells[-1], mean=rank, text=f"{rank:.1f}"))
    return rows


def mean_over_trials(accuracies: list[float]) -> Cell:
    """The mean ± standard error, in percent, of accuracies in [0, 1] of independent trials.

    The standard error is the population standard deviation over the square root of their number.
    The operations are in the published order, so that the last digit is the published one.
    """
    if not accuracies:
        return Cell()
    mean = float(100 * np.mean(accuracies))
    std_err = float(100 * np.std(np.array(accuracies) / np.sqrt(len(accuracies))))
    return Cell(mean, std_err, len(accuracies), f"{mean:.1f} +/- {std_err:.1f}")


def mean_of_cells(cells: list[Cell]) -> Cell:
    """The mean of the cells' unrounded means; no result if one of them has none."""
    means = [cell.mean for cell in cells if cell.mean is not None]
    if not means or len(means) < len(cells):
        return Cell()
    mean = _plain_mean(means)
    return Cell(mean, None, min(cell.n_trials for cell in cells), f"{mean:.1f}")


def mean_ranks(means: list[list[float | None]]) -> list[float | None]:
    """The mean rank of each row over the columns; None for a row that lacks a number.

    In each column the highest number has rank 1, and equal numbers share the mean of their ranks.
    """
    ranks = pd.DataFrame(means, dtype=float).rank(ascending=False).to_numpy()
    return [None if np.isnan(row).any() else _plain_mean(row.tolist()) for row in ranks]


def _plain_mean(values: list[float]) -> float:
    total = 0.0
    for value in values:  # from left to right: since Python 3.12 `sum` rounds differently
        total += value
    return total / len(values)


def _mark_best(rows: dict[str, list[Cell]], ranks: bool = False) -> dict[str, list[Cell]]:
    """Marks each column's highest printed mean; with `ranks`, the lowest in the last column."""
    marked: dict[str, list[Cell]] = {name: [] for name in rows}
    width = len(next(iter(rows.values())))
    for position in range(width):
        sign = -1 if ranks and position == width - 1 else 1
        column = {name: cells[position] for name, cells in rows.items()}
        shown = {
            name: sign * round(cell.mean, 1)
            for name, cell in column.items()
            if cell.mean is not None
        }
        top = max(shown.values(), default=None)
        for name, cell in column.items():
            marked[name].append(replace(cell, best=name in shown and shown[name] == top))
    return marked


def _warn_of_gaps(report: Report) -> None:
    """Says on the log how many cells have no result or lack trials."""
    empty = short = total = 0
    for table in report.tables:
        if table.dataset:
            expected = trials_of(report.records, table.dataset)
            counts = [cell.n_trials for cells in table.rows.values() for cell in cells[:-1]]
            total += len(counts)
            empty += sum(count == 0 for count in counts)
            short += sum(0 < count < len(expected) for count in counts)
    if empty or short:
        log.warning(
            "warning: of %d cells %d have no result and %d lack trials, and averages are over "
            "what is there: --explain says which runs are missing", total, empty, short,
        )  # fmt: skip


def trials_of(records: pd.DataFrame, dataset: str) -> list[int]:
    """The trial seeds that a dataset's records have, ascending."""
    return sorted(set(records.loc[records["dataset"] == dataset, "trial_seed"].tolist()))
