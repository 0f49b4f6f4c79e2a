"""What else a sweep shows: the tables of `domainbed.reporting.analyses`."""

from __future__ import annotations

import pandas as pd

from domainbed.reporting.section import Section
from domainbed.reporting.sections.differences import FEW_TRIALS
from domainbed.reporting.sections.texts import count, mean_text, one_decimal, span, two_decimals


def gap_section(frame: pd.DataFrame) -> Section:
    """What knowing the test domain is worth."""
    rows = [
        [
            row["dataset"],
            row["algorithm"],
            row["domain"],
            mean_text(row["gap"], row["std_err"], True),
        ]
        for row in frame.to_dict("records")
    ]
    notes = [
        "oracle minus training-domain, in points of percent +/- standard error over "
        f"{span(frame['n_trials'])} trials",
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
            one_decimal(row["default"]),
            one_decimal(row["best"]),
            mean_text(row["gain"], row["std_err"], signed=True),
        ]
        for row in frame.to_dict("records")
    ]
    notes = [
        f"the draw chosen among {span(frame['n_draws'])}, minus the default hyper-parameters; "
        f"+/- standard error over {span(frame['n_trials'])} trials",
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
        [*map(str, key), *map(one_decimal, numbers)]
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
            *(row["selection"], row["dataset"], row["algorithm"], one_decimal(row["mean"])),
            *(one_decimal(row["worst"]), row["domain"]),
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
        + [two_decimals(row[name]) for name in ("correlation", "slope", "intercept")]
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
    return [f"small sample: {count(trials, 'trial')}"] if trials < FEW_TRIALS else []
