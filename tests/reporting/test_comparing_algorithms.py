"""Comparing algorithms: against the tables' own numbers, plain loops, and SciPy."""

from __future__ import annotations

import math

import numpy as np
import pytest
from fake_sweep import random_runs, write
from scipy import stats

from domainbed.errors import UserError
from domainbed.reporting import build_report, compare, comparison, load_records

ORACLE = ["oracle"]
BOTH = ("PACS", "ColoredMNIST")
THREE = ("Fishr", "ERM", "IRM")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sweep")
    runs = random_runs(0, BOTH, THREE, n_hparams=3, n_trials=3, pairs=False, levels=1000)
    write(folder, runs)
    return folder


@pytest.fixture(scope="module")
def records(folder):
    return load_records(folder)


def differences_by_cell(records, algorithm, dataset=None):
    """Plain loops over the tables' cells: (dataset, domain) to the trials' differences."""
    return {
        (table.dataset, column.label): np.subtract(ours.values, base.values)
        for table in build_report(records, ORACLE).tables
        if table.dataset in (BOTH if dataset is None else (dataset,))
        for column, ours, base in zip(table.columns, table.rows[algorithm], table.rows["ERM"])
        if column.label != "Avg"
    }


def test_differences_are_those_of_the_tables(records):
    frame = comparison.differences(records, ORACLE).set_index(["dataset", "algorithm"])
    assert list(frame.index) == [
        (d, a) for d in ("ColoredMNIST", "PACS", "Avg") for a in ("IRM", "Fishr")
    ]
    averages = build_report(records, ORACLE).tables[-1].rows
    for algorithm in ("IRM", "Fishr"):
        for position, dataset in enumerate(("ColoredMNIST", "PACS", "Avg")):
            expected = averages[algorithm][position].mean - averages["ERM"][position].mean
            row = frame.loc[dataset, algorithm]
            assert row["difference"] == pytest.approx(expected)
            assert row["trials_low"] < row["difference"] < row["trials_high"]
        cells = differences_by_cell(records, algorithm)
        row, pairs = frame.loc["Avg", algorithm], np.concatenate(list(cells.values()))
        assert (row["pairs"], row["domains"], row["datasets"], row["trials"]) == (21, 7, 2, 3)
        assert (row["observations"], row["unpaired"]) == (21, 0)
        assert row["wins"] == (pairs >= 0.05).sum()
        assert row["p_value"] == pytest.approx(stats.wilcoxon(pairs).pvalue)
        assert row["datasets_low"] <= row["difference"] <= row["datasets_high"]
        assert math.isnan(frame.loc["PACS", algorithm]["datasets_low"])
    p_values = frame.loc["Avg"]["p_value"]
    corrected = [min(1, 2 * p_values.min()), min(1, max(2 * p_values.min(), p_values.max()))]
    assert sorted(frame.loc["Avg"]["holm_p_value"]) == pytest.approx(corrected)


@pytest.mark.parametrize(("unit", "count"), [("trial", 12), ("domain", 4), ("dataset", 1)])
def test_units(records, unit, count):
    frame = comparison.differences(records, ORACLE, unit=unit).set_index(["dataset", "algorithm"])
    cells = differences_by_cell(records, "Fishr", "PACS")
    observed = {
        "trial": np.concatenate(list(cells.values())),
        "domain": np.array([cell.mean() for cell in cells.values()]),
        "dataset": np.array([np.mean(list(cells.values()))]),
    }[unit]
    row = frame.loc["PACS", "Fishr"]
    assert row["observations"] == len(observed) == count
    assert row["p_value"] == pytest.approx(stats.wilcoxon(observed).pvalue)
    assert row["difference"] == pytest.approx(observed.mean())


def test_another_baseline_turns_the_signs(folder):
    one = compare(folder, ORACLE, algorithms=["Fishr"])
    other = compare(folder, ORACLE, algorithms=["ERM"], baseline="Fishr")
    assert set(one["algorithm"]) == {"Fishr"}
    assert set(other["algorithm"]) == {"ERM"}
    for column, turned in (("difference", -1), ("p_value", 1)):
        assert one[column].to_numpy() == pytest.approx(turned * other[column].to_numpy())
    assert one["wins"].tolist() == other["losses"].tolist()
    chances = one["probability_of_improvement"] + other["probability_of_improvement"]
    assert chances.to_numpy() == pytest.approx(np.ones(3))


