"""Learning curves, hyper-parameters by accuracy, and where choices lie in what was drawn."""

from __future__ import annotations

import pandas as pd
import pytest
from fake_sweep import random_runs, write

from domainbed.reporting import load_records
from domainbed.reporting.findings import Findings, position, ranges


def findings_of(folder, runs, selection=("training-domain", "oracle")):
    write(folder, runs)
    return Findings(load_records(folder), list(selection))


def test_curves_are_the_mean_over_the_chosen_runs_of_each_step(tmp_path):
    runs = random_runs(3, algorithms=("ERM",), n_hparams=3, n_trials=2, pairs=False)
    findings = findings_of(tmp_path, runs)
    chosen = findings.chosen
    chosen = chosen[(chosen["selection"] == "training-domain") & (chosen["test_env"] == 1)]
    taken = [
        run
        for run in runs
        for row in chosen.to_dict("records")
        if run[0]["args"]["test_envs"] == [1]
        and run[0]["args"]["trial_seed"] == row["trial_seed"]
        and run[0]["args"]["hparams_seed"] == row["hparams_seed"]
    ]
    curves = findings.curves
    curve = curves[(curves["selection"] == "training-domain") & (curves["test_env"] == 1)]
    assert curve["step"].tolist() == [0, 10, 20]
    assert curve["trials"].tolist() == [2, 2, 2]
    for place, row in enumerate(curve.to_dict("records")):
        test = sum(run[place]["env1_in_acc"] for run in taken) / 2
        validation = sum(r[place][f"env{d}_out_acc"] for r in taken for d in (0, 2)) / 4
        assert row["test"] == pytest.approx(100 * test)
        assert row["validation"] == pytest.approx(100 * validation)
    counts = chosen["step"].value_counts()
    assert curve["chosen"].tolist() == [counts.get(step, 0) for step in (0, 10, 20)]


def test_gains_are_above_the_mean_of_the_test_domain(tmp_path):
    findings = findings_of(tmp_path, random_runs(1, n_hparams=3, pairs=False))
    tuning = findings.tuning
    assert set(tuning["name"]) == {"lr"}
    assert len(tuning) == 2 * 3 * 3 * 2
    means = tuning.groupby("test_env")["gain"].mean()
    assert means.to_list() == pytest.approx([0, 0, 0], abs=1e-9)
    assert tuning["chosen"].sum() == 2 * 3 * 2  # one of three draws


def test_what_all_draws_share_is_left_out(tmp_path):
    runs = random_runs(1, algorithms=("ERM",), pairs=False)
    for run in runs:
        for record in run:
            record["hparams"] = {"lr": 0.1, "depth": run[0]["args"]["trial_seed"] + 1}
    findings = findings_of(tmp_path, runs)
    assert set(findings.tuning["name"]) == {"depth"}
    choices = findings.choices
    assert set(choices["hparams"]) == {"depth=1", "depth=2"}
    assert (choices["hparams"] == "depth=" + (choices["trial_seed"] + 1).astype(str)).all()


def test_one_draw_shows_nothing(tmp_path):
    runs = random_runs(1, pairs=False)
    for run in runs:
        for record in run:
            record["hparams"] = {"lr": 0.1}
    findings = findings_of(tmp_path, runs)
    assert findings.tuning.empty
    assert set(findings.choices["hparams"]) == {"same in all draws"}


def test_choices_at_the_ends_of_a_range():
    values = [0.001, 0.002, 0.01, 0.09, 0.1]  # of the logarithms: 0, 0.15, 0.5, 0.98, 1
    rows = [("ERM", "lr", value, value > 0.005) for value in values]
    rows += [("ERM", "dropout", value, value < 0.2) for value in (0.0, 0.1, 0.5)]
    rows += [("ERM", "decay", value, value < 2e-4) for value in (0.0, 1e-6, 1e-4, 1e-2)]
    rows += [("ERM", "flag", value, True) for value in (True, False)]
    tuning = pd.DataFrame(rows, columns=["algorithm", "name", "value", "chosen"], dtype=object)
    tuning["chosen"] = tuning["chosen"].astype(bool)
    found = ranges(tuning).set_index("name")
    assert found.index.tolist() == ["lr", "dropout", "decay"]
    assert found.loc["lr"].tolist() == ["ERM", 0.001, 0.1, 3, 0, 2]
    assert found.loc["decay"].tolist() == ["ERM", 0.0, 0.01, 3, 1, 0]  # 0, 0.2, 0.6; not 0.01
    assert found.loc["dropout"].tolist() == ["ERM", 0.0, 0.5, 2, 1, 0]


def test_positions():
    assert position(pd.Series([1.0, 10.0, 100.0])).tolist() == pytest.approx([0, 0.5, 1])
    assert position(pd.Series([1.0, 2.0, 5.0])).tolist() == pytest.approx([0, 0.25, 1])
    # Zero stands a factor of ten below the lowest other number.
    assert position(pd.Series([0.0, 1.0, 1000.0])).tolist() == pytest.approx([0, 0.25, 1])
    assert position(pd.Series([-1.0, 0.0, 99.0])).tolist() == pytest.approx([0, 0.01, 1])
    assert position(pd.Series([3.0, 3.0])).tolist() == [0.5, 0.5]
