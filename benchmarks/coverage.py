"""What intervals over few trials are worth, from sweeps with many: three questions, three tables.

Coverage: of the differences between two algorithms, how often does the 95 % interval of `compare`
from two, three or five trials contain the mean over all trials? Trials are drawn without
replacement from a finite number, which makes the error of their mean smaller than that of
independent ones; the error is divided by the square root of 1 - drawn/all to make up for it.

Resolution: how many trials make half of that interval's width at most one percentage point?

Order: how well do the averages from one random half of the draws, trials or test domains put the
algorithms into the order that the other half gives (Kendall's tau; 1: the same, 0: chance)?
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from itertools import combinations

import numpy as np
import pandas as pd
from scipy.special import stdtrit
from scipy.stats import kendalltau

from domainbed.core.names import order_algorithms
from domainbed.reporting.comparison import PAIR, chosen_values, paired_cells
from domainbed.reporting.statistics import PairedCell, trial_interval
from domainbed.runs.load import load_records
from domainbed.runs.records import Records

METHOD = "training-domain"
ENOUGH = 10  # trials, to know the mean and the spread


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folders", nargs="+", help="sweeps or exports, of one dataset each")
    parser.add_argument("--trials", type=int, nargs="+", default=[2, 3, 5])
    parser.add_argument("--samples", type=int, default=4000, help="random sets of trials, of each")
    parser.add_argument("--halves", type=int, default=200, help="random halves")
    parser.add_argument(
        "--near", type=float, metavar="POINTS", help="only algorithms that are as near to ERM"
    )
    args = parser.parse_args()
    for folder in args.folders:
        records = load_records(folder)
        if args.near is not None:
            distances = (_averages(records) - _averages(records)["ERM"]).abs()
            near = distances.index[distances <= args.near]
            records = records.only(records.runs["algorithm"].isin(near))
        chosen = chosen_values(records, [METHOD])
        wide = chosen.pivot(index=PAIR, columns="algorithm", values=records.metric)
        trials = wide.index.get_level_values("trial_seed").nunique()
        print(f"{folder}: {trials} trials of {len(wide.columns)} algorithms\n")
        tables = {"order": order(records, args.halves)}
        if trials >= ENOUGH:
            tables["coverage"] = coverage(wide, args.trials, args.samples)
            tables["trials that resolve one point"] = resolution(wide)
        for name, table in tables.items():
            if len(table):
                print(f"{name}\n\n{table.to_string(index=False, float_format='{:.2f}'.format)}\n")


def pairs(wide: pd.DataFrame) -> Iterator[tuple[str, list[PairedCell]]]:
    for ours, baseline in combinations(order_algorithms(wide.columns), 2):
        yield f"{baseline} - {ours}", paired_cells(wide, baseline, ours)[0]


def coverage(wide: pd.DataFrame, sizes: list[int], samples: int) -> pd.DataFrame:
    """Per pair of algorithms and number of trials the percentage of intervals that contain it."""
    rng, rows = np.random.default_rng(0), []
    for name, cells in pairs(wide):
        row: dict[str, object] = {"difference": name}
        total = len(cells[0].trials)
        truth = np.mean([cell.differences for cell in cells])
        for size in sizes:
            if size < total / 2:
                shrink = np.sqrt(1 - size / total)
                hits = 0
                for _ in range(samples):
                    drawn = np.sort(rng.choice(total, size, replace=False))
                    low, high = trial_interval([_only(cell, drawn) for cell in cells])
                    hits += abs((low + high) / 2 - truth) / shrink <= (high - low) / 2
                row[f"{size} trials"] = f"{100 * hits / samples:.1f} %"
        if len(row) > 1:
            rows.append(row)
    return pd.DataFrame(rows)


def _only(cell: PairedCell, drawn: np.ndarray) -> PairedCell:
    trials = [cell.trials[i] for i in drawn]
    return PairedCell(cell.dataset, cell.ours[drawn], cell.baseline[drawn], trials)


def resolution(wide: pd.DataFrame) -> pd.DataFrame:
    """Per pair and number of test domains the spread of a trial, and the trials for one point."""
    rows = []
    for name, cells in pairs(wide):
        differences = np.array([cell.differences for cell in cells])  # (domains, trials)
        row: dict[str, object] = {"difference": name, "mean": differences.mean()}
        for domains in sorted({1, 2, len(cells)}):
            spread = np.mean(
                [
                    differences[list(some)].mean(axis=0).std(ddof=1)
                    for some in combinations(range(len(cells)), domains)
                ]
            )
            row[f"{domains} domains: std"] = spread
            row[f"{domains} domains: trials"] = _trials_for(spread)
        rows.append(row)
    return pd.DataFrame(rows)


def _trials_for(spread: float, points: float = 1.0) -> int:
    trials = 2
    while stdtrit(trials - 1, 0.975) * spread / np.sqrt(trials) > points:
        trials += 1
    return trials


def order(records: Records, halves: int) -> pd.DataFrame:
    """Kendall's tau between the orders that two random halves give: mean, and lowest of 95 %."""
    rng, rows = np.random.default_rng(0), []
    envs = records.runs["test_envs"].map(lambda envs: envs[0])
    of_units = {
        "draws": records.runs["hparams_seed"],
        "trials": records.runs["trial_seed"],
        "test domains": envs,
    }
    if records.runs["algorithm"].nunique() < 4:  # too few to be put in an order
        return pd.DataFrame()
    for unit, values in of_units.items():
        known = np.unique(values)
        if len(known) < 2:
            continue
        taus = []
        for _ in range(halves):
            some = rng.permutation(known)[: len(known) // 2]
            first, second = (_averages(records.only(side)) for side in _sides(values, some))
            taus.append(kendalltau(first, second.reindex(first.index)).statistic)
        rows.append(
            {
                "halves of": f"{len(known)} {unit}",
                "tau": np.mean(taus),
                "5 % of halves below": np.quantile(taus, 0.05),
            }
        )
    return pd.DataFrame(rows)


def _sides(values: pd.Series, some: np.ndarray) -> tuple[pd.Series, pd.Series]:
    inside = values.isin(some)
    return inside, ~inside


def _averages(records: Records) -> pd.Series:
    return chosen_values(records, [METHOD]).groupby("algorithm")[records.metric].mean()


if __name__ == "__main__":
    main()
