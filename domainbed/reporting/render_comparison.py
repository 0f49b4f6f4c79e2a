"""Comparisons as text, Markdown, CSV or JSON, with what they rest on said beside every figure."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from textwrap import wrap
from typing import Any, NamedTuple

import pandas as pd

from domainbed.published import get_source
from domainbed.registry import Registry
from domainbed.reporting.beside import BesideCell, beside_frame
from domainbed.reporting.statistics import CriticalDifference, least_p_value
from domainbed.reporting.tables import AVERAGE
from domainbed.text_table import pipe_table, text_table

TEXT_WIDTH = 100
FEW_TRIALS = 10
FEW_DATASETS = 10
_NOTHING = "-"


class Section(NamedTuple):
    """One table of a comparison.

    Attributes:
        name: for programs.
        title: for people.
        header: the columns' names.
        rows: the cells as text.
        notes: what the numbers are, and how little they prove.
        frame: the numbers.
    """

    name: str
    title: str
    header: list[str]
    rows: list[list[str]]
    notes: list[str]
    frame: pd.DataFrame


COMPARISON_RENDERERS: Registry[Callable[[Sequence[Section]], str]] = Registry("format")
"""By name, functions from sections to a text."""


@COMPARISON_RENDERERS.register(name="text")
def to_text(sections: Sequence[Section]) -> str:
    """Aligned columns under a heading, and below them the notes."""
    lines: list[str] = []
    for section in sections:
        lines += ["", f"-------- {section.title}"]
        lines += text_table([section.header, *section.rows]) if section.rows else []
        for note in section.notes:
            lines += wrap(note, TEXT_WIDTH, initial_indent="  ", subsequent_indent="    ")
    return "\n".join(lines[1:]) + "\n"


@COMPARISON_RENDERERS.register(name="markdown")
def to_markdown(sections: Sequence[Section]) -> str:
    """Markdown tables, and below them the notes as a list."""
    lines: list[str] = []
    for section in sections:
        lines += ["", f"### {_escaped(section.title)}", ""]
        grid = [[_escaped(text) for text in row] for row in [section.header, *section.rows]]
        lines += [*pipe_table(grid), ""] if section.rows else []
        lines += [f"- {_escaped(note)}" for note in section.notes]
    return "\n".join(lines[1:]) + "\n"


@COMPARISON_RENDERERS.register(name="csv")
def to_csv(sections: Sequence[Section]) -> str:
    """The numbers of the first kind of table, unrounded."""
    first = [section.frame for section in sections if section.name == sections[0].name]
    return pd.concat(first).to_csv(index=False, lineterminator="\n")


@COMPARISON_RENDERERS.register(name="json")
def to_json(sections: Sequence[Section]) -> str:
    """The numbers of all tables, unrounded, with their notes."""
    whole: dict[str, list[Any]] = {}
    for section in sections:
        rows = json.loads(section.frame.to_json(orient="records", double_precision=15))
        entry = {"title": section.title, "rows": rows, "notes": section.notes}
        whole.setdefault(section.name, []).append(entry)
    return json.dumps(whole, indent=2, ensure_ascii=False) + "\n"


def beside_sections(cells: Sequence[BesideCell], source: str) -> list[Section]:
    """The sweep's numbers beside the paper's, one table per method and dataset."""
    paper, sections = get_source(source), []
    for (selection, dataset), group in _grouped(cells).items():
        rows = [
            [
                cell.algorithm,
                cell.domain if cell.table == "dataset" else cell.dataset,
                _mean(cell.mean, cell.std_err),
                _mean(cell.published_mean, cell.published_std_err),
                _signed(cell.difference),
                _number(cell.combined_std_err),
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
        return "not compared" if cell.mismatches else _NOTHING
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
        notes.append(f"{_NOTHING}: {source} prints no standard error, or an average has none")
    return notes


def _place(cell: BesideCell) -> str:
    return cell.domain if cell.table == "dataset" else cell.dataset


def difference_sections(frame: pd.DataFrame, unit: str, rope: float | None) -> list[Section]:
    """The differences to the baseline, one table per selection method."""
    sections = []
    for selection, of_method in frame.groupby("selection", sort=False):
        several = of_method["dataset"].nunique() > 2  # one dataset is its own average
        shown = of_method if several else of_method[of_method["dataset"] == AVERAGE]
        only = next(name for name in of_method["dataset"])
        baseline = of_method["baseline"].iloc[0]
        header = ["Dataset", "Algorithm", "difference", "95 % (trials)", "95 % (datasets)"]
        header += ["improves", "win/tie/loss", "p", "p (Holm)"]
        header += [] if rope is None else ["P(worse)", "P(equal)", "P(better)"]
        rows = [
            [row["dataset"] if several else only, row["algorithm"], *_differences(row, rope)]
            for row in shown.to_dict("records")
        ]
        sections.append(
            Section(
                "differences",
                f"Differences to {baseline}, model selection method: {selection}",
                header,
                rows,
                _difference_notes(shown, unit, baseline, rope),
                of_method,
            )
        )
    return sections


def _differences(row: dict[Any, Any], rope: float | None) -> list[str]:
    chances = [] if rope is None else [row[f"p_{name}"] for name in ("worse", "equal", "better")]
    return [
        _signed(row["difference"]),
        _interval(row["trials_low"], row["trials_high"]),
        _interval(row["datasets_low"], row["datasets_high"]),
        f"{row['probability_of_improvement']:.2f}",
        f"{row['wins']}/{row['ties']}/{row['losses']}",
        *(_p_value(row[name]) for name in ("p_value", "holm_p_value")),
        *(f"{chance:.2f}" for chance in chances),
    ]


def _difference_notes(
    frame: pd.DataFrame, unit: str, baseline: str, rope: float | None
) -> list[str]:
    trials, datasets = int(frame["trials"].min()), int(frame["datasets"].max())
    counts = sorted(set(frame["observations"]))
    notes = [
        "difference: points of percent, paired by dataset, test domain and trial; 95 %: bootstrap "
        f"with trials, or datasets, drawn anew; improves: chance that a run beats {baseline}'s",
        f"win/tie/loss and p (Wilcoxon's signed-rank test) count each {unit} once: "
        f"{', '.join(map(str, counts))} in the rows; ties are below 0.05 points",
    ]
    if rope is not None:
        notes.append(f"P: Bayesian signed-rank test; equal: within {rope:g} points of zero")
    return notes + cautions(trials, datasets, unit, counts, frame)


def cautions(
    trials: int, datasets: int, unit: str, counts: Sequence[int], frame: pd.DataFrame
) -> list[str]:
    """How little the numbers prove: small samples, and dependent observations."""
    found = []
    if trials == 1:
        found.append("one trial: nothing says how much another one would differ")
    elif trials < FEW_TRIALS:
        found.append(f"small sample: {trials} trials, so the intervals over trials are too narrow")
    if datasets == 1:
        found.append("one dataset: nothing says that the difference is there on others")
    elif datasets < FEW_DATASETS:
        found.append(
            f"small sample: {datasets} datasets, so the intervals over datasets are too narrow"
        )
    if unit != "dataset":
        found.append(
            "dependent: each test domain of a dataset is a training domain of the others"
            + (", and trials share their images" if unit == "trial" else "")
            + ", so the p-values may be far too small"
        )
    tests = int(frame.groupby("dataset").size().max())
    powerless = [n for n in counts if least_p_value(n) * tests > 0.05]
    if powerless:
        found.append(
            f"shows nothing: with {_count(powerless[-1], 'observation')} and "
            f"{_count(tests, 'test')} p (Holm) cannot be below 0.05, whatever the differences"
        )
    if (unpaired := int(frame["unpaired"].max())) > 0:
        found.append(f"up to {unpaired} results have no counterpart and are left out")
    return found


def rank_sections(found: dict[str, CriticalDifference], unit: str) -> list[Section]:
    """Mean ranks and the critical difference, or why they show nothing."""
    sections = []
    for selection, ranks in found.items():
        frame = pd.DataFrame(
            {"selection": selection, "algorithm": list(ranks.mean_ranks),
             "mean_rank": list(ranks.mean_ranks.values()), "observations": ranks.count,
             "p_value": ranks.p_value, "critical_difference": ranks.distance}
        )  # fmt: skip
        rows = [[name, f"{rank:.2f}"] for name, rank in ranks.mean_ranks.items()]
        over = _count(ranks.count, _OBSERVATIONS[unit])
        title = f"Mean ranks over {over}, model selection method: {selection}"
        sections.append(
            Section(
                "ranks", title, ["Algorithm", "mean rank"], rows, rank_notes(ranks, unit), frame
            )
        )
    return sections


_OBSERVATIONS = {"trial": "test domain and trial", "domain": "test domain", "dataset": "dataset"}


def rank_notes(ranks: CriticalDifference, unit: str) -> list[str]:
    """What a critical-difference diagram shows, or that it can show nothing."""
    if len(ranks.mean_ranks) < 3:
        return ["Friedman's test compares three algorithms and more: no critical difference"]
    if not ranks.can_differ:
        return [
            f"shows nothing: with {len(ranks.mean_ranks)} algorithms and "
            f"{_count(ranks.count, _OBSERVATIONS[unit])} no two mean ranks can be further apart "
            "than the critical difference"
        ]
    p_value = f"Friedman's test: p {_p_value(ranks.p_value)}"
    distance = f"critical difference (Nemenyi, 95 %): {ranks.distance:.2f}"
    dependent = "dependent: the domains of a dataset train on each other, so p may be far too small"
    caution = [] if unit == "dataset" else [dependent]
    if not ranks.tells_apart:
        return [f"{p_value}; {distance}: no algorithms are told apart", *caution]
    groups = "; ".join(", ".join(group) for group in ranks.groups) or "none"
    return [f"{p_value}; {distance}; not told apart: {groups}", *caution]


def gap_section(frame: pd.DataFrame) -> Section:
    """What knowing the test domain is worth."""
    rows = [
        [row["dataset"], row["algorithm"], row["domain"], _mean(row["gap"], row["std_err"], True)]
        for row in frame.to_dict("records")
    ]
    notes = [
        "oracle minus training-domain, in points of percent +/- standard error over "
        f"{_range(frame['n_trials'])} trials",
        *_few(frame),
    ]
    header = ["Dataset", "Algorithm", "domain", "gap"]
    return Section("selection_gap", "Selection gap", header, rows, notes, frame)


def tuning_section(frame: pd.DataFrame) -> Section:
    """What the search of hyper-parameters is worth."""
    rows = [
        [
            row["selection"],
            row["dataset"],
            row["algorithm"],
            _number(row["default"]),
            _number(row["best"]),
            _mean(row["gain"], row["std_err"], True),
        ]
        for row in frame.to_dict("records")
    ]
    notes = [
        f"the draw chosen among {_range(frame['n_draws'])}, minus the default hyper-parameters; "
        f"+/- standard error over {_range(frame['n_trials'])} trials",
        *_few(frame),
    ]
    if frame["n_draws"].max() == 1:
        notes = ["one draw, the defaults: nothing was tuned"]
    header = ["Selection", "Dataset", "Algorithm", "default", "chosen", "gain"]
    return Section("tuning_gain", "Gain of tuning", header, rows, notes, frame)


def expected_section(frame: pd.DataFrame) -> Section:
    """The accuracy that few draws give on average."""
    wide = frame.pivot(
        index=["selection", "dataset", "algorithm"], columns="draws", values="accuracy"
    )
    shown = [k for k in wide if k in (1, 2, 5, 10, 20) or k == wide.columns[-1]]
    rows = [
        [*map(str, key), *map(_number, numbers)]
        for key, numbers in zip(wide.index, wide[shown].to_numpy().tolist(), strict=True)
    ]
    header = ["Selection", "Dataset", "Algorithm", *(f"best of {k}" for k in shown)]
    notes = ["the accuracy that choosing among k of the draws gives on average", *_few(frame)]
    title = "Expected best of k draws"
    return Section("expected_best", title, header, rows, notes, frame)


def worst_section(frame: pd.DataFrame) -> Section:
    """Worst domain beside mean."""
    rows = [
        [
            *(row["selection"], row["dataset"], row["algorithm"], _number(row["mean"])),
            *(_number(row["worst"]), row["domain"]),
        ]
        for row in frame.to_dict("records")
    ]
    header = ["Selection", "Dataset", "Algorithm", "mean", "worst", "domain"]
    notes = ["the lowest of several uncertain means is on average too low", *_few(frame)]
    title = "Worst test domain beside the mean"
    return Section("worst_domains", title, header, rows, notes, frame)


def line_section(frame: pd.DataFrame) -> Section:
    """In-domain against out-of-domain accuracy."""
    rows = [
        [row["dataset"], row["domain"], str(row["runs"])]
        + [_two(row[name]) for name in ("correlation", "slope", "intercept")]
        for row in frame.to_dict("records")
    ]
    header = ["Dataset", "test domain", "runs", "correlation", "slope", "intercept"]
    notes = [
        "over the last record of all runs: accuracy on the test domain, against that on the "
        "out-splits of the training domains; of the probits of both",
        "dependent: runs that differ in draw or algorithm alone share data and weights",
    ]
    title = "In-domain against out-of-domain accuracy"
    return Section("accuracy_on_the_line", title, header, rows, notes, frame)


def _few(frame: pd.DataFrame) -> list[str]:
    trials = int(frame["n_trials"].min())
    return [f"small sample: {_count(trials, 'trial')}"] if trials < FEW_TRIALS else []


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"


def _range(numbers: pd.Series) -> str:
    low, high = int(numbers.min()), int(numbers.max())
    return str(low) if low == high else f"{low} to {high}"


def _number(value: float) -> str:
    return _NOTHING if math.isnan(value) else f"{value:.1f}"


def _two(value: float) -> str:
    return _NOTHING if math.isnan(value) else f"{value:.2f}"


def _signed(value: float) -> str:
    return _NOTHING if math.isnan(value) else f"{value:+.1f}"


def _mean(mean: float, std_err: float, signed: bool = False) -> str:
    text = _signed(mean) if signed else _number(mean)
    return text if math.isnan(std_err) or math.isnan(mean) else f"{text} +/- {std_err:.1f}"


def _interval(low: float, high: float) -> str:
    return _NOTHING if math.isnan(low) else f"[{low:+.1f}, {high:+.1f}]"


def _p_value(value: float) -> str:
    if math.isnan(value):
        return _NOTHING
    return "<0.001" if value < 0.001 else f"{value:.3f}"


def _escaped(text: str) -> str:
    return "".join("\\" + char if char in r"\|*_`<[" else char for char in text)
