"""`domainbed compare`: what is said beside the figures, and each reason not to compare."""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
import subprocess

import fake_sweep
import pandas as pd
import pytest
from fake_sweep import random_runs, write

from domainbed.cli import main
from domainbed.core.names import DATASET_DOMAINS
from domainbed.reporting import build_report, load_records
from domainbed.reporting.published import SOURCES, published_values
from domainbed.reporting.published.agreement import agreement
from domainbed.reporting.section import SECTION_RENDERERS, Section

THREE = ("ERM", "IRM", "Fishr")
PAPER = "fishr-2022"


@pytest.fixture
def printed(capsys):
    def run(*words, status=0):
        with pytest.raises(SystemExit) as exit:
            main(["compare", *map(str, words)])
        out, err = capsys.readouterr()
        assert exit.value.code == status, err
        return out if status == 0 else err

    return run


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sweep")
    write(folder, random_runs(0, ("PACS", "ColoredMNIST"), THREE, n_hparams=2, pairs=False))
    return folder


def as_published(folder, accuracy=0.578, protocol=PAPER, trials=3, draws=20, hparams=None, **args):
    """A sweep of ERM on ColoredMNIST under the conditions of the paper, but for what is given.

    The accuracy differs by ± one point between the trials.
    """
    named = {"protocol": protocol, "protocol_version": 1, "steps": 5001, **args}
    sizes = {"n_hparams": draws, "n_trials": trials, "pairs": False}
    runs = [run[-1:] for run in random_runs(0, algorithms=["ERM"], **sizes, **named)]
    for run in runs:
        accuracies = {key: accuracy for key in run[0] if key.endswith("_acc")}
        trial = run[0]["args"]["trial_seed"]
        run[0] |= {key: value + (trial - 1) / 100 for key, value in accuracies.items()}
        run[0]["hparams"] |= hparams or {}
    write(folder, runs)
    return folder


def beside(folder, selection="oracle"):
    (cell,) = cells_of(build_report(load_records(folder), [selection]), PAPER)
    return cell


def cells_of(report, paper):
    return list(agreement(report, paper).itertuples(index=False))


def test_a_cell_that_agrees_with_the_paper(tmp_path, printed):
    cell = beside(as_published(tmp_path))
    assert (cell.dataset, cell.algorithm, cell.domain) == ("ColoredMNIST", "ERM", "Avg")
    assert cell.mean == pytest.approx(57.8)
    assert (cell.published_mean, cell.published_std_err) == (57.8, 0.2)
    assert cell.std_err == pytest.approx((2 / 3) ** 0.5 / 3**0.5)
    assert cell.combined_std_err == pytest.approx((cell.std_err**2 + 0.04) ** 0.5)
    assert (cell.difference, cell.mismatches) == (pytest.approx(0, abs=1e-9), ())
    assert cell.within is True
    text = printed(tmp_path, "--with", PAPER, "--selection", "oracle")
    assert "ERM        ColoredMNIST  57.8 +/- 0.5  57.8 +/- 0.2  +0.0        0.5      yes" in text
    assert "1 of 1 differences lie within" in text


def test_a_cell_that_differs_from_the_paper(tmp_path):
    cell = beside(as_published(tmp_path, accuracy=0.586))
    assert cell.difference == pytest.approx(0.8)
    assert cell.within is False
    assert cell.mismatches == ()


