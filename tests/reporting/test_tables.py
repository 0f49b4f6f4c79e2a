"""Aggregation against plain loops, and by hand."""

import random
import re

import naive_tables
import numpy as np
import pytest
from fake_sweep import random_run, random_runs, write

from domainbed.core.names import NUM_CLASSES
from domainbed.datasets import DATASETS
from domainbed.errors import UserError
from domainbed.reporting import (
    RENDERERS,
    build_report,
    cell_text,
    collect,
    explain,
    load_records,
)
from domainbed.reporting.tables import (
    Cell,
    Column,
    mark_best,
    mean_of_cells,
    mean_over_trials,
    mean_ranks,
)
from domainbed.selection import PUBLISHED_METHODS


def grids(text):
    """The tables in a text report, as lists of rows of texts."""
    blocks = re.split(r"\n\n-------- .*\n", text)[1:]
    return [[re.split(r"\s{2,}", row) for row in block.strip().split("\n")] for block in blocks]


BOTH = ("PACS", "ColoredMNIST")


@pytest.mark.parametrize(
    "options",
    [
        {"seed": 0, "datasets": BOTH, "n_trials": 3},
        {"seed": 1, "n_hparams": 3, "n_trials": 3, "p_missing": 0.1},
        {"seed": 2, "n_hparams": 3, "n_trials": 3, "p_missing": 0.4, "levels": 4},
        {"seed": 3, "n_hparams": 2, "datasets": BOTH, "levels": 2},
        {"seed": 4, "n_hparams": 2, "levels": 1, "algorithms": ("IRM", "DANN", "VREx")},
        {"seed": 5, "datasets": ("Birds", "PACS"), "p_missing": 0.6, "levels": 20},
        {"seed": 6, "n_hparams": 5, "n_trials": 1},
    ],
)
def test_tables_equal_plain_loops_digit_for_digit(tmp_path, options):
    runs = random_runs(**options)
    write(tmp_path, runs)
    table = load_records(tmp_path)
    records = [record for run in runs for record in run]
    for name in PUBLISHED_METHODS:
        report = build_report(table, selection=[name])
        assert grids(RENDERERS["text"](report)) == naive_tables.tables(records, name)


def test_cell_by_hand():
    cell = mean_over_trials({0: 0.5, 1: 0.7, 2: 0.9})
    assert cell_text(cell) == "70.0 +/- 9.4"  # sqrt(0.08 / 3) / sqrt(3) = 0.0943
    assert cell.n_trials == 3
    assert cell.mean == pytest.approx(70)
    assert cell.std_err == pytest.approx(100 * np.sqrt(0.08) / 3)
    assert cell.values == pytest.approx((50, 70, 90))
    assert cell_text(mean_over_trials({4: 0.25})) == "25.0"  # one trial has no error
    assert cell_text(mean_over_trials({})) == "X"


def test_average_of_cells():
    assert mean_of_cells([Cell(1.04, 0, 3), Cell(1.04, 0, 2)]) == Cell(1.04, None, 2)
    assert cell_text(Cell(1.04, None, 2)) == "1.0"
    assert cell_text(mean_of_cells([Cell(1.0, 0, 3), Cell()])) == "X"
    assert cell_text(mean_of_cells([])) == "X"


def test_mean_rank_with_ties_and_gaps():
    means = [
        [90.0, 50.0],  # ranks 1.5 and 2
        [90.0, 60.0],  # 1.5 and 1
        [80.0, None],  # 3 and none
        [70.0, 40.0],  # 4 and 3
    ]
    assert mean_ranks(means) == [1.75, 1.25, None, 3.5]
    assert mean_ranks([[5.0], [5.0], [5.0]]) == [2, 2, 2]


def test_order_of_rows_and_tables(tmp_path):
    write(
        tmp_path,
        random_runs(0, ("Birds", "PACS", "ColoredMNIST"), ("DANN", "Mine", "ERM"), pairs=False),
    )
    report = build_report(load_records(tmp_path), selection=["oracle"])
    assert [table.dataset for table in report.tables] == ["ColoredMNIST", "PACS", "Birds", None]
    assert list(report.tables[0].rows) == ["ERM", "DANN", "Mine"]


