"""The tables of the report: results with methods side by side, comparisons, states of runs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import pandas as pd

from domainbed.core.names import order_algorithms, order_datasets
from domainbed.errors import UserError
from domainbed.reporting.published import SOURCES
from domainbed.reporting.published.agreement import agreement
from domainbed.reporting.render import cell_text
from domainbed.reporting.section import Section
from domainbed.reporting.style import Style
from domainbed.reporting.tables import MEAN_RANK, Cell, Column, Report, Table, domain_names
from domainbed.runs.states import DONE, STATES

MAX_ROWS = 2_000
"""More rows of a table are left out, which it says."""

BEST, NEAR, SECOND = "best", "near", "second"


class HtmlCell(NamedTuple):
    """A cell's text; `kind` names classes of the style sheet, `lines` are smaller and below."""

    text: str
    kind: str = ""
    lines: tuple[HtmlCell, ...] = ()


class Row(NamedTuple):
    """A row, and the algorithm that it is about, which the filter goes by; "" for none."""

    cells: list[HtmlCell]
    algorithm: str = ""


@dataclass(frozen=True)
class HtmlTable:
    """A table of the page.

    Attributes:
        title: its caption.
        header: the names of the columns.
        rows: as long as the header; the first cell is the row's name.
        groups: names over the columns, each with how many it spans; may be empty.
        texts: the positions of columns that hold no numbers, besides the first.
        notes: what is said below it.
        is_open: whether it is seen before somebody opens it.
    """

    title: str
    header: list[str]
    rows: list[Row]
    groups: Sequence[tuple[str, int]] = ()
    texts: Sequence[int] = ()
    notes: list[str] = field(default_factory=list)
    is_open: bool = False


Key = tuple[str, str, str, str, str]
"""Selection method, kind of table, dataset, algorithm and domain, as in `reporting.to_frame`."""

Published = Mapping[Key, list[tuple[str, Any]]]
"""By cell the papers that have a number for it, and the row of `agreement`."""


def published_cells(report: Report) -> dict[str, pd.DataFrame]:
    """By paper that has any of the cells, as from `agreement`."""
    found = {}
    for source in SOURCES:
        with suppress(UserError):  # it has none
            found[source] = agreement(report, source)
    return found


def result_tables(
    report: Report, papers: Mapping[str, pd.DataFrame] | None = None
) -> list[HtmlTable]:
    """The averages, then each dataset; in every table all selection methods side by side."""
    published: dict[Key, list[tuple[str, Any]]] = defaultdict(list)
    for source, cells in (papers or {}).items():
        for cell in cells.itertuples(index=False):
            published[cell[:5]].append((source, cell))
    subjects = sorted(dict.fromkeys(table.dataset for table in report.tables), key=bool)
    return [
        _results([t for t in report.tables if t.dataset == subject], published, report.style)
        for subject in subjects
    ]


def _results(tables: Sequence[Table], published: Published, style: Style | None) -> HtmlTable:
    first = tables[0]
    rows, keys = [], []
    for algorithm in first.rows:
        cells = [HtmlCell(algorithm)]
        for table in tables:
            for place, column in enumerate(table.columns):
                cell = table.rows[algorithm][place]
                keys.append(_key(table, algorithm, column))
                printed = (_published_line(*each) for each in published.get(keys[-1], ()))
                mark = _mark(cell, _best(table, place), column, style)
                cells.append(HtmlCell(_text(cell, style), mark, (*_notes(cell), *printed)))
        rows.append(Row(cells, algorithm))
    header = ["Algorithm", *(column.label for table in tables for column in table.columns)]
    groups = [("", 1), *((table.title, len(table.columns)) for table in tables)]
    sources = {source for key in keys for source, _ in published.get(key, ())}
    notes = _published_note(source for source in SOURCES if source in sources)
    title = first.dataset or "Averages"
    return HtmlTable(title, header, rows, groups, notes=notes, is_open=True)


def _key(table: Table, algorithm: str, column: Column) -> Key:
    kind = "dataset" if table.dataset else "averages"
    domain = column.label if table.dataset else column.test_env
    return (table.selection, kind, column.dataset, algorithm, domain)


def _text(cell: Cell, style: Style | None) -> str:
    return _typeset(cell_text(cell, style))


def _best(table: Table, place: int) -> Cell | None:
    marked = [cells[place] for cells in table.rows.values() if cells[place].best]
    return max(marked, key=lambda cell: cell.mean or 0.0, default=None)