def test_only_pairs_count(tmp_path):
    runs = random_runs(1, ["PACS"], ("ERM", "Fishr"), n_trials=3, pairs=False)
    kept = [
        run
        for run in runs
        if (run[0]["args"]["algorithm"], run[0]["args"]["trial_seed"]) != ("Fishr", 1)
        and (run[0]["args"]["algorithm"], run[0]["args"]["test_envs"]) != ("ERM", [2])
    ]
    write(tmp_path, kept)
    row = compare(tmp_path, ORACLE).iloc[-1]
    assert (row["pairs"], row["domains"], row["trials"]) == (6, 3, 2)
    assert row["unpaired"] == 3 + 2  # ERM's trial 1 on three domains, Fishr on domain 2
    with pytest.raises(UserError, match="same dataset, test domain and trial as 'ERM'"):
        compare(write(tmp_path / "none", [r for r in kept if is_apart(r[0]["args"])])[0].parent)


def is_apart(args):
    return (args["algorithm"], args["trial_seed"]) in (("ERM", 1), ("Fishr", 0))


def test_practical_equality(folder):
    pytest.importorskip("baycomp")
    frame = compare(folder, ORACLE, rope=1)
    assert (frame[["p_worse", "p_equal", "p_better"]].sum(axis=1) - 1).abs().max() < 1e-9
    assert "p_equal" not in compare(folder, ORACLE)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"baseline": "Fisher"}, "algorithm 'Fisher', the baseline. Did you mean 'Fishr'"),
        ({"unit": "run"}, "unit is 'run': expected one of trial, domain, dataset"),
        ({"rope": -1.0}, "rope is -1"),
        ({"rope": math.nan}, "rope is nan"),
        ({"selection": ["x"]}, "'x'"),
    ],
)
def test_wrong_arguments(records, wrong, says):
    with pytest.raises(UserError, match=says):
        comparison.differences(records, **wrong)


def test_one_algorithm_alone(folder):
    with pytest.raises(UserError, match="'ERM' is the only algorithm"):
        compare(folder, algorithms=["ERM"])


def test_ranks(records):
    found = comparison.critical_differences(records, ORACLE)["oracle"]
    table = np.array(
        [
            [cell.mean for cell in cells]
            for table in build_report(records, ORACLE).tables[:-1]
            for cells in zip(*(table.rows[name][:-1] for name in ("ERM", "IRM", "Fishr")))
        ]
    )
    assert found.count == 7
    assert found.p_value == pytest.approx(stats.friedmanchisquare(*table.T).pvalue)
    ranks = stats.rankdata(-table, axis=1).mean(axis=0)
    assert found.mean_ranks == pytest.approx(dict(zip(("ERM", "IRM", "Fishr"), ranks)))
    by_unit = {u: comparison.critical_differences(records, ORACLE, u) for u in ("trial", "dataset")}
    assert by_unit["trial"]["oracle"].count == 21
    assert not by_unit["dataset"]["oracle"].can_differ


def chosen(records, method):
    """The tables' values: (dataset, algorithm, domain) to the trials' accuracies."""
    return {
        (table.dataset, name, column.label): cell.values
        for table in build_report(records, [method]).tables[:-1]
        for name, cells in table.rows.items()
        for column, cell in zip(table.columns, cells)
    }


