"""The leaderboard: what exported sweeps show, as one static page that anyone can rebuild."""

import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import pandas as pd

from domainbed.algorithms import ALGORITHMS
from domainbed.core.names import ALGORITHM_ORDER, order_datasets, year_of
from domainbed.reporting import build_report
from domainbed.reporting.comparison import critical_differences, differences
from domainbed.reporting.mixtures import protocols
from domainbed.reporting.page.html import HtmlCell, HtmlTable, Page, Part, Row
from domainbed.reporting.render import to_frame
from domainbed.reporting.units import Unit
from domainbed.runs.load import load_records
from domainbed.runs.records import Records
from domainbed.selection import PUBLISHED_METHODS
from domainbed.selection.judging import judged

HEADER = ("year", "result", "minus {}", "95 % (trials)", "told apart", "mean rank", "ms per update")


def leaderboard(folders: Sequence[str], baseline: str = "ERM") -> Page:
    """A page with a part for each sweep and dataset, and a table for each selection method.

    Args:
        folders: sweeps, exports, or `baseline:NAME`; each is a part of its own.
        baseline: the algorithm that the others are compared with.

    Raises:
        UserError: there are no records, or none of the baseline.
    """
    parts = [part for folder in folders for part in _parts(folder, baseline)]
    shown = {row.algorithm for part in parts for table in part.tables for row in table.rows}
    facts = [f"{len(shown)} algorithms", f"{len(parts)} datasets and protocols"]
    return Page("Leaderboard", facts, [], sorted(shown), parts)


def _parts(folder: str, baseline: str) -> Iterator[Part]:
    records = load_records(folder)
    tuned = records.runs["args"].map(lambda args: bool(args.get("tuned")))
    without = f", without {tuned.sum()} runs with tuned hyper-parameters" if tuned.any() else ""
    for judged_records in judged(records.only(~tuned)):
        for dataset in order_datasets(judged_records.runs["dataset"]):
            part = judged_records.only(judged_records.runs["dataset"] == dataset)
            steps = ", ".join(sorted({str(args["steps"]) for args in part.runs["args"]}))
            made = ", ".join(dict.fromkeys(protocols(part.runs)))
            tables = [_table(part, name, baseline) for name in PUBLISHED_METHODS]
            yield Part(
                name=re.sub(r"\W+", "-", f"{folder}-{dataset}-{part.metric}"),
                title=f"{dataset}, {part.metric}: {Path(folder).name}",
                intro=f"{made}; {steps} updates{without}. Records: {folder}",
                tables=[table for table in tables if table.rows],
            )


def _table(records: Records, method: str, baseline: str) -> HtmlTable:
    """One row per algorithm, the best result first; no row where the method chooses nothing."""
    cells = to_frame(build_report(records, [method]))
    means = cells[(cells["table"] == "dataset") & (cells["domain"] == "Avg")].dropna(subset="mean")
    unit = Unit.of(records.metric, means["mean"])
    means = means.set_index("algorithm").sort_values("mean", ascending=unit.sign < 0)
    header = ["algorithm", *(name.format(baseline) for name in HEADER), "trials, draws", "paper"]
    if means.empty:
        return HtmlTable(method, header, [])
    against = differences(records, [method], baseline).drop_duplicates("algorithm")
    against = against.set_index("algorithm").reindex(means.index)  # without numbers of the baseline
    ranks = critical_differences(records, [method])[method]
    costs = _milliseconds(records)
    runs = records.runs.groupby("algorithm")[["trial_seed", "hparams_seed"]].nunique()
    rows = []
    for name, mean in means.iterrows():
        difference, low, high = against.loc[name, ["difference", "trials_low", "trials_high"]]
        apart = unit.verdict(low, high)
        paper = ALGORITHMS[name].paper if name in ALGORITHMS else "by a plug-in"
        unchecked = name in ALGORITHMS and name not in ALGORITHM_ORDER
        texts = [
            f"{name} (provisional)" if unchecked else str(name),
            year_of(paper),
            unit.with_error(mean["mean"], mean["std_err"]).replace("+/-", "±"),
            *(unit.text(difference, signed=True), unit.interval(low, high), apart),
            f"{ranks.mean_ranks.get(str(name), math.nan):.1f}",
            f"{costs.get(name, math.nan):.1f}",
            "{}, {}".format(*runs.loc[name]),
            paper,
        ]
        kinds = ["", "", "", "", "", "near" * bool(apart), "", "", "", "long"]
        rows.append(Row([*map(HtmlCell, texts, kinds)], str(name)))
    said = "some methods differ" if ranks.tells_apart else "no two methods can be told apart"
    note = f"By mean rank over {ranks.count} test domains {said}."
    if ranks.can_differ:
        note += f" Ranks closer than {ranks.distance:.1f} do not differ."
    return HtmlTable(method, header, rows, texts=[5, 9], notes=[note], is_open=True)


def _milliseconds(records: Records) -> pd.Series:
    """The median time of an update by algorithm, on the machines that made the records."""
    times = records.values[records.values["metric"] == "step_time"]
    return 1000 * times["value"].groupby(times["run"].map(records.runs["algorithm"])).median()
