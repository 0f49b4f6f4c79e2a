"""What tables of means do not show: differences to a baseline, ranks, and gains and gaps.

Differences are paired by dataset, test domain and trial.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import ndtri  # `scipy.stats` would take a second to import

from domainbed.core.names import order_algorithms, order_datasets
from domainbed.errors import UserError
from domainbed.reporting import statistics
from domainbed.reporting.render import to_frame
from domainbed.reporting.statistics import CriticalDifference, PairedCell
from domainbed.reporting.tables import AVERAGE, Report, domain_names, mean_over_trials, only
from domainbed.reporting.units import PERCENT, Unit
from domainbed.runs.records import Records
from domainbed.selection import PUBLISHED_METHODS, SELECTION_METHODS

CELL = ["dataset", "test_env"]
PAIR = [*CELL, "trial_seed"]
DEFAULT_SEED = 0
"""The hparams seed of the default hyper-parameters."""

_CLIP = 1e-3  # probits of 0 and 1 are infinite
_GROUP = ["dataset", "algorithm"]
_RUN = [*_GROUP, "test_env", "trial_seed"]


def chosen_values(records: Records, selection: Sequence[str] | None = None) -> pd.DataFrame:
    """The values that the tables are made of, one row per choice.

    Columns: `selection`, `dataset`, `algorithm`, `test_env` (number of the domain), `trial_seed`,
    `hparams_seed`, `step`, and the reported metric under its name, in percent if it is one.
    """
    frames = [
        SELECTION_METHODS[name].select(records).assign(selection=name) for name in _names(selection)
    ]
    chosen = pd.concat(frames, ignore_index=True)
    chosen[records.metric] = Unit.of(records.metric).factor * chosen["test"]
    return chosen[["selection", *PAIR, "algorithm", "hparams_seed", "step", records.metric]]


def unit_of(records: Records, chosen: pd.DataFrame) -> Unit:
    """The unit of the reported metric, for numbers such as those of `chosen_values`."""
    metric, chooses = records.metric, records.selection_metric
    return replace(Unit.of(metric, chosen[metric]), chosen_by=chooses * (chooses != metric))


def _names(selection: Sequence[str] | None) -> list[str]:
    """Short names of selection methods, each once."""
    return list(PUBLISHED_METHODS if selection is None else dict.fromkeys(selection))


def differences(
    records: Records,
    selection: Sequence[str] | None = None,
    baseline: str = "ERM",
    unit: str = "trial",
    rope: float | None = None,
) -> pd.DataFrame:
    """Each algorithm's difference to the baseline, on each dataset and over all.

    Args:
        records: as from `load_records`, or `judged`, of the datasets and algorithms to compare.
        selection: short names of selection methods; None for the published ones.
        baseline: the algorithm that the others are compared with.
        unit: what counts as one observation, for wins and tests; one of `statistics.UNITS`.
        rope: differences up to it, in the unit of the metric, are practically none; None leaves
            that test out.

    Returns:
        One row per method, dataset ("Avg": over all) and algorithm, with the columns `selection`,
        `dataset`, `algorithm`, `baseline`; `difference` in percentage points, or in the unit of
        the metric; the ends of its 95 % intervals, `trials_low` and `trials_high` by Student's t
        over the trials that all test domains share, `datasets_low` and `datasets_high` with
        datasets resampled;
        `probability_of_improvement`; `wins`, `ties`, `losses`; `p_value` of Wilcoxon's test, and
        `holm_p_value`, corrected for the algorithms of the same method and dataset; with a rope
        `p_worse`, `p_equal` and `p_better`; and what it rests on: `observations`, `pairs` (of
        runs), `domains`, `datasets`, `trials` (the fewest of a domain), and `unpaired`, runs that
        the other algorithm has no counterpart of.

        Better is lower of a metric that says so. NaN stands where a number cannot be.

    Raises:
        UserError: the baseline or the unit is unknown, or there is nothing to compare.
    """
    values = chosen_values(records, selection)
    judge = unit_of(records, values)
    _check(records, baseline, unit, rope)
    rows = []
    for name, chosen in values.groupby("selection", sort=False):
        for dataset in [*order_datasets(chosen["dataset"]), AVERAGE]:
            of_dataset = chosen if dataset == AVERAGE else chosen[chosen["dataset"] == dataset]
            names = {"selection": str(name), "dataset": dataset}
            rows += _rows(of_dataset, names, baseline, judge, unit, rope)
    if not rows:
        raise UserError(
            f"no algorithm has a result on the same dataset, test domain and trial as {baseline!r}"
        )
    return pd.DataFrame(rows)


def critical_differences(
    records: Records, selection: Sequence[str] | None = None, unit: str = "domain"
) -> dict[str, CriticalDifference]:
    """For each selection method the mean ranks of the algorithms, and which of them differ.

    Ranked are, by `unit`, trials of test domains, test domains (by the mean over trials), or
    datasets (by the mean over test domains). Trials that an algorithm lacks are left out.
    """
    found, sign = {}, Unit.of(records.metric).sign
    for name, chosen in chosen_values(records, selection).groupby("selection", sort=False):
        algorithms = order_algorithms(chosen["algorithm"])
        wide = sign * chosen.pivot(index=PAIR, columns="algorithm", values=records.metric)
        table = _averaged(wide[algorithms].dropna(), unit)
        found[str(name)] = statistics.critical_difference(table.to_numpy(), algorithms)
    return found


def _check(records: Records, baseline: str, unit: str, rope: float | None) -> None:
    if unit not in statistics.UNITS:
        raise UserError(f"unit is {unit!r}: expected one of {', '.join(statistics.UNITS)}")
    if rope is not None and not (rope > 0 and math.isfinite(rope)):
        raise UserError(f"rope is {rope:g}: expected a number of points above 0")
    only(records, None, [baseline], ", the baseline")
    if records.runs["algorithm"].nunique() < 2:
        raise UserError(f"{baseline!r} is the only algorithm: there is nothing to compare it with")


def _rows(
    chosen: pd.DataFrame,
    names: dict[str, str],
    baseline: str,
    judge: Unit,
    unit: str,
    rope: float | None,
) -> list[dict[str, Any]]:
    """The rows of one method and dataset, with the p-values corrected for their number."""
    rows: list[dict[str, Any]] = []
    wide = judge.sign * chosen.pivot(index=PAIR, columns="algorithm", values=judge.metric)
    for algorithm in order_algorithms(chosen["algorithm"]):
        cells, unpaired = paired_cells(wide, algorithm, baseline)
        if algorithm != baseline and cells:
            numbers = _numbers(cells, judge, unit, rope)
            pair = {"algorithm": algorithm, "baseline": baseline}
            rows.append({**names, **pair, **numbers, "unpaired": unpaired})
    corrected = statistics.holm([row["p_value"] for row in rows])
    return [{**row, "holm_p_value": p} for row, p in zip(rows, corrected, strict=True)]


def paired_cells(wide: pd.DataFrame, algorithm: str, baseline: str) -> tuple[list[PairedCell], int]:
    """The pairs of two algorithms by test domain, and how many runs have no counterpart."""
    both = wide.reindex(columns=[algorithm, baseline]).dropna(how="all")
    pairs = both.dropna()
    cells = [
        PairedCell(
            *(str(key[0]), of_cell[algorithm].to_numpy(), of_cell[baseline].to_numpy()),
            of_cell.index.get_level_values("trial_seed").tolist(),
        )
        for key, of_cell in pairs.groupby(CELL)
    ]
    return cells, len(both) - len(pairs)


def _numbers(cells: list[PairedCell], judge: Unit, unit: str, rope: float | None) -> dict[str, Any]:
    observed = statistics.observations(cells, unit)
    # Differences are as recorded: of a metric that is better low, a better one is negative.
    trials_low, trials_high = sorted(judge.sign * e for e in statistics.trial_interval(cells))
    datasets_low, datasets_high = sorted(judge.sign * e for e in statistics.dataset_interval(cells))
    numbers: dict[str, Any] = {
        "difference": judge.sign * float(statistics.observations(cells, "dataset").mean()),
        "trials_low": trials_low,
        "trials_high": trials_high,
        "datasets_low": datasets_low,
        "datasets_high": datasets_high,
        "probability_of_improvement": statistics.probability_of_improvement(cells),
        **statistics.win_tie_loss(observed, judge.tie),
        "p_value": statistics.wilcoxon(observed),
        "holm_p_value": math.nan,
        "observations": len(observed),
        "pairs": sum(len(cell.differences) for cell in cells),
        "domains": len(cells),
        "datasets": len({cell.dataset for cell in cells}),
        "trials": min(len(cell.differences) for cell in cells),
    }
    if rope is not None:
        numbers |= statistics.practically_equal(observed, rope)
    return numbers


def _averaged(wide: pd.DataFrame, unit: str) -> pd.DataFrame:
    """From one row per test domain and trial to one per observation."""
    if unit == "trial":
        return wide
    domains = wide.groupby(level=CELL).mean()
    return domains if unit == "domain" else domains.groupby(level="dataset").mean()


def selection_gap(
    records: Records, better: str = "oracle", other: str = "training-domain"
) -> pd.DataFrame:
    """What knowing the test domain is worth: the result of the one method minus the other's.

    Columns: `dataset`, `algorithm`, `domain` (its name, or "Avg": first over the test domains
    within a trial), `gap` in percentage points or in the unit of the metric, its `std_err` over
    trials, and `n_trials`. Empty if a metric is known of the last steps alone.
    """
    if records.of_last_steps:
        return pd.DataFrame()
    chosen = chosen_values(records, [better, other])
    wide = chosen.pivot(index=_RUN, columns="selection", values=records.metric)
    gaps = wide.reindex(columns=[better, other]).dropna()
    frame = (gaps[better] - gaps[other]).rename("gap").reset_index()
    rows = []
    for key, of_group in frame.groupby(_GROUP, sort=False):
        names = domain_names(records.runs, key[0])
        sets = {names[env]: of_env for env, of_env in of_group.groupby("test_env")}
        for domain, of_domain in {**sets, AVERAGE: of_group}.items():
            cell = mean_over_trials((of_domain.groupby("trial_seed")["gap"].mean() / 100).to_dict())
            rows.append((*key, domain, cell.mean, cell.std_err, cell.n_trials))
    return _in_order(pd.DataFrame(rows, columns=[*_GROUP, "domain", "gap", "std_err", "n_trials"]))


def tuning_gain(records: Records, selection: Sequence[str] | None = None) -> pd.DataFrame:
    """What the search for hyper-parameters gains over their defaults.

    Columns: `selection`, `dataset`, `algorithm`; `default` and `best`, the results of the default
    hyper-parameters and of the chosen draw; `gain`, by how much that is better, with its `std_err`
    over `n_trials` trials (first averaged over test domains within a trial); and `n_draws`, the
    fewest hparams seeds that a choice was made from.
    """
    frames, rows, unit = [], [], Unit.of(records.metric)
    for name in _names(selection):
        ranked = SELECTION_METHODS[name].rank(records)
        best = ranked.drop_duplicates(_RUN).set_index(_RUN)["test"].rename("best")
        default = ranked[ranked["hparams_seed"] == DEFAULT_SEED].set_index(_RUN)["test"]
        draws = ranked.groupby(_RUN).size().rename("n_draws")
        both = pd.concat([best, default.rename("default"), draws], axis=1).dropna().reset_index()
        frames.append(both.assign(selection=name))
    for key, of_group in pd.concat(frames).groupby(["selection", *_GROUP], sort=False):
        by_trial = of_group.groupby("trial_seed")[["default", "best"]].mean()
        better = unit.sign * (by_trial["best"] - by_trial["default"])
        gain = mean_over_trials(better.to_dict(), unit.factor)
        numbers = gain.mean, gain.std_err, gain.n_trials, int(of_group["n_draws"].min())
        rows.append((*key, *unit.factor * by_trial.mean(), *numbers))
    columns = ["selection", *_GROUP, "default", "best", "gain", "std_err", "n_trials", "n_draws"]
    return _in_order(pd.DataFrame(rows, columns=columns))


def expected_best(records: Records, selection: Sequence[str] | None = None) -> pd.DataFrame:
    """The result that k random draws of the hyper-parameters give on average.

    Columns: `selection`, `dataset`, `algorithm`, `draws` (k, up to the fewest that a test domain
    and trial has), the metric under its name, the mean over test domains and trials, and
    `n_trials`.
    """
    rows, factor = [], Unit.of(records.metric).factor
    for name in _names(selection):
        ranked = SELECTION_METHODS[name].rank(records).iloc[::-1]  # from worst to best
        for key, of_group in ranked.groupby(_GROUP, sort=False):
            tests = [of["test"].to_numpy() for _, of in of_group.groupby(_RUN)]
            curves = [statistics.expected_best(of_run) for of_run in tests]
            fewest = min(map(len, curves))
            means = factor * np.mean([curve[:fewest] for curve in curves], axis=0)
            trials = of_group["trial_seed"].nunique()
            rows += [(name, *key, k, mean, trials) for k, mean in enumerate(means.tolist(), 1)]
    columns = ["selection", *_GROUP, "draws", records.metric, "n_trials"]
    return _in_order(pd.DataFrame(rows, columns=columns))


def worst_domains(report: Report) -> pd.DataFrame:
    """The worst number in each row of the tables, and the mean.

    Columns: `selection`, `dataset`, `algorithm`, `domain` (name of the worst), `worst` and
    `mean` as in the tables, and `n_trials` of the worst. A row that lacks a result is left out.
    """
    cells, sign = to_frame(report), Unit.of(report.records.metric).sign
    rows = []
    for key, of_row in cells[cells["table"] == "dataset"].groupby(
        ["selection", *_GROUP], sort=False
    ):
        if of_row["mean"].notna().all():
            domains, mean = of_row.iloc[:-1], of_row["mean"].iloc[-1]
            worst = domains.loc[(sign * domains["mean"]).idxmin()]
            rows.append((*key, worst["domain"], worst["mean"], mean, worst["n_trials"]))
    return pd.DataFrame(rows, columns=["selection", *_GROUP, "domain", "worst", "mean", "n_trials"])


def in_and_out(records: Records) -> pd.DataFrame:
    """Every run with one test domain, at its last record: what it does at home and away.

    Columns: `dataset`, `algorithm`, `test_env`, `trial_seed`, `hparams_seed`; `in_domain`, the
    mean of the metric on the out-splits of the training domains; and `out_of_domain`, the metric
    on the in-split of the test domain; percentages in percent.
    """
    run, factor = [*_RUN, "hparams_seed"], Unit.of(records.metric).factor
    records = records.as_reported()
    scores = SELECTION_METHODS["oracle"].score(records)  # one row per run, at its last record
    table = records.of_single_domains
    rows = table.keys[[*run, "step"]].assign(row=np.arange(len(table.keys)))
    last = scores.merge(rows, on=[*run, "step"]).drop_duplicates(run, ignore_index=True)
    values = table.out_split[last["row"]].copy()
    values[np.arange(len(last)), last["test_env"]] = np.nan
    in_domain = factor * pd.DataFrame(values).mean(axis=1)
    return last[run].assign(in_domain=in_domain, out_of_domain=factor * last["test"])


def accuracy_on_the_line(records: Records) -> pd.DataFrame:
    """How well the in-domain result predicts the out-of-domain one, over all runs of a test domain.

    The line is fitted to the probits of both (Miller et al., "Accuracy on the Line", ICML 2021), or
    to the values themselves of a metric other than a percentage. Columns: `dataset`, `domain` (its
    name), `runs`, `slope`, `intercept` and `correlation` (Pearson's, of what the line is fitted
    to); NaN for fewer than three runs, or if one of the two is constant.
    """
    rows, factor = [], Unit.of(records.metric).factor
    for (dataset, env), points in in_and_out(records).groupby(["dataset", "test_env"], sort=False):
        name = domain_names(records.runs, dataset)[env]
        x, y = points[["in_domain", "out_of_domain"]].to_numpy().T
        if factor == PERCENT:
            x, y = ndtri(np.clip(np.stack([x, y]) / PERCENT, _CLIP, 1 - _CLIP))
        fit = [np.nan] * 3
        if len(points) > 2 and np.ptp(x) > 0 and np.ptp(y) > 0:
            of_x, of_both, _, of_y = np.cov(x, y, bias=True).flat
            slope, correlation = of_both / of_x, of_both / np.sqrt(of_x * of_y)
            fit = [float(slope), float(y.mean() - slope * x.mean()), float(correlation)]
        rows.append((dataset, name, len(points), *fit))
    columns = ["dataset", "domain", "runs", "slope", "intercept", "correlation"]
    return _in_order(pd.DataFrame(rows, columns=columns))


def _in_order(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows in the order of the tables: by method, dataset, algorithm, and else as they are."""
    names = {
        "selection": list(SELECTION_METHODS),
        "dataset": order_datasets(frame["dataset"]),
        "algorithm": order_algorithms(frame.get("algorithm", ())),
    }
    columns = [column for column in names if column in frame]
    return frame.sort_values(
        columns, key=lambda column: column.map(names[column.name].index), ignore_index=True
    )
