"""Comparisons as sections: tables of texts, with notes on what they rest on."""

import math
from collections.abc import Sequence
from operator import itemgetter
from typing import Any

import pandas as pd

from domainbed.core.text_table import count
from domainbed.reporting.section import NOTHING, Section, p_value_text, span
from domainbed.reporting.statistics import CriticalDifference, least_p_value
from domainbed.reporting.tables import AVERAGE
from domainbed.reporting.units import PERCENT, Unit

FEW_TRIALS = 10
FEW_DATASETS = 10

_OBSERVATIONS = {"trial": "test domain and trial", "domain": "test domain", "dataset": "dataset"}


# ---- differences to a baseline ----


def difference_sections(
    frame: pd.DataFrame, unit: str, rope: float | None, judge: Unit
) -> list[Section]:
    """The differences to the baseline, one table per selection method."""
    sections = []
    chances = [] if rope is None else ["P(worse)", "P(equal)", "P(better)"]
    for selection, of_method in frame.groupby("selection", sort=False):
        several = of_method["dataset"].nunique() > 2  # one dataset is its own average
        shown = of_method if several else of_method[of_method["dataset"] == AVERAGE]
        only, baseline = of_method[["dataset", "baseline"]].iloc[0]
        rows = [
            [row["dataset"] if several else only, row["algorithm"], *_differences(row, rope, judge)]
            for row in shown.to_dict("records")
        ]
        sections.append(
            Section(
                "differences",
                f"Differences to {baseline}{judge.heading}, model selection method: {selection}",
                ["Dataset", "Algorithm", "difference", "95 % (trials)", "95 % (datasets)",
                 "improves", "win/tie/loss", "p", "p (Holm)", *chances],
                rows,
                _difference_notes(shown, unit, baseline, rope, judge),
                of_method,
            )
        )  # fmt: skip
    return sections


def _differences(row: dict[Any, Any], rope: float | None, judge: Unit) -> list[str]:
    chances = [] if rope is None else [row[f"p_{name}"] for name in ("worse", "equal", "better")]
    return [
        judge.text(row["difference"], signed=True),
        judge.interval(row["trials_low"], row["trials_high"]),
        judge.interval(row["datasets_low"], row["datasets_high"]),
        f"{row['probability_of_improvement']:.2f}",
        f"{row['wins']}/{row['ties']}/{row['losses']}",
        *(p_value_text(row[name]) for name in ("p_value", "holm_p_value")),
        *(f"{chance:.2f}" for chance in chances),
    ]


def _difference_notes(
    frame: pd.DataFrame, unit: str, baseline: str, rope: float | None, judge: Unit
) -> list[str]:
    counts = sorted(set(frame["observations"]))
    points = " points" * (judge.factor == PERCENT)
    notes = [
        f"difference: {judge.of_differences}, paired by dataset, test domain and trial; 95 %: "
        "Student's t over trials, and bootstrap with datasets resampled; improves: chance that a "
        f"run beats {baseline}'s",
        f"win/tie/loss and p (Wilcoxon's signed-rank test) count each {unit} once: "
        f"{', '.join(map(str, counts))} in the rows; ties are below {judge.tie:g}{points}",
    ]
    if rope is not None:
        notes.append(f"P: Bayesian signed-rank test; equal: within {rope:g}{points} of zero")
    return notes + cautions(unit, counts, frame)


def cautions(unit: str, counts: Sequence[int], frame: pd.DataFrame) -> list[str]:
    """How little the numbers prove: small samples, and dependent observations."""
    trials, datasets = int(frame["trials"].min()), int(frame["datasets"].max())
    unpaired = int(frame["unpaired"].max())
    shared = ", and trials share their images" if unit == "trial" else ""
    tests = int(frame.groupby("dataset").size().max())
    powerless = max((n for n in counts if least_p_value(n) * tests > 0.05), default=0)
    said = [
        (trials == 1, "one trial: nothing says how much another one would differ"),
        (datasets == 1, "one dataset: the difference may not hold on others"),
        (
            1 < datasets < FEW_DATASETS,
            f"small sample: {datasets} datasets, so the intervals over datasets are too narrow",
        ),
        (
            unit != "dataset",
            "dependent: each test domain of a dataset is a training domain of the others"
            f"{shared}, so the p-values may be far too small",
        ),
        (
            powerless > 0,
            f"shows nothing: with {count(powerless, 'observation')} and {count(tests, 'test')} "
            "p (Holm) cannot be below 0.05, whatever the differences",
        ),
        (unpaired > 0, f"up to {unpaired} results have no counterpart and are left out"),
    ]
    return [text for applies, text in said if applies]


# ---- mean ranks ----


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
        over = count(ranks.count, _OBSERVATIONS[unit])
        title = f"Mean ranks over {over}, model selection method: {selection}"
        header, notes = ["Algorithm", "mean rank"], rank_notes(ranks, unit)
        sections.append(Section("ranks", title, header, rows, notes, frame))
    return sections


