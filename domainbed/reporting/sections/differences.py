"""Differences to a baseline, and how little they prove."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from domainbed.reporting.section import Section
from domainbed.reporting.sections.texts import count, interval, p_value_text, with_sign
from domainbed.reporting.statistics import least_p_value
from domainbed.reporting.tables import AVERAGE

FEW_TRIALS = 10
FEW_DATASETS = 10


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
        with_sign(row["difference"]),
        interval(row["trials_low"], row["trials_high"]),
        interval(row["datasets_low"], row["datasets_high"]),
        f"{row['probability_of_improvement']:.2f}",
        f"{row['wins']}/{row['ties']}/{row['losses']}",
        *(p_value_text(row[name]) for name in ("p_value", "holm_p_value")),
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
            f"shows nothing: with {count(powerless[-1], 'observation')} and "
            f"{count(tests, 'test')} p (Holm) cannot be below 0.05, whatever the differences"
        )
    if (unpaired := int(frame["unpaired"].max())) > 0:
        found.append(f"up to {unpaired} results have no counterpart and are left out")
    return found