@pytest.mark.parametrize(
    ("other", "reason"),
    [
        ({"trials": 2}, ("trials", "2", "3")),
        ({"draws": 4}, ("draws", "4", "20")),
        ({"steps": 101}, ("steps", "101", "5001")),
        ({"hparams": {"resnet18": True}}, ("backbone", "ResNet-18", "ResNet-50")),
        ({"features": {"backbone": "resnet50"}}, ("backbone", "features of resnet50", "ResNet-50")),
        ({"hparams": {"backbone": "timm:vit"}}, ("backbone", "timm:vit", "ResNet-50")),
        ({"hparams": {"resnet50_augmix": True}}, ("backbone", "ResNet-50 (AugMix)", "ResNet-50")),
        ({"protocol": "default"}, ("protocol", "default", PAPER)),
        ({"precision": "bf16"}, ("precision", "bf16", "float32")),
        ({"augment_validation": False}, ("augment_validation", "False", "True")),
        ({"checkpoint_freq": 100}, ("steps", "21", "5001")),  # the last record is at step 20
        ({"holdout_fraction": 0.5}, ("holdout_fraction", "0.5", "0.2")),
    ],
)
def test_each_reason_not_to_compare(tmp_path, other, reason):
    cell = beside(as_published(tmp_path, **other))
    assert cell.mismatches == (reason,)
    assert cell.within is None
    assert cell.difference == pytest.approx(-0.5 if "trials" in other else 0, abs=1e-9)


def test_an_average_over_fewer_test_domains(tmp_path):
    as_published(tmp_path)
    for folder in tmp_path.iterdir():
        if json.loads((folder / "results.jsonl").read_text())["args"]["test_envs"] == [1]:
            shutil.rmtree(folder)
    assert beside(tmp_path).mismatches == (("test domains", "2", "3"),)


def test_how_much_is_evaluated_is_no_reason(tmp_path):
    assert beside(as_published(tmp_path, eval_splits="needed")).mismatches == ()


def test_a_paper_whose_steps_and_hyperparameters_depend_on_the_dataset(tmp_path):
    """MIRO's: of DomainNet 15,001 updates; a sweep of other hyper-parameters is not compared."""
    fixed, chosen = "fixed hyper-parameters", "chosen for each dataset"

    def reasons(dataset, steps, paper="miro-2022", algorithm="MIRO", **changes):
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        named = {"protocol": "swad-2021", "protocol_version": 1, "n_trials": 3, "n_hparams": 1}
        runs = random_runs(0, (dataset,), [algorithm], pairs=False, steps=steps, **named)
        of_paper = SOURCES[paper].fixed("MIRO", dataset) | changes
        for run in runs:
            run[-1]["hparams"] |= of_paper
            run[-1]["args"] |= {"hparams": json.dumps(of_paper), "swad_rule": "authors"}
        write(folder, [run[-1:] for run in runs])
        (cell,) = cells_of(build_report(load_records(folder), ["training-domain"]), paper)
        return [tuple(each) for each in cell.mismatches]

    assert reasons("DomainNet", 15001) == reasons("PACS", 5001) == []
    assert reasons("DomainNet", 5001) == [("steps", "5001", "5001, DomainNet 15001")]
    names = "lr, miro_lambda, resnet_dropout, weight_decay"
    assert reasons("PACS", 5001, miro_lambda=0.1) == [(fixed, names, chosen)]
    assert reasons("PACS", 5001, batch_size=8) == [(fixed, f"batch_size, {names}", chosen)]
    assert reasons("PACS", 5001, "miro-2022-swad", "MIRO + SWAD") == []
    for paper, algorithm, backbone in [
        ("miro-2022-clip", "MIRO", "open_clip:ViT-B-16.openai"),
        ("miro-2022-swag", "MIRO + SWAD", "timm:regnety_160.swag_lc_in1k"),
    ]:
        assert reasons("PACS", 5001, paper, algorithm) == []
        mismatch = ("backbone", "ResNet-50", backbone)
        assert reasons("PACS", 5001, paper, algorithm, backbone="") == [mismatch]


def test_fixed_hyperparameters_are_a_reason(tmp_path):
    as_published(tmp_path)
    for file in tmp_path.glob("*/results.jsonl"):
        record = json.loads(file.read_text())
        record["args"]["hparams"] = '{"batch_size": 8, "resnet18": false}'
        file.write_text(json.dumps(record) + "\n")
    assert beside(tmp_path).mismatches == (("fixed hyper-parameters", "batch_size", "none"),)