def test_selection_gap(records):
    frame = comparison.selection_gap(records).set_index(["dataset", "algorithm", "domain"])
    better, other = chosen(records, "oracle"), chosen(records, "training-domain")
    for key in better:
        if key[2] != "Avg":
            gaps = np.subtract(better[key], other[key])
            assert frame.loc[key]["gap"] == pytest.approx(gaps.mean())
            assert frame.loc[key]["std_err"] == pytest.approx(gaps.std() / np.sqrt(3))
    domains = [k for k in better if k[:2] == ("PACS", "IRM") and k[2] != "Avg"]
    by_trial = np.mean([np.subtract(better[k], other[k]) for k in domains], axis=0)
    average = frame.loc["PACS", "IRM", "Avg"]
    assert average["gap"] == pytest.approx(by_trial.mean())
    assert average["std_err"] == pytest.approx(by_trial.std() / np.sqrt(3))


def test_tuning_gain(records):
    frame = comparison.tuning_gain(records).set_index(["selection", "dataset", "algorithm"])
    default = records.only(records.runs["hparams_seed"] == 0)
    for method in ("oracle", "training-domain"):
        averages = build_report(records, [method]).tables[-1].rows["Fishr"]
        of_default = build_report(default, [method]).tables[-1].rows["Fishr"]
        row = frame.loc[method, "PACS", "Fishr"]
        assert row["best"] == pytest.approx(averages[1].mean)
        assert row["default"] == pytest.approx(of_default[1].mean)
        assert row["gain"] == pytest.approx(averages[1].mean - of_default[1].mean)
        gains = np.subtract(averages[1].values, of_default[1].values)
        assert row["std_err"] == pytest.approx(gains.std() / np.sqrt(3))
        assert (row["n_trials"], row["n_draws"]) == (3, 3)


def test_expected_best_of_draws(records):
    frame = comparison.expected_best(records, ORACLE).set_index(["dataset", "algorithm", "draws"])
    averages = build_report(records, ORACLE).tables[-1].rows["IRM"]
    assert frame.loc["PACS", "IRM", 3]["accuracy"] == pytest.approx(averages[1].mean)
    singles = [
        build_report(records.only(records.runs["hparams_seed"] == seed), ORACLE).tables[-1]
        for seed in range(3)
    ]
    means = [table.rows["IRM"][1].mean for table in singles]
    assert frame.loc["PACS", "IRM", 1]["accuracy"] == pytest.approx(np.mean(means))


def test_worst_domains(records):
    report = build_report(records, ORACLE)
    frame = comparison.worst_domains(report).set_index(["dataset", "algorithm"])
    cells = report.tables[1].rows["ERM"]
    means = [cell.mean for cell in cells[:-1]]
    row = frame.loc["PACS", "ERM"]
    assert (row["worst"], row["mean"]) == (min(means), cells[-1].mean)
    assert row["domain"] == "ACPS"[int(np.argmin(means))]


def test_in_and_out_of_domain(records, tmp_path):
    points = comparison.in_and_out(records)
    assert len(points) == len(records.runs)
    (run,) = random_runs(3, ["PACS"], ["ERM"], n_trials=1, pairs=False)[1:2]  # test domain 1
    write(tmp_path, [run])
    (point,) = comparison.in_and_out(load_records(tmp_path)).to_dict("records")
    last = run[-1]
    home = np.mean([last[f"env{i}_out_acc"] for i in (0, 2, 3)])
    assert point["in_domain"] == pytest.approx(100 * home)
    assert point["out_of_domain"] == pytest.approx(100 * last["env1_in_acc"])
    fits = comparison.accuracy_on_the_line(load_records(tmp_path))
    assert math.isnan(fits["slope"][0])


def test_accuracy_on_the_line(records):
    points = comparison.in_and_out(records)
    fits = comparison.accuracy_on_the_line(records).set_index(["dataset", "domain"])
    of_domain = points[(points["dataset"] == "PACS") & (points["test_env"] == 2)]
    x, y = (
        stats.norm.ppf(of_domain["in_domain"] / 100),
        stats.norm.ppf(of_domain["out_of_domain"] / 100),
    )
    slope, intercept = np.polyfit(x, y, 1)
    fit = fits.loc["PACS", "P"]
    assert fit["runs"] == 27
    assert fit["slope"] == pytest.approx(slope)
    assert fit["intercept"] == pytest.approx(intercept)
    assert fit["correlation"] == pytest.approx(np.corrcoef(x, y)[0, 1])
