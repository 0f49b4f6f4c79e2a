"""The tables of the report: results with methods side by side, comparisons, states of runs."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

import pandas as pd

from domainbed.core.names import order_algorithms, order_datasets
from domainbed.errors import UserError
from domainbed.reporting.page.html import HtmlCell, HtmlTable, Row
from domainbed.reporting.published import SOURCES
from domainbed.reporting.published.agreement import agreement
from domainbed.reporting.render import cell_text
from domainbed.reporting.section import Section
from domainbed.reporting.tables import (
    Cell,
    Report,
    Style,
    Table,
    domain_names,
)
from domainbed.runs.states import DONE, STATES

MAX_ROWS = 2_000
"""A table leaves out further rows, and says so."""

FEW = 5
"""The best of fewer trials is not coloured: other trials may have another best."""

_NUMBERS = {source: number for number, source in enumerate(SOURCES, start=1)}


def published_cells(report: Report) -> dict[str, pd.DataFrame]:
    """The tables of `agreement`, by paper that has any of the cells."""
    found = {}
    for source in SOURCES:
        with suppress(UserError):  # it has none
            found[source] = agreement(report, source)
    return found


def result_tables(
    report: Report, papers: Mapping[str, pd.DataFrame] | None = None
) -> list[HtmlTable]:
    """The averages, then each dataset; in every table all selection methods side by side.

    One dataset is its own average, and has one table.
    """
    printed = defaultdict(list)
    for source, cells in (papers or {}).items():
        for cell in cells.itertuples(index=False):
            printed[cell[:5]].append(_published_line(source, cell))
    named = ", ".join(f"[{_NUMBERS[source]}] {source}" for source in papers or {})
    note = (
        f"Printed by {named}. Agrees: within the combined standard errors; without a word: not "
        "compared, and the tables beside the papers say why."
    )
    subjects = sorted(dict.fromkeys(table.dataset for table in report.tables), key=bool)
    if len(subjects) == 2:
        subjects = subjects[1:]
        for key, lines in list(printed.items()):
            if key[1] == "averages":
                place = (key[0], "dataset", *key[2:])
                of_papers = {line.text.split()[0]: line for line in [*printed[place], *lines]}
                printed[place] = list(of_papers.values())
    return [
        _results([t for t in report.tables if t.dataset == subject], printed, note, report.style)
        for subject in subjects
    ]


def _results(
    tables: Sequence[Table],
    printed: Mapping[tuple[str, ...], list[HtmlCell]],
    note: str,
    style: Style,
) -> HtmlTable:
    """The tables of one dataset beside each other, with what papers print below the numbers."""
    rows = {algorithm: [HtmlCell(algorithm)] for algorithm in tables[0].rows}
    notes: list[str] = []
    for table in tables:
        kind = "dataset" if table.dataset else "averages"
        for place, column in enumerate(table.columns):
            domain = column.label if table.dataset else column.test_env
            for algorithm, cells in table.rows.items():
                cell = cells[place]
                key = (table.selection, kind, column.dataset, algorithm, domain)
                published = printed.get(key, [])
                notes = [note] if published else notes
                text, below = _typeset(cell_text(cell, style)), [*_below(cell), *published]
                rows[algorithm].append(HtmlCell(text, _mark(cell, style), below))
    header = ["Algorithm", *(column.label for table in tables for column in table.columns)]
    return HtmlTable(
        tables[0].dataset or "Averages",
        header,
        [Row(cells, algorithm) for algorithm, cells in rows.items()],
        [("", 1), *((table.title, len(table.columns)) for table in tables)],
        notes=notes,
        is_open=True,
    )


def _mark(cell: Cell, style: Style) -> str:
    """Whether a number is the best of its column, near it, or the second, if that is shown."""
    marks = {
        "best": cell.best,
        "near": cell.near,
        "second": cell.second and style.second,
        "weak": (cell.best or cell.near) and cell.n_trials < FEW,
    }
    return " ".join(name for name, applies in marks.items() if applies)


def _below(cell: Cell) -> list[HtmlCell]:
    """Which runs of a cell diverged, and why it is empty."""
    runs = ", ".join(f"trial {trial}, hparams seed {seed}" for trial, seed in cell.diverged)
    found = [HtmlCell(f"* diverged: {runs}")] if runs else []
    return [*found, HtmlCell(f"not available: {cell.gap}")] if cell.gap else found


def _published_line(source: str, cell: Any) -> HtmlCell:
    """What a paper prints, by the paper's number in the note, and the verdict if there is one."""
    error = "" if pd.isna(cell.published_std_err) else f" ± {cell.published_std_err:.1f}"
    verdict = {True: ", agrees", False: ", differs", None: ""}[cell.within]
    return HtmlCell(f"[{_NUMBERS[source]}] {cell.published_mean:.1f}{error}{verdict}", "published")


def from_section(section: Section, is_open: bool = False) -> HtmlTable:
    """A table of `domainbed compare`."""
    place = section.header.index("Algorithm") if "Algorithm" in section.header else None
    shown = [list(map(_typeset, texts)) for texts in section.rows[:MAX_ROWS]]
    rows = [
        Row(list(map(HtmlCell, texts)), "" if place is None else texts[place]) for texts in shown
    ]
    header = [name[:1].upper() + name[1:] for name in section.header]
    named = [n for n, of_numbers in enumerate(section.of_numbers()) if n and not of_numbers]
    notes = list(map(_typeset, section.notes))
    if left_out := len(section.rows) - len(rows):
        notes.append(f"{left_out:,} more rows are left out")
    return HtmlTable(section.title, header, rows, (), named, notes, is_open)


def _typeset(text: str) -> str:
    return text.replace("+/-", "±")


def state_tables(counts: pd.DataFrame, runs: pd.DataFrame) -> Iterator[HtmlTable]:
    """One table per dataset: algorithms by test domains, with how many runs are in which state."""
    for dataset in order_datasets(counts["dataset"]):
        of_dataset = counts[counts["dataset"] == dataset]
        names = domain_names(runs, dataset) if dataset in set(runs["dataset"]) else []
        columns = sorted(set(of_dataset["test_envs"]), key=lambda envs: (len(envs), envs))
        states = {
            key: dict(zip(of_cell["state"], of_cell["runs"]))
            for key, of_cell in of_dataset.groupby(["algorithm", "test_envs"])
        }
        rows = []
        for name in order_algorithms(of_dataset["algorithm"]):
            cells = [_state_cell(states.get((name, envs), {})) for envs in columns]
            rows.append(Row([HtmlCell(name), *cells], name))
        header = ["Algorithm", *(_names(envs, names) for envs in columns)]
        yield HtmlTable(dataset, header, rows, is_open=True)


def _names(envs: tuple[int, ...], names: Sequence[str]) -> str:
    return " and ".join(names[env] if env < len(names) else str(env) for env in envs)


def _state_cell(counts: Mapping[str, int]) -> HtmlCell:
    there = [state for state in STATES if counts.get(state)]
    if not there:
        return HtmlCell("not planned", "unplanned")
    worst = next((state for state in reversed(there) if state != DONE), DONE)
    return HtmlCell(", ".join(f"{counts[state]} {state}" for state in there), worst)
