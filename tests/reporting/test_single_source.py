"""Runs on one training domain: their tables against a plain loop over the records."""

import itertools
import random

import numpy as np
import pytest
from fake_sweep import random_run, write

from domainbed.cli import main
from domainbed.errors import UserError
from domainbed.reporting import build_report, load_records
from domainbed.reporting.single_source import count_single_source, single_source_report

SEEDS, TRIALS = (0, 1, 2), (0, 1)


@pytest.fixture(scope="module")
def runs():
    rng = random.Random(3)
    grid = itertools.product(("ERM", "Fishr"), range(4), SEEDS, TRIALS)
    return {
        key: random_run(rng, "PACS", key[0], [e for e in range(4) if e != key[1]], *key[2:])
        for key in grid
    }


@pytest.fixture(scope="module")
def folder(runs, tmp_path_factory):
    folder = tmp_path_factory.mktemp("sweep")
    usual = random_run(random.Random(0), "PACS", "ERM", [0], 0, 0)
    write(folder, [*runs.values(), usual], done=True)
    return folder


def by_training_domain(runs, algorithm, source, trial):
    """The mean over targets at the step with the highest out-split accuracy of the source."""
    records = [record for seed in SEEDS for record in runs[algorithm, source, seed, trial]]
    best = max(records, key=lambda record: record[f"env{source}_out_acc"])
    return np.mean([best[f"env{env}_in_acc"] for env in range(4) if env != source])


def by_oracle(runs, algorithm, source, trial):
    last = [runs[algorithm, source, seed, trial][-1] for seed in SEEDS]
    targets = [env for env in range(4) if env != source]
    best = {env: max(last, key=lambda record: record[f"env{env}_out_acc"]) for env in targets}
    return np.mean([best[env][f"env{env}_in_acc"] for env in targets])


def test_cells_equal_plain_loops(runs, folder):
    report = single_source_report(load_records(folder))
    assert len(report.records.runs) == len(runs)  # the usual run is not among them
    for name, naive in (("training-domain", by_training_domain), ("oracle", by_oracle)):
        table, averages = (table for table in report.tables if table.selection == name)
        assert [column.label for column in table.columns] == ["A", "C", "P", "S", "Avg"]
        for algorithm, cells in table.rows.items():
            means = []
            for source, cell in enumerate(cells[:-1]):
                values = [100 * naive(runs, algorithm, source, trial) for trial in TRIALS]
                assert cell.values == pytest.approx(values)
                assert cell.mean == pytest.approx(np.mean(values))
                assert cell.std_err == pytest.approx(np.std(values) / np.sqrt(2))
                means.append(np.mean(values))
            assert cells[-1].mean == pytest.approx(np.mean(means))
            assert averages.rows[algorithm][0].mean == pytest.approx(np.mean(means))


def test_the_usual_tables_do_not_count_them(folder, capsys):
    records = load_records(folder)
    assert count_single_source(records) == 48
    with pytest.raises(SystemExit):
        main(["collect", str(folder), "--selection", "oracle"])
    assert "48 runs train on one domain alone and are in no table" in capsys.readouterr().err
    (table, _) = build_report(records, selection=["oracle"]).tables
    assert [cell.n_trials for cell in table.rows["ERM"]] == [1, 0, 0, 0, 0]


def test_pairs_of_three_domains_are_not_counted(tmp_path):
    rng = random.Random(0)
    runs = [random_run(rng, "ColoredMNIST", "ERM", envs, 0, 0) for envs in ([0, 1], [0, 2], [1, 2])]
    write(tmp_path, runs, done=True)
    records = load_records(tmp_path)
    assert count_single_source(records) == 0
    table = single_source_report(records, ["training-domain"]).tables[0]
    assert [cell.n_trials for cell in table.rows["ERM"]] == [1, 1, 1, 1]


def test_the_command(folder, capsys):
    with pytest.raises(SystemExit) as exit:
        main(["collect", str(folder), "--single_source", "--selection", "training-domain"])
    assert exit.value.code == 0
    out = capsys.readouterr().out
    assert "Total records: 144" in out
    heading = "PACS, trained on the one domain of a column and tested on the others, model"
    assert f"-------- Dataset: {heading} selection method: training-domain" in out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"selection": ["leave-one-domain-out"]}, "needs runs on two training domains"),
        ({"selection": ["best"]}, "unknown selection method 'best'"),
        ({"algorithms": ["IRM"]}, "no records of algorithm 'IRM'"),
    ],
)
def test_what_there_is_no_table_of(folder, options, message):
    with pytest.raises(UserError, match=message):
        single_source_report(load_records(folder), **options)


def test_without_such_runs(tmp_path):
    write(tmp_path, [random_run(random.Random(0), "PACS", "ERM", [0], 0, 0)], done=True)
    with pytest.raises(UserError, match="no run trains on one domain alone"):
        single_source_report(load_records(tmp_path))