def _mark(cell: Cell, best: Cell | None, column: Column, style: Style | None) -> str:
    """Whether a number is the best of its column, or within its standard error of that.

    And whether it comes second, where that is to be seen.
    """
    if cell.mean is None or best is None or best.mean is None:
        return ""
    if cell.best:
        return BEST
    is_near = best.std_err is not None and best.mean - cell.mean <= best.std_err
    marks = [NEAR] if is_near and column.test_env != MEAN_RANK else []
    return " ".join([*marks, *([SECOND] if cell.second and style and style.second else [])])


def _notes(cell: Cell) -> list[HtmlCell]:
    runs = ", ".join(f"trial {trial}, hparams seed {seed}" for trial, seed in cell.diverged)
    found = [HtmlCell(f"* diverged: {runs}")] if runs else []
    return [*found, HtmlCell(f"not available: {cell.gap}")] if cell.gap else found


def _published_line(source: str, cell: Any) -> HtmlCell:
    """What a paper prints, by the paper's number in the note, and the verdict if there is one."""
    error = "" if pd.isna(cell.published_std_err) else f" ± {cell.published_std_err:.1f}"
    verdict = {True: ", agrees", False: ", differs", None: ""}[cell.within]
    number = list(SOURCES).index(source) + 1
    return HtmlCell(f"[{number}] {cell.published_mean:.1f}{error}{verdict}", "published")


def _published_note(sources: Iterable[str]) -> list[str]:
    numbers = {source: list(SOURCES).index(source) + 1 for source in sources}
    if not numbers:
        return []
    named = ", ".join(f"[{number}] {source}" for source, number in numbers.items())
    return [f"Printed by {named}. Agrees: within the combined standard errors; without a word: "
            "not compared, and the tables beside the papers say why."]  # fmt: skip


def from_section(section: Section, is_open: bool = False) -> HtmlTable:
    """A table of `domainbed compare`."""
    place = section.header.index("Algorithm") if "Algorithm" in section.header else None
    shown = [list(map(_typeset, texts)) for texts in section.rows[:MAX_ROWS]]
    rows = [
        Row(list(map(HtmlCell, texts)), "" if place is None else texts[place]) for texts in shown
    ]
    left_out = len(section.rows) - len(rows)
    more = [f"{left_out:,} more rows are left out"] if left_out else []
    header = [name[:1].upper() + name[1:] for name in section.header]
    columns = enumerate(section.of_numbers())
    named = [number for number, of_numbers in columns if number and not of_numbers]
    notes = [*map(_typeset, section.notes), *more]
    return HtmlTable(section.title, header, rows, (), named, notes, is_open)


def _typeset(text: str) -> str:
    return text.replace("+/-", "±")


def state_tables(counts: pd.DataFrame, runs: pd.DataFrame) -> list[HtmlTable]:
    """One table per dataset: algorithms by test domains, with how many runs are in which state."""
    tables = []
    for dataset in order_datasets(counts["dataset"]):
        of_dataset = counts[counts["dataset"] == dataset]
        names = domain_names(runs, dataset) if dataset in set(runs["dataset"]) else []
        columns = sorted(set(of_dataset["test_envs"]), key=lambda envs: (len(envs), envs))
        rows = []
        for algorithm in order_algorithms(of_dataset["algorithm"]):
            of_algorithm = of_dataset[of_dataset["algorithm"] == algorithm]
            by_envs = {
                envs: dict(zip(of_envs["state"], of_envs["runs"]))
                for envs, of_envs in of_algorithm.groupby("test_envs")
            }
            cells = [_state_cell(by_envs.get(envs, {})) for envs in columns]
            rows.append(Row([HtmlCell(algorithm), *cells], algorithm))
        header = ["Algorithm", *(_names(envs, names) for envs in columns)]
        tables.append(HtmlTable(dataset, header, rows, is_open=True))
    return tables


def _names(envs: tuple[int, ...], names: Sequence[str]) -> str:
    return " and ".join(names[env] if env < len(names) else str(env) for env in envs)


def _state_cell(counts: Mapping[str, int]) -> HtmlCell:
    there = [state for state in STATES if counts.get(state)]
    if not there:
        return HtmlCell("not planned", "unplanned")
    worst = next((state for state in reversed(there) if state != DONE), DONE)
    return HtmlCell(", ".join(f"{counts[state]} {state}" for state in there), worst)
