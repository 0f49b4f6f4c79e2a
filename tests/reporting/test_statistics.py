"""Statistics by hand, against SciPy, and against plain enumeration."""

from __future__ import annotations

import itertools
import math
import sys

import numpy as np
import pytest
from scipy import stats

from domainbed.errors import UserError
from domainbed.reporting import statistics
from domainbed.reporting.statistics import PairedCell


def cell(dataset, ours, baseline, trials=None):
    values = np.array(ours, dtype=float), np.array(baseline, dtype=float)
    return PairedCell(dataset, *values, range(len(ours)) if trials is None else trials)


# Differences: A: (1, 3) and (2, 2); B: (-3).
CELLS = [cell("A", [61, 63], [60, 60]), cell("A", [52, 42], [50, 40]), cell("B", [70], [73])]


def random_cells(seed, datasets=4, domains=3, trials=3):
    rng = np.random.default_rng(seed)
    return [
        cell(f"D{d}", rng.normal(60, 3, trials), rng.normal(59, 3, trials))
        for d in range(datasets)
        for _ in range(domains)
    ]


def test_averages_by_hand():
    assert statistics.observations(CELLS, "trial").tolist() == [1, 3, 2, 2, -3]
    assert statistics.observations(CELLS, "domain").tolist() == [2, 2, -3]
    assert statistics.observations(CELLS, "dataset").tolist() == [2, -3]


def test_probability_of_improvement():
    # A: all 4 pairs won; 52 > 50, 52 > 40, 42 < 50, 42 > 40: 3 of 4. B: lost.
    assert statistics.probability_of_improvement(CELLS) == pytest.approx((0.875 + 0) / 2)
    assert statistics.probability_of_improvement([cell("A", [1, 2], [1, 2])]) == 0.5
    cells = random_cells(1)
    by_scipy = [
        stats.mannwhitneyu(c.ours, c.baseline).statistic / (len(c.ours) * len(c.baseline))
        for c in cells
    ]
    assert statistics.probability_of_improvement(cells) == pytest.approx(np.mean(by_scipy))


def test_win_tie_loss():
    differences = np.array([0.06, -0.04, 0.0, 0.04, -0.05, 3])
    assert statistics.win_tie_loss(differences) == {"wins": 2, "ties": 3, "losses": 1}


def test_the_interval_of_datasets_equals_scipys():
    cells = random_cells(2, datasets=7)
    means = statistics.observations(cells, "dataset")
    theirs = stats.bootstrap((means,), np.mean, method="percentile", n_resamples=10_000, rng=3)
    assert statistics.dataset_interval(cells) == pytest.approx(theirs.confidence_interval, abs=0.05)


def test_the_interval_of_trials_is_students():
    # One test domain: SciPy's interval of the mean of the differences.
    differences = np.random.default_rng(4).normal(1, 2, 3)
    one = cell("A", 60 + differences, [60] * 3)
    theirs = stats.ttest_1samp(differences, 0).confidence_interval()
    assert statistics.trial_interval([one]) == pytest.approx(theirs)
    # Test domains are averaged within a trial: opposite differences cancel out in each.
    up, down = cell("A", differences, [0] * 3), cell("A", -differences, [0] * 3)
    assert statistics.trial_interval([up, down]) == pytest.approx((0, 0))
    # A second dataset that never changes halves it, however many test domains the first one has.
    both = statistics.trial_interval([one, one, cell("B", [1] * 3, [1] * 3)])
    assert both == pytest.approx((theirs.low / 2, theirs.high / 2))
    # Trials that a test domain lacks do not widen it; the centre is that of all pairs.
    more = cell("A", [*differences, 9], [0] * 4)
    short = statistics.trial_interval([more, cell("A", [1] * 3, [1] * 3)])
    assert short[1] - short[0] == pytest.approx((theirs.high - theirs.low) / 2)
    assert np.mean(short) == pytest.approx((differences.sum() + 9) / 8)
    assert all(map(math.isnan, statistics.trial_interval([one, cell("A", [1], [1], [2])])))


def test_nothing_to_resample():
    single = [cell("A", [3], [1]), cell("A", [2], [1])]
    assert all(map(math.isnan, statistics.trial_interval(single)))
    assert all(map(math.isnan, statistics.dataset_interval(single)))


