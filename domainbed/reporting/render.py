"""Rendering: a report as text, Markdown, LaTeX, CSV or JSON, in the style that is asked for."""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import partial
from typing import Any

import pandas as pd

from domainbed.core.registry import Registry
from domainbed.core.text_table import csv_text, json_text
from domainbed.errors import UserError
from domainbed.reporting import section
from domainbed.reporting.section import Section
from domainbed.reporting.tables import (
    AVERAGE,
    DOMAINBED_STYLE,
    Cell,
    Report,
    Style,
    Table,
    mark_best,
)

JSON_VERSION = 1
_OF_PRINT = ("second", "near", "decimals", "trials")  # attributes of cells that JSON leaves out
TEXT_WIDTH = 20  # of a column of a dataset's table
TEXT_WIDTH_AVERAGES = 10

RENDERERS: Registry[Callable[[Report], str]] = Registry("format")
"""By name, functions from a report to a text, which win over the format of all tables."""


def renderer(name: str, output: str | None = None) -> Callable[[Report], str]:
    """What makes a report a text in a format: its own function, or the format of all tables.

    Args:
        name: of the format.
        output: the file that the text goes to; None for stdout.

    Raises:
        UserError: no such format.
    """
    if name in RENDERERS and name != "text":
        return RENDERERS[name]
    return partial(_as_sections, section.section_renderer(name, output))


def _as_sections(render: Callable[..., str], report: Report) -> str:
    """Lines about the report, and each table as a section."""
    is_usual = all(map(_is_usual, report.tables))
    sections = [_section(table, report.style, is_usual) for table in report.tables]
    return render(sections, head(report))


for _name in ("text", "markdown", "latex"):
    RENDERERS.register(partial(_as_sections, section.SECTION_RENDERERS[_name]), name=_name)


@RENDERERS.register(name="csv")
def to_csv(report: Report) -> str:
    """One line per cell, with unrounded numbers; the columns are those of `to_frame`."""
    return csv_text(to_frame(report))


@RENDERERS.register(name="json")
def to_json(report: Report) -> str:
    """Nested by selection method, dataset (or "averages"), algorithm and column.

    Each cell has all its numbers, unrounded, and its printed `text`.
    """
    selections: dict[str, Any] = {}
    for table in report.tables:
        entry = selections.setdefault(table.selection, {"title": table.title, "datasets": {}})
        labels = [column.label for column in table.columns]
        rows = {
            name: {
                label: {
                    **{key: value for key, value in asdict(cell).items() if key not in _OF_PRINT},
                    "text": cell_text(cell, report.style),
                }
                for label, cell in zip(labels, cells, strict=True)
            }
            for name, cells in table.rows.items()
        }
        content = {"protocol": table.protocol, "columns": labels, "algorithms": rows}
        content |= {} if _is_usual(table) else _judges(table)
        if table.dataset:
            entry["datasets"][table.dataset] = content
        else:
            entry["averages" if _is_usual(table) else f"averages of {table.unit.metric}"] = content
    whole = {"version": JSON_VERSION, "total_records": len(report.records)}
    return json_text({**whole, "selections": selections})


def to_frame(report: Report) -> pd.DataFrame:
    """The report in long form, one row per cell.

    Columns: `selection`, `table` ("dataset" or "averages"), `dataset`, `algorithm`, `test_env`
    (number of the domain, "Avg" or "Mean rank"), `domain` (its name), the cell's `mean`,
    `std_err`, `n_trials` and printed `text`, and the `protocol` of the table's runs; where not all
    is accuracy also `metric` and `selection_metric`.
    """
    is_usual = all(map(_is_usual, report.tables))
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
            "text": cell_text(cell, report.style),
            "protocol": table.protocol,
            **({} if is_usual else _judges(table)),
        }
        for table in report.tables
        for algorithm, cells in table.rows.items()
        for column, cell in zip(table.columns, cells, strict=True)
    ]
    return pd.DataFrame(rows).astype({"mean": float, "std_err": float})


def _is_usual(table: Table) -> bool:
    return (table.unit.metric, table.selection_metric) == ("accuracy", "accuracy")


def _judges(table: Table) -> dict[str, str]:
    return {"metric": table.unit.metric, "selection_metric": table.selection_metric}


