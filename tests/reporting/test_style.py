"""Tables as papers print them: orders, decimals, marks and intervals, on numbers set by hand."""

import re

import numpy as np
import pytest
from fake_sweep import random_run, write
from scipy import stats

from domainbed.cli import main
from domainbed.errors import UserError
from domainbed.reporting import RENDERERS, build_report, load_records, to_frame
from domainbed.reporting.render import styled
from domainbed.reporting.tables import Cell, Style

ACCURACIES = {  # by algorithm, of each domain in each of three trials
    "ERM": (0.5012, 0.5024, 0.5030),
    "Fishr": (0.5016, 0.5026, 0.5036),
    "IRM": (0.4000, 0.4100, 0.4200),
}


def run_of(dataset, algorithm, env, trial, accuracy):
    import random

    records = random_run(random.Random(0), dataset, algorithm, [env], 0, trial)
    for record in records:
        record.update({key: accuracy for key in record if key.endswith("_acc")})
    return records


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sweep")
    runs = [
        run_of(dataset, name, env, trial, accuracy - 0.01 * env)
        for dataset, domains in (("ColoredMNIST", 3), ("PACS", 4))
        for name, accuracies in ACCURACIES.items()
        for env in range(domains)
        for trial, accuracy in enumerate(accuracies)
    ]
    write(folder, runs)
    return build_report(load_records(folder), selection=["oracle"])


def test_the_default_changes_nothing(report):
    for render in RENDERERS.values():
        assert render(styled(report, Style())) == render(report)


def rows(report, name="text"):
    lines = RENDERERS[name](report).splitlines()
    return [re.split(r"\s{2,}", line.strip()) for line in lines if line.startswith("ERM")]


def test_decimals_decide_what_is_printed_and_what_is_best(report):
    one = styled(report, Style()).tables[0].rows
    two = styled(report, Style(decimals=2)).tables[0].rows
    best = [(table["ERM"][0].best, table["Fishr"][0].best) for table in (one, two)]
    assert best == [(False, True), (False, True)]  # 50.2 and 50.3, 50.22 and 50.26
    assert rows(styled(report, Style(decimals=2)))[0][1] == "50.22 +/- 0.04"
    none = styled(report, Style(decimals=0)).tables[0].rows
    assert none["ERM"][0].best
    assert none["Fishr"][0].best
    assert (none["IRM"][0].best, none["IRM"][0].second) == (False, True)


def test_the_interval_is_students(report):
    values = [100 * value for value in ACCURACIES["ERM"]]
    low, high = stats.t.interval(0.95, 2, np.mean(values), stats.sem(values))
    half = Style(spread="ci95").spread_of
    assert half(Cell(std_err=0.0, values=values)) == pytest.approx((high - low) / 2)
    assert half(Cell(std_err=0.0, values=values[:1])) is None
    shown = styled(report, Style(spread="ci95", decimals=3))
    assert rows(shown)[0][1] == f"50.220 +/- {(high - low) / 2:.3f}"
    assert "95 % interval over trials (Student's t)" in RENDERERS["text"](shown)
    assert rows(styled(report, Style(spread="none")))[0][1] == "50.2"
    frame = to_frame(shown)
    assert frame.drop(columns="text").equals(to_frame(report).drop(columns="text"))


def test_second_best_is_underlined(report):
    shown = styled(report, Style(second=True))
    latex = RENDERERS["latex"](shown)
    assert r"Fishr & \textbf{50.3 $\pm$ 0.0}" in latex
    assert r"ERM & \underline{50.2 $\pm$ 0.0}" in latex
    assert "| ERM | <u>50.2 ± 0.0</u> |" in RENDERERS["markdown"](shown)
    averages = latex.split("Averages, model selection method")[1]
    assert r"\textbf{1.0} \\" in averages
    assert r"\underline{2.0} \\" in averages  # the lower rank is the better one
    assert "underline" not in RENDERERS["latex"](styled(report, Style()))


def order(report):
    return [(table.dataset, list(table.rows)) for table in report.tables]


def test_orders(report):
    default = ["ERM", "IRM", "Fishr"]
    assert order(report) == [(name, default) for name in ("ColoredMNIST", "PACS", None)]
    by_mean = styled(report, Style(order="mean"))
    assert [names for _, names in order(by_mean)] == [["Fishr", "ERM", "IRM"]] * 3
    style = Style(order="given", algorithms=["IRM", "Fishr"], datasets=["PACS", "ColoredMNIST"])
    names = ["IRM", "Fishr", "ERM"]
    assert order(styled(report, style)) == [
        (name, names) for name in ("PACS", "ColoredMNIST", None)
    ]
    averages = styled(report, style).tables[-1]
    assert [c.label for c in averages.columns] == ["PACS", "ColoredMNIST", "Avg", "Mean rank"]
    assert averages.rows["ERM"][0] == report.tables[-1].rows["ERM"][1]


def test_order_of_domains(report):
    table = styled(report, Style(domains=["P", "A"])).tables[1]
    assert [column.label for column in table.columns] == ["P", "A", "C", "S", "Avg"]
    before = report.tables[1].rows["ERM"]
    assert table.rows["ERM"] == [before[i] for i in (2, 0, 1, 3, 4)]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"decimals": -1}, "--decimals -1"),
        ({"spread": "sd"}, "--spread sd: choose se, ci95, none"),
        ({"order": "best"}, "--order best: choose table, given, mean"),
        ({"domains": ["Avg"]}, "no table has the domain 'Avg'"),
    ],
)
def test_what_cannot_be(report, wrong, message):
    with pytest.raises(UserError, match=message):
        styled(report, Style(**wrong))


def test_folders_side_by_side(tmp_path, capsys):
    for name, shift in (("mine", 0.0), ("domainbed", 0.1)):
        runs = [run_of("PACS", "ERM", env, 0, 0.5 + shift) for env in range(4)]
        write(tmp_path / name, runs)
    words = ["collect", str(tmp_path / "mine"), str(tmp_path / "domainbed")]
    words += ["--selection", "oracle", "--spread", "none"]
    with pytest.raises(SystemExit) as exit:
        main([*words, "--by_folder", "--algorithms", "ERM"])
    assert exit.value.code == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["ERM", "[mine]", *["50.0"] * 5] in lines
    assert ["ERM", "[domainbed]", *["60.0"] * 5] in lines
    with pytest.raises(SystemExit) as exit:
        main([*words, "--by_folder", "--explain"])
    assert exit.value.code == 2
    assert "without --by_folder" in capsys.readouterr().err
