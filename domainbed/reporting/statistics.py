"""Statistics of paired numbers, the higher the better. What few trials prove is little.

Accuracies are in percent. An average is taken as in the tables: over the trials of a test domain,
over the test domains of a dataset, over datasets.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import pandas as pd

from domainbed.errors import UserError

CONFIDENCE = 0.95
RESAMPLES = 10_000
TIE = 0.05
"""Differences below it, in percentage points, are ties: the tables print one decimal."""

UNITS = ("trial", "domain", "dataset")
"""What a test counts as one observation: each pair of runs, or their mean over a larger whole."""


@dataclass(frozen=True)
class PairedCell:
    """The numbers of two algorithms on one test domain, trial by trial.

    Attributes:
        dataset: its name.
        ours, baseline: (trials,), the higher the better; the same position is the same trial.
        trials: their seeds, ascending.
    """

    dataset: str
    ours: np.ndarray
    baseline: np.ndarray
    trials: Sequence[int]

    @property
    def differences(self) -> np.ndarray:
        """(trials,): ours minus the baseline."""
        return self.ours - self.baseline


Interval = tuple[float, float]
"""Two ends; both NaN where there are too few values."""

NO_INTERVAL: Interval = (math.nan, math.nan)


def observations(cells: Sequence[PairedCell], unit: str) -> np.ndarray:
    """The differences that a test reads: of each trial, of each test domain, or of each dataset."""
    if unit == "trial":
        return np.concatenate([cell.differences for cell in cells])
    if unit == "domain":
        return np.array([cell.differences.mean() for cell in cells])
    return _dataset_means(cells, [cell.differences.mean() for cell in cells])


def student_half_width(values: np.ndarray | Sequence[float]) -> float:
    """Half of the 95 % interval of Student's t for the mean of independent values; two or more."""
    from scipy.special import stdtrit  # `scipy.stats` would take a second to import

    n = len(values)
    return float(stdtrit(n - 1, 0.5 + CONFIDENCE / 2) * np.std(values, ddof=1) / np.sqrt(n))


def trial_interval(cells: Sequence[PairedCell]) -> Interval:
    """The interval of the mean difference by Student's t, over the means of the trials.

    A trial's mean is over test domains, then datasets, and only trials that all cells have count;
    the centre is the mean difference of all pairs.
    """
    common = sorted(set.intersection(*(set(cell.trials) for cell in cells)))
    if len(common) < 2:
        return NO_INTERVAL
    of_cells = [cell.differences[np.searchsorted(cell.trials, common)] for cell in cells]
    half = student_half_width(_dataset_means(cells, of_cells).mean(axis=0))
    centre = float(observations(cells, "dataset").mean())
    return centre - half, centre + half


def dataset_interval(cells: Sequence[PairedCell], seed: int = 0) -> Interval:
    """The bootstrap interval of the mean difference with datasets resampled."""
    means = observations(cells, "dataset")
    if len(means) < 2:
        return NO_INTERVAL
    drawn = np.random.default_rng(seed).integers(len(means), size=(RESAMPLES, len(means)))
    tail = 50 * (1 - CONFIDENCE)
    low, high = np.percentile(means[drawn].mean(axis=1), [tail, 100 - tail])
    return float(low), float(high)


def probability_of_improvement(cells: Sequence[PairedCell]) -> float:
    """The chance that a run is better than one of the baseline (Agarwal et al. 2021, section 4.3).

    In each test domain every trial of one is set against every trial of the other; a tie is half
    a win.
    """
    signs = [np.sign(cell.ours[:, None] - cell.baseline[None, :]) for cell in cells]
    return float(_dataset_means(cells, [(1 + of_cell.mean()) / 2 for of_cell in signs]).mean())


def win_tie_loss(differences: np.ndarray, tie: float = TIE) -> dict[str, int]:
    """How many of the differences are `wins`, `ties` (below `tie`) and `losses`."""
    return {
        "wins": int((differences >= tie).sum()),
        "ties": int((np.abs(differences) < tie).sum()),
        "losses": int((differences <= -tie).sum()),
    }


def wilcoxon(differences: np.ndarray) -> float:
    """The two-sided p-value of Wilcoxon's signed-rank test; NaN if all differences are zero.

    As SciPy's, which is exact for up to 50 differences, or 13 if some are alike in size or zero.
    For those, SciPy calls a function for each of the up to 8,192 combinations of signs.
    """
    if not np.any(differences):
        return math.nan
    from scipy import stats  # where it is needed: it takes a second to import

    ranks = stats.rankdata(np.abs(differences[differences != 0]))
    if len(differences) > 13 or len(set(ranks)) == len(differences):
        return float(stats.wilcoxon(differences).pvalue)
    sums = np.array(list(product((0, 1), repeat=len(ranks)))) @ ranks
    found = ranks[differences[differences != 0] > 0].sum()
    return float(min(1, 2 * min((sums <= found).mean(), (sums >= found).mean())))


def least_p_value(count: int) -> float:
    """The smallest p-value that Wilcoxon's test can give for so many differences."""
    return min(1.0, 2.0 ** (1 - count))


