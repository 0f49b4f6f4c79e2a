"""A sweep's numbers beside a paper's."""

from __future__ import annotations

from collections.abc import Sequence

from domainbed.reporting.beside import BesideCell, beside_frame
from domainbed.reporting.published import get_source
from domainbed.reporting.sections.section import Section
from domainbed.reporting.sections.texts import NOTHING, mean_text, one_decimal, with_sign


def beside_sections(cells: Sequence[BesideCell], source: str) -> list[Section]:
    """The sweep's numbers beside the paper's, one table per method and dataset."""
    paper, sections = get_source(source), []
    for (selection, dataset), group in _grouped(cells).items():
        rows = [
            [
                cell.algorithm,
                cell.domain if cell.table == "dataset" else cell.dataset,
                mean_text(cell.mean, cell.std_err),
                mean_text(cell.published_mean, cell.published_std_err),
                with_sign(cell.difference),
                one_decimal(cell.combined_std_err),
                _verdict(cell),
            ]
            for cell in group
        ]
        sections.append(
            Section(
                "beside",
                f"{dataset}, model selection method: {selection}, beside {paper.name}",
                ["Algorithm", "domain", "here", "published", "difference", "std err", "within it"],
                rows,
                _beside_notes(group, source),
                beside_frame(group),
            )
        )
    return sections


def _grouped(cells: Sequence[BesideCell]) -> dict[tuple[str, str], list[BesideCell]]:
    groups: dict[tuple[str, str], list[BesideCell]] = {}
    for cell in cells:
        dataset = f"Dataset: {cell.dataset}" if cell.table == "dataset" else "Averages"
        groups.setdefault((cell.selection, dataset), []).append(cell)
    return groups


def _verdict(cell: BesideCell) -> str:
    if cell.within is None:
        return "not compared" if cell.mismatches else NOTHING
    return "yes" if cell.within else "no"


def _beside_notes(cells: Sequence[BesideCell], source: str) -> list[str]:
    """Why cells are not compared, each reason once, and how many of the others agree."""
    reasons: dict[str, list[str]] = {}
    for cell in cells:
        for what, here, published in cell.mismatches:
            text = f"not compared: {what} {here} (published: {published})"
            reasons.setdefault(text, []).append(f"{cell.algorithm} on {_place(cell)}")
    compared = [cell for cell in cells if cell.within is not None]
    notes = [
        f"{text}: {'all cells' if len(where) == len(cells) else ', '.join(where)}"
        for text, where in reasons.items()
    ]
    if compared:
        agree = sum(bool(cell.within) for cell in compared)
        notes.append(
            f"{agree} of {len(compared)} differences lie within the combined standard errors (and "
            "the rounding of what is printed); of repetitions of the same at most two in three do"
        )
    if any(cell.within is None and not cell.mismatches for cell in cells):
        notes.append(f"{NOTHING}: {source} prints no standard error, or an average has none")
    return notes


def _place(cell: BesideCell) -> str:
    return cell.domain if cell.table == "dataset" else cell.dataset
