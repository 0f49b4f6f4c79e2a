"""Comparing algorithms: differences to a baseline, paired by dataset, test domain and trial."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pandas as pd

from domainbed.core.names import order_algorithms, order_datasets
from domainbed.core.suggest import did_you_mean
from domainbed.errors import UserError
from domainbed.reporting import statistics
from domainbed.reporting.statistics import CriticalDifference, PairedCell
from domainbed.reporting.tables import AVERAGE
from domainbed.runs.records import Records
from domainbed.selection import SELECTION_METHODS

CELL = ["dataset", "test_env"]
PAIR = [*CELL, "trial_seed"]


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
        `dataset`, `algorithm`, `baseline`; `difference` in points of percent; the ends of its
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
    trials, datasets = statistics.trial_interval(cells), statistics.dataset_interval(cells)
    numbers: dict[str, Any] = {
        "difference": statistics.mean_difference(cells),
        "trials_low": trials.low,
        "trials_high": trials.high,
        "datasets_low": datasets.low,
        "datasets_high": datasets.high,
        "probability_of_improvement": statistics.probability_of_improvement(cells),
        **statistics.win_tie_loss(observed)._asdict(),
        "p_value": statistics.wilcoxon(observed),
        "holm_p_value": math.nan,
        "observations": len(observed),
        "pairs": sum(len(cell.differences) for cell in cells),
        "domains": len(cells),
        "datasets": len({cell.dataset for cell in cells}),
        "trials": min(len(cell.differences) for cell in cells),
    }
    if rope is not None:
        chances = statistics.practically_equal(observed, rope)
        numbers |= {f"p_{name}": value for name, value in chances._asdict().items()}
    return numbers


def _averaged(wide: pd.DataFrame, unit: str) -> pd.DataFrame:
    """From one row per test domain and trial to one per observation."""
    if unit == "trial":
        return wide
    domains = wide.groupby(level=CELL).mean()
    return domains if unit == "domain" else domains.groupby(level="dataset").mean()
