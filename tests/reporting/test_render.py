"""The five formats of one report."""

import csv
import io
import json
import re
import shutil
import subprocess

import pytest
from fake_sweep import random_runs, write

from domainbed.reporting import FORMATS, build_report, load_records


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    runs = random_runs(0, ("PACS", "ColoredMNIST"), ("Fishr", "ERM", "My_Algorithm&50%|x"))
    folder = tmp_path_factory.mktemp("sweep")
    write(folder, runs)
    return build_report(load_records(folder))


def texts(report):
    return [cell.text for t in report.tables for cells in t.rows.values() for cell in cells]


def test_text_layout(report):
    lines = FORMATS["text"](report).split("\n")
    assert lines[0] == f"Total records: {len(report.records)}"
    assert lines[1] == ""
    assert lines[2] == (
        "-------- Dataset: ColoredMNIST, model selection method: training-domain validation set"
    )
    header = ["Algorithm", "+90%", "+80%", "-90%", "Avg"]
    assert lines[3] == "  ".join(name.ljust(20) for name in header).rstrip()
    assert lines[4].startswith("ERM" + " " * 19)
    assert "-------- Averages, model selection method: training-domain validation set" in lines


def test_text_widens_and_never_cuts(tmp_path):
    name = "AnAlgorithmWithAVeryLongNameIndeed"
    write(tmp_path, random_runs(0, ["PACS"], [name, "ERM"], pairs=False))
    text = FORMATS["text"](build_report(load_records(tmp_path), selection=["oracle"]))
    rows = [line for line in text.split("\n") if line.startswith(("Algorithm", "ERM", name))]
    assert len(rows) == 6
    assert all(row[len(name) : len(name) + 2] == "  " for row in rows)


def test_markdown(report):
    text = FORMATS["markdown"](report)
    assert text.count("±") == sum("+/-" in t for t in texts(report))
    rows = [line for line in text.split("\n") if line.startswith("|")]
    for row in rows:
        columns = len(re.findall(r"(?<!\\)\|", row)) - 1
        assert columns in (4 + 1, 5 + 1, 4 + 1)
    assert r"| My\_Algorithm&50%\|x |" in text
    assert "**" in text


def test_latex_structure(report):
    text = FORMATS["latex"](report)
    assert text.count(r"\begin{") == text.count(r"\end{")
    assert text.count("{") == text.count("}")
    assert text.count(r"\toprule") == text.count(r"\bottomrule") == len(report.tables) == 9
    assert r"My\_Algorithm\&50\%|x & " in text
    assert r"\textbf{+90\%}" in text
    assert text.rstrip().endswith(r"\end{document}")
    body = text.split(r"\begin{document}")[1]
    widths = re.findall(r"\\begin\{tabular\}\{l(c+)\}", body)
    tables = body.split(r"\toprule")[1:]
    for width, table in zip(widths, tables, strict=True):
        rows = table.split(r"\bottomrule")[0].replace(r"\&", "").split("\\\\\n")[:-1]
        assert len(rows) == 4
        assert all(row.count("&") == len(width) for row in rows)


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="pdflatex is not installed")
def test_latex_compiles(report, tmp_path):
    (tmp_path / "report.tex").write_text(FORMATS["latex"](report))
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "report.tex"]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)


def test_csv_is_tidy_and_unrounded(report):
    rows = list(csv.DictReader(io.StringIO(FORMATS["csv"](report))))
    assert [row["text"] for row in rows] == texts(report)
    for row in rows:
        if "+/-" in row["text"]:
            mean, err = float(row["mean"]), float(row["std_err"])
            assert row["text"] == f"{mean:.1f} +/- {err:.1f}"
    assert any(len(row["mean"]) > 8 for row in rows)
    assert {row["test_env"] for row in rows} == {"0", "1", "2", "3", "Avg", "Mean rank"}


def test_json_is_versioned_and_complete(report):
    whole = json.loads(FORMATS["json"](report))
    assert whole["version"] == 1
    assert whole["total_records"] == len(report.records)
    cell = whole["selections"]["oracle"]["datasets"]["PACS"]["algorithms"]["ERM"]["S"]
    table = next(t for t in report.tables if (t.selection, t.dataset) == ("oracle", "PACS"))
    assert cell["mean"] == table.rows["ERM"][3].mean
    assert cell["text"] == table.rows["ERM"][3].text
    averages = whole["selections"]["oracle"]["averages"]
    assert averages["columns"] == ["ColoredMNIST", "PACS", "Avg", "Mean rank"]


@pytest.mark.parametrize("name", FORMATS)
def test_a_gap_is_an_x_in_every_format(tmp_path, name):
    runs = random_runs(0, ["PACS"], ["ERM"], pairs=False)
    write(tmp_path, [run for run in runs if run[0]["args"]["test_envs"] != [1]])
    text = FORMATS[name](build_report(load_records(tmp_path), selection=["oracle"]))
    assert len(re.findall(r"\bX\b", text)) == 2  # of domain C, and the average
    assert "NaN" not in text
