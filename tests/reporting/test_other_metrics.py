"""Tables, comparisons and figures of an error, against those of accuracies that mirror it."""

import io
import json
import math

import numpy as np
import pandas as pd
import pytest
from fake_sweep import random_runs, write

from domainbed.cli import main
from domainbed.errors import UserError
from domainbed.reporting import build_report, collect, compare, comparison, load_records
from domainbed.reporting.findings import Findings
from domainbed.reporting.page import content
from domainbed.reporting.published.agreement import agreement
from domainbed.reporting.units import Unit
from domainbed.runs.predictions import Predicted, write_predictions
from domainbed.selection.judging import judged_alike

SWEEP = {"datasets": ("PACS", "Birds"), "algorithms": ("ERM", "IRM", "Fishr")}
SIZE = 20.0  # an accuracy a is mirrored by the error 20 (1 - a)


def mirrored(record, labels="regression"):
    """The record of a run whose error is the lower, the higher the accuracy was."""
    found = {"args": {**record["args"], "labels": labels}}
    for key, value in record.items():
        if key.endswith("_acc"):
            found[key.replace("_acc", "_rmse")] = SIZE * (1 - value)
            found[key.replace("_acc", "_mae")] = value
        elif key != "args":
            found[key] = value
    return found


def status(*words):
    with pytest.raises(SystemExit) as ended:
        main(list(map(str, words)))
    return ended.value.code


@pytest.fixture(scope="module")
def sweeps(tmp_path_factory):
    """A sweep by accuracy, and the same by error."""
    root = tmp_path_factory.mktemp("sweeps")
    runs = random_runs(3, n_hparams=3, n_trials=3, **SWEEP)
    write(root / "accuracy", runs, done=True)
    write(root / "error", [list(map(mirrored, run)) for run in runs], done=True)
    return root


def test_the_same_choices_make_mirrored_tables(sweeps):
    ours, theirs = collect(sweeps / "error"), collect(sweeps / "accuracy")
    assert set(ours["metric"]) == set(ours["selection_metric"]) == {"rmse"}
    is_rank = theirs["test_env"] == "Mean rank"
    assert is_rank.any()
    assert ours["mean"][is_rank].tolist() == theirs["mean"][is_rank].tolist()
    means = SIZE * (1 - theirs["mean"][~is_rank] / 100)
    np.testing.assert_allclose(ours["mean"][~is_rank], means)
    errors = SIZE * theirs["std_err"] / 100
    np.testing.assert_allclose(ours["std_err"], errors.where(~is_rank, theirs["std_err"]))
    pd.testing.assert_frame_equal(ours[list(theirs)[:6]], theirs[list(theirs)[:6]])


def test_marks_and_order(sweeps, capsys):
    command = ["collect", str(sweeps / "error"), "--selection", "oracle", "--datasets", "PACS"]
    assert status(*command, "--order", "mean", "--format", "markdown", "--underline_second") == 0
    text = capsys.readouterr().out
    assert "### Dataset: PACS, rmse (lower is better), model selection method: test-domain" in text
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    rows = [row for row in rows[:5] if row[0] in ("ERM", "IRM", "Fishr")]
    for column in range(1, 6):
        cells = [row[column].strip() for row in rows]
        values = [
            float(cell.replace("*", "").replace("<u>", "").split()[0].split("<")[0])
            for cell in cells
        ]
        best, second = np.argsort(values)[:2]
        assert [cell.startswith("**") for cell in cells] == [i == best for i in range(3)]
        assert [cell.startswith("<u>") for cell in cells] == [i == second for i in range(3)]
        assert all(len(cell.replace("*", "").split("±")[0].strip("<u>/ ")) >= 4 for cell in cells)
    assert values == sorted(values)  # of Avg


def test_comparisons_are_mirrored(sweeps):
    ours, theirs = compare(sweeps / "error"), compare(sweeps / "accuracy")
    size = -SIZE / 100
    np.testing.assert_allclose(ours["difference"], size * theirs["difference"])
    for kind in ("trials", "datasets"):
        np.testing.assert_allclose(ours[f"{kind}_low"], size * theirs[f"{kind}_high"])
        np.testing.assert_allclose(ours[f"{kind}_high"], size * theirs[f"{kind}_low"])
    for same in ("probability_of_improvement", "p_value", "holm_p_value"):
        np.testing.assert_allclose(ours[same], theirs[same])
    for count in ("wins", "losses"):  # but for ties, of which accuracies have more
        more = ours[count] - theirs[count]
        assert ((more >= 0) & (more <= theirs["ties"])).all()
    error = judged_alike(load_records(sweeps / "error"))
    accuracy = load_records(sweeps / "accuracy")
    ranks, others = (comparison.critical_differences(each) for each in (error, accuracy))
    assert {name: found.mean_ranks for name, found in ranks.items()} == {
        name: found.mean_ranks for name, found in others.items()
    }
    gap, gap_of = comparison.selection_gap(error), comparison.selection_gap(accuracy)
    np.testing.assert_allclose(gap["gap"], size * gap_of["gap"], atol=1e-12)
    gain, gain_of = comparison.tuning_gain(error), comparison.tuning_gain(accuracy)
    np.testing.assert_allclose(gain["gain"], -size * gain_of["gain"], atol=1e-12)
    best, best_of = comparison.expected_best(error), comparison.expected_best(accuracy)
    np.testing.assert_allclose(best["rmse"], SIZE * (1 - best_of["accuracy"] / 100))
    worst = comparison.worst_domains(build_report(error, metric="rmse"))
    worst_of = comparison.worst_domains(build_report(accuracy))
    assert worst["domain"].tolist() == worst_of["domain"].tolist()
    np.testing.assert_allclose(worst["worst"], SIZE * (1 - worst_of["worst"] / 100))