def cell_text(cell: Cell, style: Style = DOMAINBED_STYLE) -> str:
    """The cell as in "63.1 +/- 0.4"; X without a number, * if a run diverged."""
    if cell.mean is None:
        return "X"
    spread = style.spread_of(cell)
    decimals = cell.decimals if style.decimals is None else style.decimals
    error = "" if spread is None else f" +/- {spread:.{decimals}f}"
    return f"{cell.mean:.{decimals}f}{error}{'*' * bool(cell.diverged)}"


def head(report: Report) -> list[str]:
    """What is said above all tables: how many records, and under which protocol."""
    protocols = {table.dataset: table.protocol for table in report.tables if table.dataset}
    named = [f"{dataset}: {protocol}" for dataset, protocol in protocols.items()]
    shared = list(protocols.values())[:1] if len(set(protocols.values())) == 1 else named
    head = [f"Total records: {len(report.records)}", f"Protocol: {'; '.join(shared)}"]
    if report.style.spread == "ci95":
        head.append("+/-: half of the 95 % interval over trials (Student's t)")
    return head


def _section(table: Table, style: Style, is_usual: bool) -> Section:
    """The table as it is printed; the metric is named unless accuracy is the usual one."""
    parts = [table.dataset or "Averages", table.setting, "" if is_usual else table.unit.name]
    subject = ", ".join(filter(None, parts))
    title = f"{'Dataset: ' * bool(table.dataset)}{subject}, model selection method: {table.title}"
    title += "" if table.selection_metric == table.unit.metric else f" by {table.selection_metric}"
    rows = [
        [name, *(cell_text(cell, style) for cell in cells)] for name, cells in table.rows.items()
    ]
    marks = {
        (row, column): section.BEST if cell.best else section.SECOND
        for row, cells in enumerate(table.rows.values())
        for column, cell in enumerate(cells, start=1)
        if cell.best or (cell.second and style.second)
    }
    header = ["Algorithm", *(column.label for column in table.columns)]
    least = TEXT_WIDTH if table.dataset else TEXT_WIDTH_AVERAGES
    return Section("results", title, header, rows, _notes(table), pd.DataFrame(), marks, least)


def _notes(table: Table) -> list[str]:
    """Lines below a table that name the diverged runs in it, and say why cells cannot be."""
    found = [
        f"{algorithm} on {column.label} (trial {trial}, hparams seed {seed})"
        for algorithm, cells in table.rows.items()
        for column, cell in zip(table.columns, cells, strict=True)
        for trial, seed in cell.diverged
    ]
    notes = [f"* diverged: {', '.join(found)}"] if found else []
    whys = dict.fromkeys(cell.gap for cells in table.rows.values() for cell in cells if cell.gap)
    return [*notes, *(f"X, not available: {why}" for why in whys)]


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
        methods = [method.name for method in report.methods]
        tables.sort(  # the averages come last of a method's tables
            key=lambda table: (
                methods.index(table.selection),
                table.dataset is None,
                _place(table.dataset, style.datasets),
            )
        )
    return replace(report, tables=tables, style=style)


def _styled(table: Table, style: Style) -> Table:
    is_dataset, is_given = table.dataset is not None, style.order == "given"
    names = [column.label if is_dataset else column.dataset for column in table.columns]
    datasets = style.datasets if is_given else ()
    first = style.domains if is_dataset else datasets
    # Columns of averages stay where they are, at the end.
    columns = sorted(
        range(len(names)), key=lambda i: (names[i] == AVERAGE, _place(names[i], first))
    )
    rows = list(table.rows)
    if is_given:
        rows.sort(key=lambda name: _place(name.rpartition(" [")[0] or name, style.algorithms))
    elif style.order == "mean":
        average = names.index(AVERAGE)
        means = {name: cells[average].mean for name, cells in table.rows.items()}
        found = {name: table.unit.sign * mean for name, mean in means.items() if mean is not None}
        rows.sort(key=lambda name: -found.get(name, -math.inf))
    cells = {name: [table.rows[name][i] for i in columns] for name in rows}
    ordered = [table.columns[i] for i in columns]
    marked = mark_best(cells, ordered, table.unit.sign, style.decimals)
    return replace(table, columns=ordered, rows=marked)


def _place(name: str | None, given: Sequence[str]) -> int:
    """Where a name comes among those that are given, which the others follow."""
    return given.index(name) if name in given else len(given)
