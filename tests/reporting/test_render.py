"""The five formats of one report."""

import csv
import io
import json
import re
import shutil
import subprocess

import pytest
from fake_sweep import random_runs, write

from domainbed.errors import UserError
from domainbed.reporting import RENDERERS, build_report, cell_text, load_records
from domainbed.reporting.section import LATEX_DOCUMENT


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    runs = random_runs(0, ("PACS", "ColoredMNIST"), ("Fishr", "ERM", "My_Algorithm&50%|x"))
    folder = tmp_path_factory.mktemp("sweep")
    write(folder, runs)
    return build_report(load_records(folder))


def texts(report):
    return [cell_text(cell) for t in report.tables for cells in t.rows.values() for cell in cells]


def test_text_layout(report):
    lines = RENDERERS["text"](report).split("\n")
    assert lines[0] == f"Total records: {len(report.records)}"
    assert lines[1] == "Protocol: not recorded"
    assert lines[2] == ""
    assert lines[3] == (
        "-------- Dataset: ColoredMNIST, model selection method: training-domain validation set"
    )
    header = ["Algorithm", "+90%", "+80%", "-90%", "Avg"]
    assert lines[4] == "  ".join(name.ljust(20) for name in header).rstrip()
    assert lines[5].startswith("ERM" + " " * 19)
    assert "-------- Averages, model selection method: training-domain validation set" in lines


def test_text_widens_and_never_cuts(tmp_path):
    name = "AnAlgorithmWithAVeryLongNameIndeed"
    write(tmp_path, random_runs(0, ["PACS"], [name, "ERM"], pairs=False))
    text = RENDERERS["text"](build_report(load_records(tmp_path), selection=["oracle"]))
    rows = [line for line in text.split("\n") if line.startswith(("Algorithm", "ERM", name))]
    assert len(rows) == 6
    assert all(row[len(name) : len(name) + 2] == "  " for row in rows)


def test_markdown(report):
    text = RENDERERS["markdown"](report)
    assert text.count("±") == sum("+/-" in t for t in texts(report))
    rows = [line for line in text.split("\n") if line.startswith("|")]
    for row in rows:
        columns = len(re.findall(r"(?<!\\)\|", row)) - 1
        assert columns in (4 + 1, 5 + 1, 4 + 1)
    assert r"| My\_Algorithm&50%\|x |" in text
    assert "**" in text


def test_latex_structure(report):
    text = RENDERERS["latex"](report)
    assert text.count(r"\begin{") == text.count(r"\end{")
    assert text.count("{") == text.count("}")
    assert text.count(r"\toprule") == text.count(r"\bottomrule") == len(report.tables) == 9
    assert r"My\_Algorithm\&50\%|x & " in text
    assert r"\textbf{+90\%}" in text
    labels = re.findall(r"\\label\{tab:([\w-]+)\}", text)
    assert len(set(labels)) == text.count(r"\caption{") == 9
    assert "document" not in text
    widths = re.findall(r"\\begin\{tabular\}\{l(c+)\}", text)
    tables = text.split(r"\toprule")[1:]
    for width, table in zip(widths, tables, strict=True):
        rows = table.split(r"\bottomrule")[0].replace(r"\&", "").split("\\\\\n")[:-1]
        assert len(rows) == 4
        assert all(row.count("&") == len(width) for row in rows)


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="pdflatex is not installed")
def test_latex_compiles(report, tmp_path):
    (tmp_path / "report.tex").write_text(LATEX_DOCUMENT % RENDERERS["latex"](report))
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "report.tex"]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)


def test_csv_is_tidy_and_unrounded(report):
    rows = list(csv.DictReader(io.StringIO(RENDERERS["csv"](report))))
    assert [row["text"] for row in rows] == texts(report)
    for row in rows:
        if "+/-" in row["text"]:
            mean, err = float(row["mean"]), float(row["std_err"])
            assert row["text"] == f"{mean:.1f} +/- {err:.1f}"
    assert any(len(row["mean"]) > 8 for row in rows)
    assert {row["test_env"] for row in rows} == {"0", "1", "2", "3", "Avg", "Mean rank"}