def test_a_line_through_errors_is_no_probit(sweeps):
    error = judged_alike(load_records(sweeps / "error"))
    points = comparison.in_and_out(error)
    fit = comparison.accuracy_on_the_line(error).iloc[0]
    first = points[(points["dataset"] == "PACS") & (points["test_env"] == 0)]
    slope, intercept = np.polyfit(first["in_domain"], first["out_of_domain"], 1)
    assert (fit["slope"], fit["intercept"]) == pytest.approx((slope, intercept))


def test_curves_show_the_reported_metric(sweeps):
    error = judged_alike(load_records(sweeps / "error"))
    ours = Findings(error, ["training-domain"]).curves
    theirs = Findings(load_records(sweeps / "accuracy"), ["training-domain"]).curves
    for column in ("validation", "test"):
        np.testing.assert_allclose(ours[column], SIZE * (1 - theirs[column] / 100))
    assert ours["chosen"].tolist() == theirs["chosen"].tolist()


def test_the_lower_error_is_the_better_one(tmp_path):
    """Fishr's error is 2 and 2.04 below ERM's."""
    for seed, (name, gains) in enumerate({"ERM": (0, 0), "Fishr": (0.1, 0.102)}.items()):
        runs = random_runs(0, ["PACS"], algorithms=[name], pairs=False)
        for run in runs:
            accuracy = 0.5 + gains[run[0]["args"]["trial_seed"]]
            for record in run:
                record.update({f"env{i}_in_acc": accuracy for i in range(4)})
        write(tmp_path / name, [list(map(mirrored, run)) for run in runs], seed=seed)
    error = judged_alike(load_records([tmp_path / "ERM", tmp_path / "Fishr"]))
    assert (
        content.answer(Findings(error, ["oracle"]))[1]
        == "By oracle, better than ERM: Fishr (-2.020)."
    )


def test_commands_name_the_metric(sweeps, capsys, tmp_path):
    folder = str(sweeps / "error")
    assert status("compare", folder, "--selection", "oracle") == 0
    text = capsys.readouterr().out
    assert "-------- Differences to ERM, rmse (lower is better), model selection method: " in text
    assert "difference: rmse (lower is better), paired by dataset" in text
    assert "the default hyper-parameters, minus the draw chosen among 3" in text
    assert "the highest of several uncertain means is on average too high" in text
    assert "points" not in text
    cell = ["--dataset", "PACS", "--algorithm", "ERM", "--test_env", "1"]
    assert (
        status("top-hparams", "--input_dir", folder, *cell, "--metric", "mae", "--format", "json")
        == 0
    )
    choices = json.loads(capsys.readouterr().out)
    values = [
        each["val_rmse"]
        for each in choices
        if (each["trial_seed"], each["selection"]) == (0, "oracle")
    ]
    assert values == sorted(values)
    assert len(values) == 3
    assert all(0 <= each["test_mae"] <= 1 for each in choices)
    assert status("collect", folder, "--metric", "mae", "--selection", "oracle") == 0
    title = "-------- Dataset: PACS, mae (lower is better), model selection method: test-domain"
    assert f"{title} validation set (oracle) by rmse" in capsys.readouterr().out
    assert status("report", folder, "-o", str(tmp_path / "page.html")) == 0
    page = (tmp_path / "page.html").read_text()
    assert "Rmse (lower is better) on each domain when it is held out" in page
    assert "in percent" not in page
    assert status("plot", folder, "curves", "-o", str(tmp_path / "figure.svg")) == 0
    assert "rmse (lower is better)" in (tmp_path / "figure-PACS.svg").read_text()


def test_mixed_folders(sweeps, capsys):
    """Each dataset by the metric of its labels, with averages of its own."""
    both = [str(sweeps / "accuracy"), str(sweeps / "error")]
    assert status("collect", *both) == 2
    assert (
        "runs of PACS are chosen by accuracy and by rmse: give one --selection_metric"
        in capsys.readouterr().err
    )


