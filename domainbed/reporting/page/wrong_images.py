"""The part of the page on images that both, or only one, of two algorithms get wrong."""

from __future__ import annotations

from dataclasses import replace

from domainbed.core.names import order_algorithms, order_datasets
from domainbed.errors import UserError
from domainbed.reporting.misclassified import Misclassified, misclassified
from domainbed.reporting.page.part import Part
from domainbed.reporting.page.tables import HtmlCell, HtmlTable, Row
from domainbed.reporting.page.thumbnails import PER_LIST, Album, ReadImages
from domainbed.reporting.tables import AVERAGE, Report
from domainbed.runs.folder import RunFolder


def wrong_images(report: Report, baseline: str, read: ReadImages) -> Part:
    """Pictures and counts, for the first selection method.

    The algorithms are the baseline and, of the others, the one with the highest average; of those
    whose runs keep their predictions.

    Args:
        report: as from `build_report`.
        baseline: an algorithm; another takes its place where it keeps no predictions.
        read: gives the images that predictions name.
    """
    part = Part("wrong-images", "Wrongly predicted images", "")
    pair = _pair(report, baseline)
    if len(pair) < 2:
        why = "fewer than two algorithms keep their predictions: --save_predictions keeps them"
        return replace(part, missing=why)
    method, runs = report.methods[0], report.records.runs
    intro = (
        f"What {pair[0]} and {pair[1]} get wrong of the in-split of the test domains, by the runs "
        f"that {method.name} chooses: per list up to {PER_LIST} images, those first that are wrong "
        "in most trials, the classes by turns. `domainbed errors` lists all, of any algorithms."
    )
    album, tables, galleries, notes = Album(read), [], [], []
    for dataset in order_datasets(runs["dataset"]):
        try:
            found = misclassified(report.records, pair, method, [dataset])
        except UserError as error:
            notes.append(f"{dataset}: {error}")
            continue
        galleries += list(album.galleries(found))
        tables.append(_counts(found, dataset))
        if found.earlier:
            notes.append(
                f"{dataset}: {found.earlier} of {found.runs} runs were chosen at an earlier step "
                "than the last, which predictions are of: the tables' accuracies differ"
            )
    if not tables:
        return replace(part, missing="; ".join(notes))
    notes += album.notes
    return replace(part, intro=intro, notes=notes, galleries=galleries, tables=tables)


def _pair(report: Report, baseline: str) -> list[str]:
    runs = report.records.runs
    keeps = [RunFolder(folder).predictions.is_file() for folder in runs["folder"]]
    names = order_algorithms(runs.loc[keeps, "algorithm"])
    averages = next(table for table in report.tables if table.dataset is None)
    place = [column.label for column in averages.columns].index(AVERAGE)

    def rank(name: str) -> tuple[bool, float]:
        mean = averages.rows[name][place].mean
        return name != baseline, -(mean or 0.0)

    return sorted(names, key=rank)[:2]


def _counts(found: Misclassified, dataset: str) -> HtmlTable:
    """How many images, by domain and trial."""
    first, second = found.algorithms
    counts = found.counts().drop(columns="dataset")
    header = ["Domain", "trial", "images", "none wrong", "both wrong"]
    header += [f"only {first} wrong", f"only {second} wrong"]
    rows = [Row(list(map(HtmlCell, map(str, row)))) for row in counts.to_numpy().tolist()]
    return HtmlTable(f"{dataset}: how many images are wrong", header, rows)