def test_domain_names_of_an_unknown_dataset(tmp_path):
    write(tmp_path, random_runs(0, ["Birds"], environments=["sea", "wood", "town"]))
    report = build_report(load_records(tmp_path), selection=["oracle"])
    labels = [column.label for column in report.tables[0].columns]
    assert labels == ["sea", "wood", "town", "Avg"]


def test_one_mean_is_printed_once(tmp_path):
    """51.75 over trials then domains, and 51.74999999999999 over domains then trials."""
    accuracies = [(0.494, 0.876), (0.53, 0.141), (0.365, 0.623), (0.597, 0.514)]
    runs = random_runs(0, ["PACS"], ["ERM", "IRM"], pairs=False)
    for run in runs:
        (env,), trial = run[0]["args"]["test_envs"], run[0]["args"]["trial_seed"]
        for record in run:
            for i in range(4):
                record[f"env{i}_in_acc"] = accuracies[env][trial]
    write(tmp_path, runs)
    dataset, averages = build_report(load_records(tmp_path), selection=["oracle"]).tables
    of_domains, of_trials = dataset.rows["ERM"][-1], averages.rows["ERM"][0]
    assert cell_text(of_domains) == cell_text(of_trials)
    assert of_domains.mean == of_trials.mean != mean_of_cells(dataset.rows["ERM"][:-1]).mean
    assert cell_text(of_domains) == "51.7 +/- 1.5"  # means of trials 49.65 and 53.85


def test_best_is_marked_as_printed(tmp_path):
    write(tmp_path, random_runs(1, ["Birds"], ("ERM", "IRM", "Fishr"), levels=4))
    for table in build_report(load_records(tmp_path)).tables:
        for position, column in enumerate(table.columns):
            cells = [cells[position] for cells in table.rows.values()]
            choose = min if column.label == "Mean rank" else max
            means = [float(cell_text(cell).split()[0]) for cell in cells]
            differ = len(set(means)) > 1
            expected = [differ and mean == choose(means) for mean in means]
            assert [cell.best for cell in cells] == expected


def marks(values, chance=None, dataset="PACS"):
    """ "b" for the best and "n" for near it, of cells with these values of trials 0, 1, ..."""
    rows = {str(k): [mean_over_trials(dict(enumerate(own)), 1)] for k, own in enumerate(values)}
    marked = mark_best(rows, [Column("A", dataset, "0", chance)])
    return ["b" * cell.best + "n" * cell.near for (cell,) in marked.values()]


def test_what_is_near_the_best_has_a_paired_difference():
    # 63.6 +/- 0.4 beside 62.9 +/- 9: the difference of 0.7 has an error of 9.
    assert marks([[63, 63.5, 64.3], [40, 72, 76.7]]) == ["b", "n"]
    # Errors of 9 each, in step: every trial differs by 1, and the difference has no error.
    assert marks([[41, 73, 77.7], [40, 72, 76.7]]) == ["b", ""]
    # Trials in common count; with one of them nothing is near.
    assert marks([[63, 64], [62.5]]) == ["b", ""]
    assert marks([[5.0, 6.0], [5.0, 6.0], [1.0, 1.5]]) == ["b", "b", ""]


def test_nothing_is_marked_where_all_tie_or_guess():
    assert marks([[61.0, 63.0], [62.0, 62.0]]) == ["", ""]
    assert marks([[61.0, 63.0]]) == [""]
    guesses = [[49.0, 52.0], [48.0, 51.0]]
    assert marks(guesses) == ["b", ""]
    assert marks(guesses, chance=50) == ["", ""]
    assert marks([*guesses, [60.0, 61.0]], chance=50) == ["", "", "b"]