def rank_notes(ranks: CriticalDifference, unit: str) -> list[str]:
    """What a critical-difference diagram shows, or that it can show nothing."""
    if len(ranks.mean_ranks) < 3:
        return ["Friedman's test compares three algorithms or more: no critical difference"]
    if not ranks.can_differ:
        return [
            f"shows nothing: with {len(ranks.mean_ranks)} algorithms and "
            f"{count(ranks.count, _OBSERVATIONS[unit])} no two mean ranks can be further apart "
            "than the critical difference"
        ]
    groups = "; ".join(", ".join(group) for group in ranks.groups) or "none"
    verdict = (
        f"; not told apart: {groups}" if ranks.tells_apart else ": no algorithms are told apart"
    )
    notes = [
        f"Friedman's test: p {p_value_text(ranks.p_value)}; "
        f"critical difference (Nemenyi, 95 %): {ranks.distance:.2f}{verdict}"
    ]
    if unit != "dataset":
        notes.append("dependent: the domains of a dataset train on each other, so p may be far too "
                     "small")  # fmt: skip
    return notes


# ---- the tables of `domainbed.reporting.analyses` ----


def gap_section(frame: pd.DataFrame, judge: Unit) -> Section:
    """What knowing the test domain is worth."""
    rows = [
        [*itemgetter("dataset", "algorithm", "domain")(row),
         judge.with_error(row["gap"], row["std_err"], signed=True)]
        for row in frame.to_dict("records")
    ]  # fmt: skip
    return Section(
        "selection_gap",
        f"Selection gap{judge.heading}",
        ["Dataset", "Algorithm", "domain", "gap"],
        rows,
        [
            f"oracle minus training-domain, in {judge.of_differences} +/- standard error over "
            f"{span(frame['n_trials'])} trials",
            *_few(frame),
        ],
        frame,
    )


def tuning_section(frame: pd.DataFrame, judge: Unit) -> Section:
    """What the search of hyper-parameters is worth."""
    rows = [
        [*itemgetter("selection", "dataset", "algorithm")(row), judge.text(row["default"]),
         judge.text(row["best"]), judge.with_error(row["gain"], row["std_err"], signed=True)]
        for row in frame.to_dict("records")
    ]  # fmt: skip
    subtracted = [f"the draw chosen among {span(frame['n_draws'])}", "the default hyper-parameters"]
    notes = [
        f"{', minus '.join(subtracted[:: judge.sign])}; +/- standard error over "
        f"{span(frame['n_trials'])} trials",
        *_few(frame),
    ]
    if frame["n_draws"].max() == 1:
        notes = ["one draw, the defaults: nothing was tuned"]
    header = ["Selection", "Dataset", "Algorithm", "default", "chosen", "gain"]
    return Section("tuning_gain", f"Gain of tuning{judge.heading}", header, rows, notes, frame)


def expected_section(frame: pd.DataFrame, judge: Unit) -> Section:
    """The result that few draws give on average."""
    keys = ["selection", "dataset", "algorithm"]
    wide = frame.pivot(index=keys, columns="draws", values=judge.metric)
    shown = [k for k in wide if k in (1, 2, 5, 10, 20) or k == wide.columns[-1]]
    return Section(
        "expected_best",
        f"Expected best of k draws{judge.heading}",
        ["Selection", "Dataset", "Algorithm", *(f"best of {k}" for k in shown)],
        [[*key, *map(judge.text, numbers)] for key, numbers in wide[shown].iterrows()],
        [f"the {judge.name} that choosing among k of the draws gives on average", *_few(frame)],
        frame,
    )


def worst_section(frame: pd.DataFrame, judge: Unit) -> Section:
    """Worst domain beside mean."""
    rows = [
        [*itemgetter("selection", "dataset", "algorithm")(row), judge.text(row["mean"]),
         judge.text(row["worst"]), row["domain"]]
        for row in frame.to_dict("records")
    ]  # fmt: skip
    lowest, low = ("lowest", "low") if judge.sign > 0 else ("highest", "high")
    return Section(
        "worst_domains",
        f"Worst test domain beside the mean{judge.heading}",
        ["Selection", "Dataset", "Algorithm", "mean", "worst", "domain"],
        rows,
        [f"the {lowest} of several uncertain means is on average too {low}", *_few(frame)],
        frame,
    )


def line_section(frame: pd.DataFrame, judge: Unit) -> Section:
    """The in-domain result against the out-of-domain one."""
    numbers = ["correlation", "slope", "intercept"]
    rows = [
        [row["dataset"], row["domain"], str(row["runs"])]
        + [NOTHING if math.isnan(row[name]) else f"{row[name]:.2f}" for name in numbers]
        for row in frame.to_dict("records")
    ]
    probits = "; of the probits of both" * (judge.factor == PERCENT)
    return Section(
        "accuracy_on_the_line",
        f"In-domain against out-of-domain {judge.metric}",
        ["Dataset", "test domain", "runs", *numbers],
        rows,
        [
            f"over the last record of all runs: {judge.metric} on the test domain, against that on "
            f"the out-splits of the training domains{probits}",
            "dependent: runs that differ only in draw or algorithm share data and weights",
        ],
        frame,
    )


def _few(frame: pd.DataFrame) -> list[str]:
    trials = int(frame["n_trials"].min())
    return [f"small sample: {count(trials, 'trial')}"] if trials < FEW_TRIALS else []