def test_cells_of_test_domains_and_missing_ones(tmp_path, printed):
    runs = random_runs(0, ["ColoredMNIST"], ["ERM"], n_trials=1, pairs=False)
    write(tmp_path, [run for run in runs if run[0]["args"]["test_envs"] != [2]])
    report = build_report(load_records(tmp_path), ["oracle"])
    cells = cells_of(report, "domainbed-2020")
    published = {v.domain: v.mean for v in published_values("domainbed-2020").itertuples()
                 if v[2:6] == ("oracle", "dataset", "ColoredMNIST", "ERM")}  # fmt: skip
    assert {cell.domain: cell.published_mean for cell in cells[:-1]} == published
    assert cells[2].mismatches[0] == ("result", "none", "there is one")
    text = printed(tmp_path, "--with", "domainbed-2020", "--selection", "oracle")
    assert "not compared: trials 1 (published: 3): ERM on +90%, ERM on +80%" in text
    assert "not compared: protocol not recorded (published: domainbed-2020)" in text


def test_text(folder, printed):
    text = printed(folder, "--selection", "oracle", "--algorithms", "Fishr", "IRM")
    titles = [line[9:] for line in text.splitlines() if line.startswith("-------- ")]
    assert titles == [
        "Differences to ERM, model selection method: oracle",
        "Mean ranks over 7 test domains, model selection method: oracle",
        "Selection gap",
        "Gain of tuning",
        "Expected best of k draws",
        "Worst test domain beside the mean",
        "In-domain against out-of-domain accuracy",
    ]
    for said in (
        "95 %: Student's t over trials, and bootstrap with datasets resampled",
        "small sample: 2 datasets, so the intervals over datasets are too narrow",
        "dependent: each test domain of a dataset is a training domain of the others, and trials",
        "dependent: the domains of a dataset train on each other",
        "dependent: runs that differ only in draw or algorithm share data and weights",
    ):
        assert said in text.replace("\n    ", " ")


def test_what_can_show_nothing_says_so(folder, printed):
    asked = (folder, "--selection", "oracle", "--datasets", "PACS", "--unit", "dataset")
    text = printed(*asked).replace("\n    ", " ")
    assert "one dataset: the difference may not hold on others" in text
    assert "shows nothing: with 3 algorithms and 1 dataset no two mean ranks can be" in text
    assert "shows nothing: with 1 observation and 2 tests p (Holm) cannot be below 0.05" in text
    two = printed(*asked, "--algorithms", "Fishr")
    assert "Friedman's test compares three algorithms or more" in two


def test_one_run_each(tmp_path, printed):
    runs = random_runs(0, algorithms=["ERM", "Fishr"], n_trials=1, pairs=False)
    write(tmp_path, [run for run in runs if run[0]["args"]["test_envs"] == [0]])
    text = printed(tmp_path)
    assert "one trial: nothing says how much another one would differ" in text
    assert "one draw, the defaults: nothing was tuned" in text


def test_formats(folder, printed):
    asked = (folder, "--selection", "oracle", "training-domain")
    rows = list(csv.DictReader(io.StringIO(printed(*asked, "--format", "csv"))))
    assert [row["selection"] for row in rows] == ["oracle"] * 6 + ["training-domain"] * 6
    found = json.loads(printed(*asked, "--format", "json"))
    _, last = found["differences"]
    assert float(rows[-1]["difference"]) == pytest.approx(last["rows"][-1]["difference"])
    assert last["rows"][0]["datasets_low"] is None
    assert set(found) == {
        *("differences", "ranks", "selection_gap", "tuning_gain", "expected_best"),
        *("worst_domains", "accuracy_on_the_line"),
    }  # fmt: skip
    markdown = printed(*asked, "--format", "markdown")
    assert "| Dataset | Algorithm | difference |" in markdown