def test_chance_is_that_of_the_published_classes(tmp_path):
    assert {name: DATASETS[name].info.num_classes for name in NUM_CLASSES} == NUM_CLASSES
    runs = random_runs(0, ["ColoredMNIST"], pairs=False, n_trials=3)
    for run in runs:
        shift = (run[0]["args"]["trial_seed"] - 1) / 10 + (
            run[0]["args"]["algorithm"] == "ERM"
        ) / 99
        for record in run:
            record.update({f"env{i}_in_acc": 0.5 + shift for i in range(3)})
    write(tmp_path, runs)
    for table in build_report(load_records(tmp_path), selection=["oracle"]).tables:
        cells = [cell for row in table.rows.values() for cell in row]
        assert not any(cell.best or cell.near for cell in cells)


def test_collect_gives_one_row_per_cell(tmp_path):
    write(tmp_path, random_runs(0, BOTH, pairs=False))
    cells = collect(tmp_path, selection=["oracle", "training-domain"], algorithms=["ERM"])
    assert len(cells) == 2 * ((4 + 1) + (3 + 1) + (2 + 2))
    assert list(dict.fromkeys(cells["selection"])) == ["oracle", "training-domain"]
    one = cells[(cells["dataset"] == "PACS") & (cells["test_env"] == "2")].iloc[0]
    assert one["domain"] == "P"
    assert one["text"] == f"{one['mean']:.1f} +/- {one['std_err']:.1f}"
    assert one["n_trials"] == 2


def test_columns_are_the_domains_that_are_evaluated(tmp_path):
    write(tmp_path, random_runs(0, test_domains=[2]))
    whole = build_report(load_records(tmp_path), selection=["leave-one-domain-out"])
    assert labels(whole.tables[0]) == ["+90%", "+80%", "-90%", "Avg"]  # all were tested
    only = [run for run in random_runs(0, test_domains=[2]) if 2 in run[0]["args"]["test_envs"]]
    write(tmp_path / "only", only, done=True)
    report = build_report(load_records(tmp_path / "only"), selection=["leave-one-domain-out"])
    assert labels(report.tables[0]) == ["-90%", "Avg"]
    cells = report.tables[0].rows["ERM"]
    assert cells[1].mean == cells[0].mean == whole.tables[0].rows["ERM"][2].mean
    assert explain(report, tmp_path / "only") == ["", "every run is there and finished"]


def labels(table):
    return [column.label for column in table.columns]


def test_warning_counts_what_is_missing(tmp_path, caplog):
    runs = random_runs(0, ["PACS"], ["ERM", "IRM"], n_trials=3, pairs=False)
    args = [run[0]["args"] for run in runs]
    gone = [("ERM", 0, 0), ("ERM", 0, 1), ("ERM", 0, 2), ("IRM", 2, 1)]
    kept = [
        run
        for run, a in zip(runs, args, strict=True)
        if (a["algorithm"], a["test_envs"][0], a["trial_seed"]) not in gone
    ]
    write(tmp_path, kept)
    build_report(load_records(tmp_path), selection=["oracle"])
    assert "of 8 cells 1 have no result and 1 lack trials" in caplog.text
    assert "--explain" in caplog.text


def test_whole_sweeps_raise_no_warning(tmp_path, caplog):
    write(tmp_path, random_runs(0), done=True)
    build_report(load_records(tmp_path))
    assert caplog.text == ""


def test_every_setting_that_differs_within_a_mean_is_named(tmp_path, caplog):
    usual = {"protocol": "default", "protocol_version": 1, "torch": "2.3.1", "precision": "fp32"}
    others = {
        "steps": (300, "steps: 21 in 3 runs, 300 in 1 run (ERM)"),
        "holdout_fraction": (0.5, "holdout_fraction: 0.2 in 3 runs, 0.5 in 1 run (ERM)"),
        "task": ("domain_adaptation", 'task: "domain_generalization" in 3 runs, '),
        "augment_validation": (True, "augment_validation: false in 3 runs, true in 1 run"),
        "metrics": (["loss"], 'metrics: ["accuracy"] in 3 runs, ["loss"] in 1 run'),
        "hparams": ('{"lr": 0.1}', "the hyper-parameter lr: not set in 3 runs, 0.1 in 1 run"),
    }
    for name, (value, said) in others.items():
        runs = [
            random_run(random.Random(0), "Birds", "ERM", [0], 1, trial, seed=trial, **args)
            for trial, args in enumerate([usual, usual, usual, {**usual, name: value}])
        ]
        runs.append(random_run(random.Random(0), "Birds", "CORAL", [0], 1, 0, **usual))
        write(tmp_path / name, runs)
        caplog.clear()
        build_report(load_records(tmp_path / name), selection=["oracle"])
        (told,) = [line for line in caplog.messages if "the tables of Birds mix" in line]
        assert f"mix {said}" in told