def test_wilcoxon_by_hand_and_by_scipy():
    # Ranks 1 to 5, all above zero: 2 of the 2^5 signs are as extreme.
    assert statistics.wilcoxon(np.array([1, 2, 3, 4, 5.0])) == 2 / 32
    assert statistics.least_p_value(5) == 2 / 32
    # Of n = 4 with the smallest negative: signed ranks up to 1 below: 2 * 2 / 16.
    assert statistics.wilcoxon(np.array([-1, 2, 3, 4.0])) == 4 / 16
    assert math.isnan(statistics.wilcoxon(np.zeros(4)))
    differences = statistics.observations(random_cells(6), "trial")
    assert statistics.wilcoxon(differences) == stats.wilcoxon(differences).pvalue
    for count in (3, 5, 9, 13, 14):  # with ties and zeros
        tied = np.random.default_rng(count).integers(-3, 5, count) / 2
        assert statistics.wilcoxon(tied) == pytest.approx(stats.wilcoxon(tied).pvalue, rel=1e-12)


def test_holm_by_hand():
    # Holm (1979): 4 · 0.005, then 3 · 0.01, 2 · 0.03, 1 · 0.04 but not below the one before.
    assert statistics.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert statistics.holm([0.6, 0.7]) == [1, 1]
    with_gap = statistics.holm([math.nan, 0.02, 0.01])
    assert math.isnan(with_gap[0])
    assert with_gap[1:] == pytest.approx([0.02, 0.02])
    assert statistics.holm([]) == []


def test_critical_difference_as_in_demsar():
    """Demšar 2006, section 3.2.2 and table 6: CD of 4 algorithms on 14 datasets is 1.25."""
    accuracies = np.random.default_rng(7).normal([0, 0, 0, 3], size=(14, 4))
    found = statistics.critical_difference(accuracies, list("abcd"))
    assert found.distance == pytest.approx(2.569 * math.sqrt(4 * 5 / (6 * 14)), abs=1e-3)
    assert found.p_value == stats.friedmanchisquare(*accuracies.T).pvalue
    assert next(iter(found.mean_ranks)) == "d"
    assert found.mean_ranks["d"] == pytest.approx(
        np.mean(stats.rankdata(-accuracies, axis=1)[:, 3])
    )
    assert sum(found.mean_ranks.values()) == pytest.approx(10)
    assert found.tells_apart


def test_groups_that_are_not_told_apart():
    ranks = {"a": 1.0, "b": 1.9, "c": 2.8, "d": 4.3, "e": 5.0}
    assert statistics._groups(ranks, 1.0) == [("a", "b"), ("b", "c"), ("d", "e")]
    assert statistics._groups(ranks, 2.0) == [("a", "b", "c"), ("c", "d"), ("d", "e")]
    assert statistics._groups(ranks, 5.0) == [tuple("abcde")]
    assert statistics._groups(ranks, 0.1) == []


def test_a_diagram_that_can_show_nothing():
    few = statistics.critical_difference(np.array([[1.0, 2, 3]] * 2), list("abc"))
    assert few.distance > 2  # of at most 2
    assert not few.can_differ
    assert not few.tells_apart
    two = statistics.critical_difference(np.array([[1.0, 2]] * 9), list("ab"))
    assert math.isnan(two.distance)
    assert not two.can_differ
    assert two.mean_ranks == {"b": 1, "a": 2}
    same = statistics.critical_difference(np.ones((9, 3)), list("abc"))
    assert math.isnan(same.p_value)
    assert not same.tells_apart
    none = statistics.critical_difference(np.ones((0, 3)), list("abc"))
    assert not none.can_differ


def test_expected_best_equals_enumeration():
    test_accs = np.random.default_rng(8).random(6)  # the later, the better in validation
    for k, mean in enumerate(statistics.expected_best(test_accs), start=1):
        sets = list(itertools.combinations(range(6), k))
        assert mean == pytest.approx(np.mean([test_accs[max(chosen)] for chosen in sets]))


def test_practically_equal():
    pytest.importorskip("baycomp")
    sure = statistics.practically_equal(np.linspace(5, 8, 12), rope=1)
    assert sure["p_better"] > 0.99
    assert statistics.practically_equal(np.linspace(-8, -5, 12), rope=1)["p_worse"] > 0.99
    equal = statistics.practically_equal(np.linspace(-0.5, 0.5, 12), rope=1)
    assert equal["p_equal"] > 0.99
    # In closed form for one difference d above the rope, with the prior's weight ½ on 0: with
    # u ~ Beta(1, ½) the mass of d, "better" has u², plus 2u(1 − u) if d is above twice the rope,
    # and "equal" the rest. Better wins where 2u − u² > ½: u > 1 − √½, and P(u > x) = √(1 − x).
    one = statistics.practically_equal(np.array([3.0]), rope=1)
    assert one["p_better"] == pytest.approx(math.sqrt(math.sqrt(0.5)), abs=0.02)
    assert sum(one.values()) == pytest.approx(1)


def test_without_baycomp(monkeypatch):
    monkeypatch.setitem(sys.modules, "baycomp", None)
    with pytest.raises(UserError, match=r"pip install baycomp"):
        statistics.practically_equal(np.ones(3), rope=1)