@pytest.fixture(scope="module")
def in_latex(tmp_path_factory):
    """The folder of a document for each mode of the command, on a name that LaTeX would read."""
    folder = tmp_path_factory.mktemp("named")
    write(folder, random_runs(0, algorithms=("ERM", "a_b&50%"), pairs=False))
    texts = {}
    for name, more in (("all", ["--rope", "1"]), ("with", ["--with", "domainbed-2020"])):
        file = folder / f"{name}.tex"
        asked = ["--format", "latex", "--document", "--output", str(file), *more]
        with pytest.raises(SystemExit):
            main(["compare", str(folder), *asked])
        texts[name] = file.read_text()
    return folder, texts


def test_latex(in_latex):
    _, texts = in_latex
    for text in texts.values():
        assert text.count(r"\begin{") == text.count(r"\end{")
        assert text.rstrip().endswith(r"\end{document}")
    differences = texts["all"].split("Differences to ERM, ")[1]
    assert r"\begin{tabular}{llcccccccccc}" in differences  # a name is never a number
    row = next(row for row in differences.splitlines() if row.startswith("ColoredMNIST"))
    dataset, name, difference, *_ = row.split(" & ")
    assert (dataset, name) == ("ColoredMNIST", r"a\_b\&50\%")
    assert re.fullmatch(r"(\+|\$-\$)\d+\.\d", difference)
    assert r"\footnotesize difference: percentage points" in differences
    assert r"ERM & $-$90\% & " in texts["with"]
    assert r"& 71.7 $\pm$ 0.1 &" in texts["with"]  # what the paper prints


def test_a_long_table_in_latex_goes_on_in_another():
    rows = [[f"name {number}", str(number)] for number in range(95)]
    section = Section("x", "x", ["name", "n"], rows, [], pd.DataFrame())
    parts = SECTION_RENDERERS["latex"]([section]).split(r"\midrule")[1:]
    assert [part.split(r"\bottomrule")[0].count(r"\\") for part in parts] == [40, 40, 15]


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="pdflatex is not installed")
@pytest.mark.parametrize("mode", ["all", "with"])
def test_latex_compiles(in_latex, mode):
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", f"{mode}.tex"]
    done = subprocess.run(command, cwd=in_latex[0], check=True, capture_output=True, text=True)
    assert "Overfull" not in done.stdout  # no table is cut at the page's edge


def test_a_name_that_a_table_would_read(tmp_path, printed):
    names = ("ERM", "a|b<script>")
    write(tmp_path, random_runs(0, algorithms=names, n_trials=1, pairs=False))
    assert r"a\|b\<script>" in printed(tmp_path, "--format", "markdown")


def test_options_that_exclude_each_other(folder, printed):
    said = printed(folder, "--with", PAPER, "--baseline", "ERM", status=2)
    assert said == "error: --baseline ERM compares algorithms, and --with a paper: give one\n"


def test_no_published_number(tmp_path, printed):
    write(tmp_path, random_runs(0, ["Birds"], ["ERM"]))
    said = printed(tmp_path, "--with", PAPER, status=2)
    assert said.startswith(f"error: {PAPER} has no number for these runs (of Birds): it has")


def test_the_average_over_datasets_needs_those_of_the_paper(tmp_path, monkeypatch):
    published = list(DATASET_DOMAINS)[:7]
    for name in published:
        monkeypatch.setitem(fake_sweep.DOMAINS, name, len(DATASET_DOMAINS[name]))
    write(tmp_path, random_runs(0, published, ["ERM"], n_trials=1, pairs=False))
    cells = cells_of(build_report(load_records(tmp_path), ["oracle"]), PAPER)
    assert [cell.dataset for cell in cells] == [*published, "Avg"]
    means = [cell.mean for cell in cells]
    assert means[-1] == pytest.approx(sum(means[:-1]) / 7)
    assert cells[-1].published_mean == 68.7
    fewer = load_records(tmp_path)
    fewer = fewer.only(fewer.runs["dataset"] != "PACS")
    assert len(agreement(build_report(fewer, ["oracle"]), PAPER)) == 6
