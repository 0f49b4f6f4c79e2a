"""How tables are printed: the order of rows and columns, decimals, what stands behind ±."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from domainbed.errors import UserError
from domainbed.reporting.tables import AVERAGE, Cell, Column, Report, Table, mark_best

ORDERS = ("table", "given", "mean")
SPREADS = {"se": "standard error", "ci95": "half of the 95 % interval", "none": ""}
"""What may stand behind ±, and what it is called."""


@dataclass(frozen=True)
class Style:
    """What a paper wants its tables to look like; the default is DomainBed's.

    Attributes:
        decimals: of every number; the best of a column is the best of what is printed.
        spread: what stands behind ±: "se", the standard error, "ci95", half of a 95 % interval of
            Student's t over trials, or "none".
        second: whether the second best of each column is underlined, where a format can.
        order: of rows and tables: "table", "given" (that of `algorithms` and `datasets`), or
            "mean", in each table the best average first.
        algorithms: for the order "given"; those that are not named follow.
        datasets: likewise.
        domains: the names of domains that come first, in this order.

    Raises:
        UserError: a value is none of these.
    """

    decimals: int = 1
    spread: str = "se"
    second: bool = False
    order: str = "table"
    algorithms: Sequence[str] = field(default=())
    datasets: Sequence[str] = field(default=())
    domains: Sequence[str] = field(default=())

    def __post_init__(self) -> None:
        if not 0 <= self.decimals <= 9:
            raise UserError(f"--decimals {self.decimals}: give a number from 0 to 9")
        for name, known in (("spread", SPREADS), ("order", ORDERS)):
            if getattr(self, name) not in known:
                raise UserError(f"--{name} {getattr(self, name)}: choose {', '.join(known)}")

    def spread_of(self, cell: Cell) -> float | None:
        """What stands behind ±, in percent; None for nothing."""
        if self.spread == "none" or cell.std_err is None:
            return None
        return half_interval(cell.values) if self.spread == "ci95" else cell.std_err


def half_interval(values: Sequence[float]) -> float | None:
    """Half of the 95 % interval of a mean, by Student's t; None of fewer than two values."""
    from scipy.special import stdtrit  # `scipy.stats` would take a second to import

    n = len(values)
    if n < 2:
        return None
    return float(stdtrit(n - 1, 0.975) * np.std(values, ddof=1) / np.sqrt(n))


def styled(report: Report, style: Style) -> Report:
    """The report in another style; its numbers are the same.

    Raises:
        UserError: `style.domains` names one that no table has.
    """
    known = {c.label for table in report.tables if table.dataset for c in table.columns}
    known -= {AVERAGE}
    for name in style.domains:
        if name not in known:
            raise UserError(
                f"no table has the domain {name!r}: there are {', '.join(sorted(known))}"
            )
    tables = [_styled(table, style) for table in report.tables]
    if style.order == "given":
        methods = {method.name: number for number, method in enumerate(report.methods)}
        tables.sort(key=lambda table: (methods[table.selection], _place(table.dataset, style)))
    return replace(report, tables=tables, style=style)


def _place(dataset: str | None, style: Style) -> int:
    """Of a dataset's table among those of its method; the averages come last."""
    return _rank(dataset, style.datasets) + (dataset is None)


def _rank(name: str | None, given: Sequence[str]) -> int:
    names: list[str | None] = [*given]
    return names.index(name) if name in names else len(names)


def _styled(table: Table, style: Style) -> Table:
    columns = sorted(range(len(table.columns)), key=lambda i: _column_rank(table, i, style))
    rows = {
        name: [table.rows[name][i] for i in columns]
        for name in sorted(table.rows, key=lambda name: _row_rank(table, name, style))
    }
    rows = mark_best(rows, ranks=table.dataset is None, decimals=style.decimals)
    return replace(table, columns=[table.columns[i] for i in columns], rows=rows)


def _column_rank(table: Table, position: int, style: Style) -> int:
    """Columns of averages stay where they are, at the end."""
    column: Column = table.columns[position]
    if table.dataset is not None:
        return _rank(column.label, style.domains) + (column.label == AVERAGE)
    given = style.datasets if style.order == "given" else ()
    return _rank(column.dataset, given) + (column.dataset == AVERAGE)


def _row_rank(table: Table, name: str, style: Style) -> float:
    if style.order == "given":
        return _rank(name.rpartition(" [")[0] or name, style.algorithms)
    if style.order == "mean":
        labels = [column.label for column in table.columns]
        mean = table.rows[name][labels.index(AVERAGE)].mean
        return np.inf if mean is None else -mean
    return 0
