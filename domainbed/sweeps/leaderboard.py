"""The leaderboard: what exported sweeps show, as one static page that anyone can rebuild."""

import json
import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from domainbed.algorithms import ALGORITHMS
from domainbed.config.baselines import PREFIX, summaries
from domainbed.core.names import (
    is_provisional,
    order_datasets,
    passes,
    trained_algorithm,
    year_of,
)
from domainbed.reporting import build_report
from domainbed.reporting.comparison import chosen_values, critical_differences, differences
from domainbed.reporting.findings import update_times
from domainbed.reporting.mixtures import protocols
from domainbed.reporting.page.html import HtmlCell, HtmlTable, Page, Part, Row
from domainbed.reporting.released import beside_released
from domainbed.reporting.render import to_frame
from domainbed.reporting.section import NOTHING
from domainbed.reporting.units import Unit
from domainbed.runs.load import load_records
from domainbed.runs.records import Records
from domainbed.selection import PUBLISHED_METHODS
from domainbed.selection.judging import judged

MANY = 20  # intervals at 95 %, of which one is expected to miss
HEADER = (
    *("year", "result", "minus {}", "95 % (trials)", "told apart", "mean rank"),
    *("passes per update", "ms per update"),
)


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
    if baseline not in set(records.runs["algorithm"]):
        records, _ = beside_released(records)
    tuned = records.runs["args"].map(lambda args: bool(args.get("tuned")))
    without = f", without {tuned.sum()} runs with tuned hyper-parameters" if tuned.any() else ""
    commands = {
        PREFIX + name: f", made by `{each['command']}`" for name, each in summaries().items()
    }
    for judged_records in judged(records.only(~tuned)):
        for dataset in order_datasets(judged_records.runs["dataset"]):
            part = judged_records.only(judged_records.runs["dataset"] == dataset)
            steps = ", ".join(sorted({str(args["steps"]) for args in part.runs["args"]}))
            made = ", ".join(dict.fromkeys(protocols(part.runs)))
            given = {args["hparams"] for args in part.runs["args"] if args.get("hparams")}
            fixed = {f"{name} {v}" for text in given for name, v in json.loads(text).items()}
            chosen = chosen_values(part, PUBLISHED_METHODS).dropna()
            tables = [_table(part, name, baseline) for name in dict.fromkeys(chosen["selection"])]
            yield Part(
                name=re.sub(r"\W+", "-", f"{folder}-{dataset}-{part.metric}"),
                title=f"{dataset}, {part.metric}: {Path(folder).name}",
                intro=f"{made}; {steps} updates; fixed: {', '.join(sorted(fixed)) or 'nothing'}"
                f"{without}. Records: {folder}{commands.get(folder, '')}",
                tables=tables,
            )


def _table(records: Records, method: str, baseline: str) -> HtmlTable:
    """One row per algorithm, the best result first."""
    cells = to_frame(build_report(records, [method]))
    means = cells[(cells["table"] == "dataset") & (cells["domain"] == "Avg")].dropna(subset="mean")
    unit = Unit.of(records.metric, means["mean"])
    means = means.set_index("algorithm").sort_values("mean", ascending=unit.sign < 0)
    header = ["algorithm", *(name.format(baseline) for name in HEADER), "trials, draws", "paper"]
    against = differences(records, [method], baseline).drop_duplicates("algorithm")
    against = against.set_index("algorithm").reindex(means.index)  # without numbers of the baseline
    ranks = critical_differences(records, [method])[method]
    times = update_times(records).droplevel("dataset")
    runs = records.runs.groupby("algorithm")[["trial_seed", "hparams_seed"]].nunique()
    rows = []
    for name, mean in means.iterrows():
        difference, low, high = against.loc[name, ["difference", "trials_low", "trials_high"]]
        apart = unit.verdict(low, high)
        composed = trained_algorithm(str(name)).split("+")
        paper = "; ".join(ALGORITHMS[each].paper for each in composed if each in ALGORITHMS)
        texts = [
            f"{name} (provisional)" if is_provisional(str(name)) else str(name),
            year_of(paper),
            unit.with_error(mean["mean"], mean["std_err"]).replace("+/-", "±"),
            *(unit.text(difference, signed=True), unit.interval(low, high), apart),
            f"{ranks.mean_ranks.get(str(name), math.nan):.1f}",
            f"{passes(str(name)):.2f}".replace("nan", NOTHING),
            f"{times.get(name, math.nan):.1f}".replace("nan", NOTHING),
            "{}, {}".format(*runs.loc[name]),
            paper or "by a plug-in",
        ]
        kinds = ["", "", "", "", "", "apart" * bool(apart), "", "", "", "", "long"]
        rows.append(Row([*map(HtmlCell, texts, kinds)], str(name)))
    said = "some methods differ" if ranks.tells_apart else "no two methods can be told apart"
    note = f"By mean rank over {ranks.count} test domains {said}."
    if ranks.can_differ:
        note += f" Ranks closer than {ranks.distance:.1f} do not differ."
    count = int(against["trials_low"].notna().sum())
    if count > MANY:
        chance = round(0.05 * count)
        note += f" Of {count} intervals at 95 % about {chance} leave out zero by chance alone."
    return HtmlTable(method, header, rows, texts=[5, 10], notes=[note], is_open=True)