def test_json_is_versioned_and_complete(report):
    whole = json.loads(RENDERERS["json"](report))
    assert whole["version"] == 1
    assert whole["total_records"] == len(report.records)
    cell = whole["selections"]["oracle"]["datasets"]["PACS"]["algorithms"]["ERM"]["S"]
    table = next(t for t in report.tables if (t.selection, t.dataset) == ("oracle", "PACS"))
    assert cell["mean"] == table.rows["ERM"][3].mean
    assert cell["text"] == cell_text(table.rows["ERM"][3])
    assert cell["values"] == list(table.rows["ERM"][3].values)
    assert len(cell["values"]) == cell["n_trials"] == 2
    averages = whole["selections"]["oracle"]["averages"]
    assert averages["columns"] == ["ColoredMNIST", "PACS", "Avg", "Mean rank"]


@pytest.mark.parametrize("name", RENDERERS)
def test_a_gap_is_an_x_in_every_format(tmp_path, name):
    runs = random_runs(0, ["PACS"], ["ERM"], pairs=False)
    write(tmp_path, [run for run in runs if run[0]["args"]["test_envs"] != [1]])
    text = RENDERERS[name](build_report(load_records(tmp_path), selection=["oracle"]))
    assert len(re.findall(r"\bX\b", text)) == 2  # of domain C, and the average
    assert "NaN" not in text


def sweep_under(folder, protocols):
    """Runs of ERM on PACS, and for each dataset the protocol's args."""
    for dataset, args in protocols.items():
        write(folder, random_runs(0, [dataset], ["ERM"], pairs=False, **args), seed=dataset)
    return build_report(load_records(folder), selection=["oracle"])


DEFAULT = {"protocol": "default", "protocol_version": 1}


def test_the_protocol_is_named_everywhere(tmp_path):
    report = sweep_under(tmp_path, {"PACS": DEFAULT})
    for name in ("text", "markdown", "latex"):
        assert RENDERERS[name](report).count("Protocol: default (version 1)\n") == 1
    assert [table["protocol"] for table in json_tables(report)] == ["default (version 1)"] * 2
    rows = csv.DictReader(io.StringIO(RENDERERS["csv"](report)))
    assert {row["protocol"] for row in rows} == {"default (version 1)"}


def test_protocols_of_several_datasets(tmp_path):
    report = sweep_under(tmp_path, {"PACS": DEFAULT, "Birds": {}})
    head = RENDERERS["text"](report).split("\n")[1]
    assert head == "Protocol: PACS: default (version 1); Birds: not recorded"
    assert [table["protocol"] for table in json_tables(report)] == [
        "default (version 1)", "not recorded", "default (version 1), not recorded",
    ]  # fmt: skip


def json_tables(report):
    found = json.loads(RENDERERS["json"](report))["selections"]["oracle"]
    return [*found["datasets"].values(), found["averages"]]


def test_cells_of_diverged_runs_are_marked(tmp_path):
    runs = random_runs(0, ["PACS"], ["ERM"], n_trials=2, n_hparams=2, pairs=False)
    for run in runs:
        args = run[0]["args"]
        key = (args["test_envs"], args["trial_seed"])
        for record in run:  # hparams seed 1 is the better one
            record[f"env{args['test_envs'][0]}_out_acc"] = 0.1 + 0.5 * args["hparams_seed"]
        if key in (([1], 1), ([2], 0)) and args["hparams_seed"] == (key[0] == [1]):
            run[1].update(loss=float("nan"), diverged=True)
    write(tmp_path, runs)
    report = build_report(load_records(tmp_path), selection=["oracle"])
    cells = report.tables[0].rows["ERM"]
    # Seed 0 of test domain 2 diverged too, but was not chosen.
    assert [cell.diverged for cell in cells] == [(), ((1, 1),), (), (), ()]
    assert [cell_text(cell).endswith("*") for cell in cells] == [False, True, False, False, False]
    note = "* diverged: ERM on C (trial 1, hparams seed 1)"
    lines = RENDERERS["text"](report).split("\n")
    assert lines[lines.index("") + 4] == f"  {note}"
    assert rf"- \{note}" in RENDERERS["markdown"](report).split("\n")
    assert rf"\par\smallskip\footnotesize {note}" in RENDERERS["latex"](report).split("\n")
    assert json_tables(report)[0]["algorithms"]["ERM"]["C"]["diverged"] == [[1, 1]]


def test_a_renderer_is_added_in_one_place(report, monkeypatch):
    monkeypatch.setattr(RENDERERS, "_entries", dict(RENDERERS._entries))

    @RENDERERS.register(name="count")
    def to_count(report):
        return f"{len(report.tables)} tables\n"

    assert RENDERERS["count"](report) == "9 tables\n"
    with pytest.raises(UserError, match=r"unknown format 'txt'\. Did you mean 'text'"):
        RENDERERS["txt"]
