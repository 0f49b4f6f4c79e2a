"""What tables of means do not show: differences to a baseline, ranks, and gains and gaps.

Differences are paired by dataset, test domain and trial.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from domainbed.core.names import order_algorithms, order_datasets
from domainbed.errors import UserError, did_you_mean
from domainbed.reporting import statistics
from domainbed.reporting.render import to_frame
from domainbed.reporting.statistics import CriticalDifference, PairedCell
from domainbed.reporting.tables import AVERAGE, Report, domain_names, mean_over_trials
from domainbed.runs.records import Records
from domainbed.selection import SELECTION_METHODS

CELL = ["dataset", "test_env"]
PAIR = [*CELL, "trial_seed"]
DEFAULT_SEED = 0
"""The hparams seed of the default hyper-parameters."""

_CLIP = 1e-3  # probits of 0 and 1 are infinite
_GROUP = ["dataset", "algorithm"]
_RUN = [*_GROUP, "test_env", "trial_seed"]


def chosen_accuracies(records: Records, selection: Sequence[str] | None = None) -> pd.DataFrame:
    """The accuracies that the tables are made of, one row per choice.

    Columns: `selection`, `dataset`, `algorithm`, `test_env` (number of the domain), `trial_seed`,
    `hparams_seed`, `step`, and `accuracy` in percent.
    """
    names = list(SELECTION_METHODS) if selection is None else dict.fromkeys(selection)
    frames = [SELECTION_METHODS[name].select(records).assign(selection=name) for name in names]
    chosen = pd.concat(frames, ignore_index=True)
    chosen["accuracy"] = 100 * chosen["test_acc"]
    return chosen[["selection", *PAIR, "algorithm", "hparams_seed", "step", "accuracy"]]


def differences(
    records: Records,
    selection: Sequence[str] | None = None,
    baseline: str = "ERM",
    unit: str = "trial",
    rope: float | None = None,
) -> pd.DataFrame:
    """Each algorithm's difference to the baseline, on each dataset and over all.

    Args:
        records: as from `load_records`, of the datasets and algorithms to compare.
        selection: short names of selection methods; None for all.
        baseline: the algorithm that the others are compared with.
        unit: what counts as one observation, for wins and tests; one of `statistics.UNITS`.
        rope: differences up to it, in points, are practically none; None leaves that test out.

    Returns:
        One row per method, dataset ("Avg": over all) and algorithm, with the columns `selection`,
        `dataset`, `algorithm`, `baseline`; `difference` in percentage points; the ends of its
        95 % intervals, `trials_low` and `trials_high` with trials resampled, `datasets_low` and
        `datasets_high` with datasets resampled; `probability_of_improvement`; `wins`, `ties`,
        `losses`; `p_value` of Wilcoxon's test, and `holm_p_value`, corrected for the algorithms of
        the same method and dataset; with a rope `p_worse`, `p_equal` and `p_better`; and what it
        rests on: `observations`, `pairs` (of runs), `domains`, `datasets`, `trials` (the fewest of
        a domain), and `unpaired`, runs that the other algorithm has no counterpart of.

        NaN stands where a number cannot be.

    Raises:
        UserError: the baseline or the unit is unknown, or there is nothing to compare.
    """
    accuracies = chosen_accuracies(records, selection)
    _check(records, baseline, unit, rope)
    rows = []
    for name, chosen in accuracies.groupby("selection", sort=False):
        for dataset in [*order_datasets(chosen["dataset"]), AVERAGE]:
            of_dataset = chosen if dataset == AVERAGE else chosen[chosen["dataset"] == dataset]
            rows += _rows(of_dataset, str(name), dataset, baseline, unit, rope)
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
    found = {}
    for name, chosen in chosen_accuracies(records, selection).groupby("selection", sort=False):
        algorithms = order_algorithms(chosen["algorithm"])
        wide = chosen.pivot(index=PAIR, columns="algorithm", values="accuracy")
        table = _averaged(wide[algorithms].dropna(), unit)
        found[str(name)] = statistics.critical_difference(table.to_numpy(), algorithms)
    return found


def _check(records: Records, baseline: str, unit: str, rope: float | None) -> None:
    if unit not in statistics.UNITS:
        raise UserError(f"unit is {unit!r}: expected one of {', '.join(statistics.UNITS)}")
    if rope is not None and not (rope > 0 and math.isfinite(rope)):
        raise UserError(f"rope is {rope:g}: expected a number of points above 0")
    known = order_algorithms(records.runs["algorithm"])
    if baseline not in known:
        raise UserError(
            f"no records of the baseline {baseline!r}.{did_you_mean(baseline, known)} "
            f"There are: {', '.join(known)}"
        )
    if len(known) < 2:
        raise UserError(f"{baseline!r} is the only algorithm: there is nothing to compare it with")


def _rows(
    chosen: pd.DataFrame, selection: str, dataset: str, baseline: str, unit: str, rope: float | None
) -> list[dict[str, Any]]:
    """The rows of one method and dataset, with the p-values corrected for their number."""
    rows: list[dict[str, Any]] = []
    for algorithm in order_algorithms(chosen["algorithm"]):
        cells, unpaired = paired_cells(chosen, algorithm, baseline)
        if algorithm != baseline and cells:
            names = {
                "selection": selection,
                "dataset": dataset,
                "algorithm": algorithm,
                "baseline": baseline,
            }
            rows.append({**names, **_numbers(cells, unit, rope), "unpaired": unpaired})
    corrected = statistics.holm([row["p_value"] for row in rows])
    return [{**row, "holm_p_value": p} for row, p in zip(rows, corrected, strict=True)]


def paired_cells(
    chosen: pd.DataFrame, algorithm: str, baseline: str
) -> tuple[list[PairedCell], int]:
    """The pairs of two algorithms by test domain, and how many runs have no counterpart."""
    wide = chosen.pivot(index=PAIR, columns="algorithm", values="accuracy")
    both = wide.reindex(columns=[algorithm, baseline]).dropna(how="all")
    pairs = both.dropna()
    cells = [
        PairedCell(str(key[0]), of_cell[algorithm].to_numpy(), of_cell[baseline].to_numpy())
        for key, of_cell in pairs.groupby(CELL)
    ]
    return cells, len(both) - len(pairs)


def _numbers(cells: list[PairedCell], unit: str, rope: float | None) -> dict[str, Any]:
    observed = statistics.observations(cells, unit)
    trials_low, trials_high = statistics.trial_interval(cells)
    datasets_low, datasets_high = statistics.dataset_interval(cells)
    numbers: dict[str, Any] = {
        "difference": float(statistics.observations(cells, "dataset").mean()),
        "trials_low": trials_low,
        "trials_high": trials_high,
        "datasets_low": datasets_low,
        "datasets_high": datasets_high,
        "probability_of_improvement": statistics.probability_of_improvement(cells),
        **statistics.win_tie_loss(observed),
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
    """What knowing the test domain is worth: accuracy under the one method minus the other.

    Columns: `dataset`, `algorithm`, `domain` (its name, or "Avg": first over the test domains
    within a trial), `gap` in percentage points, its `std_err` over trials, and `n_trials`.
    """
    chosen = chosen_accuracies(records, [better, other])
    wide = chosen.pivot(index=_RUN, columns="selection", values="accuracy")
    gaps = wide.reindex(columns=[better, other]).dropna()
    frame = (gaps[better] - gaps[other]).rename("gap").reset_index()
    return _in_order(_over_trials(frame, "gap", records.runs))


def tuning_gain(records: Records, selection: Sequence[str] | None = None) -> pd.DataFrame:
    """What the search for hyper-parameters gains over their defaults.

    Columns: `selection`, `dataset`, `algorithm`; `default` and `best`, the accuracies in percent
    of the default hyper-parameters and of the chosen draw; `gain`, the difference in points, with
    its `std_err` over `n_trials` trials (first averaged over test domains within a trial); and
    `n_draws`, the fewest hparams seeds that a choice was made from.
    """
    frames = []
    for name in SELECTION_METHODS if selection is None else dict.fromkeys(selection):
        ranked = SELECTION_METHODS[name].rank(records)
        best = ranked.drop_duplicates(_RUN).set_index(_RUN)["test_acc"].rename("best")
        default = ranked[ranked["hparams_seed"] == DEFAULT_SEED].set_index(_RUN)["test_acc"]
        draws = ranked.groupby(_RUN).size().rename("n_draws")
        both = pd.concat([best, default.rename("default"), draws], axis=1).dropna().reset_index()
        frames.append(_gains(both).assign(selection=name))
    columns = ["selection", *_GROUP, "default", "best", "gain", "std_err", "n_trials", "n_draws"]
    return _in_order(pd.concat(frames, ignore_index=True)[columns])


def expected_best(records: Records, selection: Sequence[str] | None = None) -> pd.DataFrame:
    """The accuracy that k random draws of the hyper-parameters give on average.

    Columns: `selection`, `dataset`, `algorithm`, `draws` (k, up to the fewest that a test domain
    and trial has), `accuracy` in percent, the mean over test domains and trials, and `n_trials`.
    """
    rows: list[dict[str, object]] = []
    for name in SELECTION_METHODS if selection is None else dict.fromkeys(selection):
        ranked = SELECTION_METHODS[name].rank(records).iloc[::-1]  # from worst to best
        for (dataset, algorithm), of_group in ranked.groupby(_GROUP, sort=False):
            accuracies = [of["test_acc"].to_numpy() for _, of in of_group.groupby(_RUN)]
            curves = [statistics.expected_best(of_run) for of_run in accuracies]
            fewest = min(map(len, curves))
            means = 100 * np.mean([curve[:fewest] for curve in curves], axis=0)
            rows += [
                {"selection": name, "dataset": dataset, "algorithm": algorithm, "draws": draws,
                 "accuracy": accuracy, "n_trials": of_group["trial_seed"].nunique()}
                for draws, accuracy in enumerate(means.tolist(), start=1)
            ]  # fmt: skip
    columns = ["selection", *_GROUP, "draws", "accuracy", "n_trials"]
    return _in_order(pd.DataFrame(rows, columns=columns))


def worst_domains(report: Report) -> pd.DataFrame:
    """The lowest accuracy in each row of the tables, and the mean.

    Columns: `selection`, `dataset`, `algorithm`, `domain` (name of the worst), `worst` and
    `mean` in percent, and `n_trials` of the worst. A row that lacks a result is left out.
    """
    cells = to_frame(report)
    rows = []
    for key, of_row in cells[cells["table"] == "dataset"].groupby(
        ["selection", *_GROUP], sort=False
    ):
        if of_row["mean"].notna().all():
            domains, mean = of_row.iloc[:-1], of_row["mean"].iloc[-1]
            worst = domains.loc[domains["mean"].idxmin()]
            rows.append((*key, worst["domain"], worst["mean"], mean, worst["n_trials"]))
    columns = ["selection", *_GROUP, "domain", "worst", "mean", "n_trials"]
    return pd.DataFrame(rows, columns=columns)


def in_and_out(records: Records) -> pd.DataFrame:
    """Every run with one test domain, at its last record: what it does at home and away.

    Columns: `dataset`, `algorithm`, `test_env`, `trial_seed`, `hparams_seed`; `in_domain`, the
    mean accuracy in percent on the out-splits of the training domains; and `out_of_domain`, the
    accuracy in percent on the in-split of the test domain.
    """
    run = [*_RUN, "hparams_seed"]
    scores = SELECTION_METHODS["oracle"].score(records)  # one row per run, at its last record
    table = records.of_single_domains
    rows = table.keys[[*run, "step"]].assign(row=np.arange(len(table.keys)))
    last = scores.merge(rows, on=[*run, "step"]).drop_duplicates(run, ignore_index=True)
    accuracies = table.out_split[last["row"]].copy()
    accuracies[np.arange(len(last)), last["test_env"]] = np.nan
    in_domain = 100 * pd.DataFrame(accuracies).mean(axis=1)
    return last[run].assign(in_domain=in_domain, out_of_domain=100 * last["test_acc"])


def accuracy_on_the_line(records: Records) -> pd.DataFrame:
    """How well in-domain accuracy predicts out-of-domain accuracy, over all runs of a test domain.

    The line is fitted to the probits of both (Miller et al., "Accuracy on the Line", ICML 2021).
    Columns: `dataset`, `domain` (its name), `runs`, `slope`, `intercept` and `correlation`
    (Pearson's, of the probits); NaN for fewer than three runs, or if one of the two is constant.
    """
    rows = []
    for (dataset, env), points in in_and_out(records).groupby(["dataset", "test_env"], sort=False):
        name = domain_names(records.runs, dataset)[env]
        clipped = np.clip(points[["in_domain", "out_of_domain"]] / 100, _CLIP, 1 - _CLIP)
        x, y = stats.norm.ppf(clipped.to_numpy().T)
        fit = [np.nan] * 3
        if len(points) > 2 and np.ptp(x) > 0 and np.ptp(y) > 0:
            line = stats.linregress(x, y)
            fit = [float(line.slope), float(line.intercept), float(line.rvalue)]
        rows.append((dataset, name, len(points), *fit))
    columns = ["dataset", "domain", "runs", "slope", "intercept", "correlation"]
    return _in_order(pd.DataFrame(rows, columns=columns))


def _gains(both: pd.DataFrame) -> pd.DataFrame:
    """The mean over trials of what was averaged over test domains."""
    rows = []
    for key, of_group in both.groupby(_GROUP, sort=False):
        by_trial = of_group.groupby("trial_seed")[["default", "best"]].mean()
        gain = mean_over_trials((by_trial["best"] - by_trial["default"]).tolist())
        means = (100 * by_trial.mean()).to_dict()
        found = {"gain": gain.mean, "std_err": gain.std_err, "n_trials": gain.n_trials}
        names = dict(zip(_GROUP, key, strict=True))
        rows.append({**names, **means, **found, "n_draws": int(of_group["n_draws"].min())})
    columns = [*_GROUP, "default", "best", "gain", "std_err", "n_trials", "n_draws"]
    return pd.DataFrame(rows, columns=columns)


def _over_trials(frame: pd.DataFrame, value: str, runs: pd.DataFrame) -> pd.DataFrame:
    """Mean and standard error over trials of each domain, and of the mean over domains."""
    rows = []
    for key, of_group in frame.groupby(_GROUP, sort=False):
        names = domain_names(runs, key[0])
        sets = {names[env]: of_env for env, of_env in of_group.groupby("test_env")}
        for domain, of_domain in {**sets, AVERAGE: of_group}.items():
            numbers = of_domain.groupby("trial_seed")[value].mean() / 100
            cell = mean_over_trials(numbers.tolist())
            rows.append((*key, domain, cell.mean, cell.std_err, cell.n_trials))
    return pd.DataFrame(rows, columns=[*_GROUP, "domain", value, "std_err", "n_trials"])


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