def test_datasets_by_the_metrics_of_their_labels(sweeps, tmp_path, capsys):
    runs = random_runs(5, n_trials=2, **SWEEP)
    regressed = [r for r in runs if r[0]["args"]["dataset"] == "PACS"]
    write(tmp_path, [list(map(mirrored, run)) if run in regressed else run for run in runs])
    assert status("collect", str(tmp_path), "--selection", "oracle") == 0
    titles = [line for line in capsys.readouterr().out.splitlines() if line.startswith("----")]
    oracle = "model selection method: test-domain validation set (oracle)"
    assert titles == [
        f"-------- Dataset: Birds, accuracy, {oracle}",
        f"-------- Averages, accuracy, {oracle}",
        f"-------- Dataset: PACS, rmse (lower is better), {oracle}",
        f"-------- Averages, rmse (lower is better), {oracle}",
    ]
    for command in (
        ["compare"],
        ["plot", "-o", str(tmp_path / "a.svg"), "--baseline", "ERM", "ranks"],
    ):
        assert status(*command[:1], str(tmp_path), *command[1:]) == 2
        message = capsys.readouterr().err
        assert "Birds by accuracy; PACS by rmse): give --datasets" in message


def test_papers_print_accuracies(sweeps):
    report = build_report(load_records(sweeps / "error"), ["oracle"])
    with pytest.raises(UserError, match="papers choose by accuracy and print it, and these tables"):
        agreement(report, "domainbed-2020")


def test_a_metric_that_was_not_recorded(sweeps, capsys):
    assert status("collect", str(sweeps / "error"), "--metric", "r2") == 2
    assert (
        "no run of PACS recorded r2, but mae, rmse: choose one of these" in capsys.readouterr().err
    )
    assert status("compare", str(sweeps / "error"), "--metric", "accuracy") == 2


def test_numbers_have_four_digits_unless_they_are_percentages():
    shown = {
        (0.01234, 0.5): "0.01234",
        (1.5, 2.5): "1.500",
        (12.34, 0.1): "12.34",
        (123456.0,): "123456",
    }
    for numbers, text in shown.items():
        unit = Unit.of("rmse", [numbers[0]])
        assert unit.text(numbers[0]) == text
        assert unit.tie == pytest.approx(0.5 * 10**-unit.decimals)
    assert Unit.of("rmse", [None, math.nan, 0.0]).text(2.0) == "2.000"
    assert Unit.of("accuracy", [1e-9]).text(63.07) == "63.1"
    assert Unit().interval(-1.04, 2.0) == "[-1.0, +2.0]"
    assert Unit().text(-0.01, signed=True) == "+0.0"
    assert Unit().text(math.nan) == "-"


def keep_predictions(folder, seed):
    """Those of a run of three domains and two classes; returns balanced accuracies of in-splits."""
    rng, parts, found = np.random.default_rng(seed), [], []
    for domain in range(3):
        for split in ("in", "out"):
            labels = np.array([0, 0, 0, 0, 1, 1])
            logits = rng.normal(size=(6, 2)).astype(np.float32)
            parts.append(Predicted(domain, split, list("abcdef"), labels, logits))
            right = logits.argmax(axis=1) == labels
            found.append((right[:4].mean() + right[4:].mean()) / 2)
    facts = {"run_id": "a", "step": 20, "classes": ["x", "y"], "domains": list("abc")}
    write_predictions(folder / "predictions.parquet", facts, parts)
    return found[::2], found[1::2]


def test_a_metric_of_kept_predictions(tmp_path, capsys, caplog):
    """It is of the last step, so that only the oracle can choose by it, or have it reported."""
    runs = random_runs(8, algorithms=("ERM",), n_hparams=2, n_trials=1, pairs=False)
    measured = {}
    for seed, (run, folder) in enumerate(zip(runs, write(tmp_path, runs), strict=True)):
        (env,), draw = run[0]["args"]["test_envs"], run[0]["args"]["hparams_seed"]
        inside, out = keep_predictions(folder, seed)
        measured[env, draw] = (out[env], draw, inside[env])
    words = ["collect", tmp_path, "--format", "csv", "--selection", "oracle"]
    assert status(*words, "--selection_metric", "balanced_accuracy") == 0
    assert "no run recorded balanced_accuracy: it is computed from the predictions" in caplog.text
    assert "that 6 of 6 runs kept, which are of their last step" in caplog.text
    printed = capsys.readouterr().out
    cells = pd.read_csv(io.StringIO(printed)).set_index("test_env")["mean"]
    for env in range(3):
        _, _, best = max(measured[env, 0], measured[env, 1])
        assert cells[str(env)] == pytest.approx(100 * best)
    assert status(*words, "--metric", "balanced_accuracy", "--selection_metric", "accuracy") == 0
    cells = pd.read_csv(io.StringIO(capsys.readouterr().out)).set_index("test_env")["mean"]
    last = {(r[-1]["args"]["test_envs"][0], r[-1]["args"]["hparams_seed"]): r[-1] for r in runs}
    for env in range(3):
        draw = max((0, 1), key=lambda draw: last[env, draw][f"env{env}_out_acc"])
        assert cells[str(env)] == pytest.approx(100 * measured[env, draw][2])
    assert status("collect", tmp_path, "--metric", "balanced_accuracy") == 2
    assert (
        "training-domain chooses a step, and balanced_accuracy is known of"
        in capsys.readouterr().err
    )