def test_defaults_of_two_versions_and_shared_seeds_are_named(tmp_path, caplog):
    usual = {"protocol": "default", "protocol_version": 1, "seed": 7}
    runs = [
        random_run(random.Random(trial // 2), "Birds", "ERM", [0], 0, trial, **usual)
        for trial in range(3)
    ]
    write(tmp_path, runs)
    build_report(load_records(tmp_path), selection=["oracle"])
    assert "mix default of lr: " in caplog.text
    assert "default of batch_size" not in caplog.text
    assert "share a seed, such as trials 0, 1, 2 of ERM (seed 7)" in caplog.text


def test_tuned_hyper_parameters_differ_between_test_domains_without_a_warning(tmp_path, caplog):
    given = {"protocol": "default", "protocol_version": 1}
    runs = [
        random_run(random.Random(env), "Birds", "ERM", [env], 0, 0, seed=env, **given, tuned="all")
        for env in range(3)
    ]
    write(tmp_path / "tuned", runs)
    build_report(load_records(tmp_path / "tuned"), selection=["oracle"])
    assert "mix" not in caplog.text
    write(
        tmp_path / "both", [*runs, random_run(random.Random(0), "Birds", "ERM", [0], 0, 1, **given)]
    )
    build_report(load_records(tmp_path / "both"), selection=["oracle"])
    assert 'mix tuned: "all" in 3 runs, "" in 1 run (ERM)' in caplog.text


def test_mixtures_are_named(tmp_path, caplog):
    default = {"protocol": "default", "protocol_version": 1, "torch": "2.3.1", "precision": "fp32"}
    others = [
        {"protocol_version": 2},
        {"protocol": "domainbed-2020"},
        {"torch": "1.13.1+cu117"},
        {"torch": "2.9.0"},  # of the same major version
        {"precision": "bf16"},
    ]
    for number, other in enumerate([{}, *others]):
        runs = random_runs(0, ["PACS"], ["ERM"], n_trials=1, pairs=False, **{**default, **other})
        write(tmp_path, runs[number % 4 :][: 1 + (number == 0)], seed=number)
    foreign = random_runs(0, ["Birds"], ["ERM"], n_trials=1, pairs=False)
    write(tmp_path, foreign, seed="foreign")
    build_report(load_records(tmp_path), selection=["oracle"])
    mixed = [line for line in caplog.messages if " mix " in line and "default of" not in line]
    protocols, versions, precisions = mixed
    for named in ("default (version 2) in 1 run", "domainbed-2020 (version 1) in 1 run"):
        assert named in protocols
    start = "warning: the tables of PACS mix "
    assert protocols.startswith(f"{start}protocols: default (version 1) in 5 runs, ")
    assert versions == f"{start}major versions of PyTorch: 2 in 6 runs, 1 in 1 run"
    assert precisions == f"{start}precisions: fp32 in 6 runs, bf16 in 1 run"
    caplog.clear()
    build_report(load_records(tmp_path), selection=["oracle"], datasets=["Birds"])
    assert " mix " not in caplog.text


def test_unknown_names(tmp_path):
    write(tmp_path, random_runs(0))
    records = load_records(tmp_path)
    with pytest.raises(UserError, match=r"no records of dataset 'VLCS'\. There are: Colored"):
        build_report(records, datasets=["VLCS"])
    with pytest.raises(UserError, match=r"no records of algorithm 'erm'\. Did you mean 'ERM'\?"):
        build_report(records, algorithms=["erm"])
    with pytest.raises(UserError, match="unknown selection method 'iid'"):
        build_report(records, selection=["iid"])