def holm(p_values: Sequence[float]) -> list[float]:
    """The p-values after Holm's correction for their number; those that are NaN stay so."""
    values = np.array(p_values, dtype=float)
    order = np.argsort(values)[: int(np.isfinite(values).sum())]
    factors = np.arange(len(order), 0, -1)
    corrected = np.full(len(values), math.nan)
    corrected[order] = np.minimum(1, np.maximum.accumulate(values[order] * factors))
    return corrected.tolist()


def practically_equal(differences: np.ndarray, rope: float, seed: int = 0) -> dict[str, float]:
    """The Bayesian signed-rank test with a region of practical equivalence.

    Benavoli, Corani, Demšar and Zaffalon, "Time for a change" (JMLR 2017), section 4.2.

    Args:
        differences: (observations,)
        rope: differences up to it do not matter.
        seed: of the draws from the posterior.

    Returns:
        The posterior probabilities `p_worse`, `p_equal` (practically) and `p_better`.

    Raises:
        UserError: baycomp is not installed.
    """
    try:
        from baycomp import SignedRankTest
    except ImportError as error:
        raise UserError("the Bayesian test needs baycomp: pip install baycomp") from error
    # Its first probability is that of the first argument.
    better, equal, worse = SignedRankTest.probs(
        differences, np.zeros(len(differences)), rope=rope, nsamples=RESAMPLES, random_state=seed
    )
    return {"p_worse": float(worse), "p_equal": float(equal), "p_better": float(better)}


@dataclass(frozen=True)
class CriticalDifference:
    """Friedman's test and Nemenyi's critical difference (Demšar 2006, section 3.2).

    Attributes:
        mean_ranks: by algorithm, ascending; 1 is best, ties share the mean of their ranks.
        count: how many observations the ranks are over.
        p_value: of Friedman's test; NaN for fewer than three algorithms or two observations.
        distance: mean ranks that are further apart differ; NaN likewise.
        groups: the largest sets of two or more neighbours that do not differ.
    """

    mean_ranks: dict[str, float]
    count: int
    p_value: float
    distance: float
    groups: list[tuple[str, ...]]

    @property
    def can_differ(self) -> bool:
        """Whether any ranks of so few observations could be further apart than the distance."""
        return self.distance < len(self.mean_ranks) - 1

    @property
    def tells_apart(self) -> bool:
        """Whether Friedman's test finds a difference, and some mean ranks are far enough apart."""
        ranks = list(self.mean_ranks.values())
        return self.p_value < 1 - CONFIDENCE and ranks[-1] - ranks[0] > self.distance


def critical_difference(values: np.ndarray, algorithms: Sequence[str]) -> CriticalDifference:
    """Ranks `algorithms` on each observation, and says which mean ranks differ.

    Args:
        values: (observations, algorithms), without gaps; the higher the better.
        algorithms: their names.
    """
    count, size = values.shape
    ranks = pd.DataFrame(-values).rank(axis=1).to_numpy()
    ranks = ranks.mean(axis=0) if count else np.full(size, math.nan)
    mean_ranks = {algorithms[i]: float(ranks[i]) for i in np.argsort(ranks, kind="stable")}
    if size < 3 or count < 2:
        return CriticalDifference(mean_ranks, count, math.nan, math.nan, [])
    from scipy import stats

    constant = bool((values == values[:, :1]).all())
    p_value = math.nan if constant else float(stats.friedmanchisquare(*values.T).pvalue)
    quantile = stats.studentized_range.ppf(CONFIDENCE, size, np.inf) / math.sqrt(2)
    distance = float(quantile * math.sqrt(size * (size + 1) / (6 * count)))
    return CriticalDifference(mean_ranks, count, p_value, distance, _groups(mean_ranks, distance))


def _groups(mean_ranks: dict[str, float], distance: float) -> list[tuple[str, ...]]:
    names, groups, last = list(mean_ranks), [], 0
    for first, name in enumerate(names):
        near = [n for n in names[first:] if mean_ranks[n] - mean_ranks[name] <= distance]
        if len(near) > 1 and first + len(near) > last:
            groups.append(tuple(near))
        last = max(last, first + len(near))
    return groups


def expected_best(tests: np.ndarray) -> np.ndarray:
    """The result on the test domain that choosing among k random draws gives on average, by k.

    Args:
        tests: (draws,), from the draw that is chosen last, the worst, to the best.

    Returns:
        (draws,): at position k - 1 the mean over all sets of k different draws.
    """
    count = len(tests)
    # The draw with i worse ones is chosen in C(i, k - 1) of the C(count, k) sets.
    weights = [
        [math.comb(i, k - 1) / math.comb(count, k) for i in range(count)]
        for k in range(1, count + 1)
    ]
    return np.array(weights) @ tests


def _dataset_means(cells: Sequence[PairedCell], values: Sequence[Any]) -> np.ndarray:
    """A number, or an array, of each cell averaged within datasets: (datasets, ...)."""
    names, stacked = np.array([cell.dataset for cell in cells]), np.array(values)
    return np.array([stacked[names == name].mean(axis=0) for name in dict.fromkeys(names)])
