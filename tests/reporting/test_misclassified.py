"""Images that algorithms get wrong, on predictions set by hand."""

import csv
import io
import json

import numpy as np
import pytest
from fake_sweep import random_run, write

from domainbed.cli import main
from domainbed.errors import UserError
from domainbed.reporting import load_records
from domainbed.reporting.misclassified import misclassified
from domainbed.runs.predictions import Predicted, write_predictions
from domainbed.selection import SELECTION_METHODS

CLASSES = ["cat", "dog", "owl"]
LABELS = {"a.png": 0, "b.png": 1, "c.png": 2, "d.png": 0}
SAID = {  # by algorithm and trial: a, b, c, d
    ("ERM", 0): [0, 0, 0, 1],
    ("Fishr", 0): [0, 0, 2, 2],
    ("ERM", 1): [0, 1, 2, 0],
    ("Fishr", 1): [1, 1, 2, 0],
}


def predict(folder, said, order=(0, 1, 2, 3), step=20, env=1):
    names = list(LABELS)
    images = [names[i] for i in order]
    logits = np.eye(3)[[said[i] for i in order]]
    labels = np.array([LABELS[name] for name in images])
    parts = [
        Predicted(env, "in", images, labels, logits),
        Predicted(env, "out", ["e.png"], np.array([0]), np.eye(3)[[1]]),
        Predicted(0, "in", images, labels, np.eye(3)[labels]),
    ]
    write_predictions(folder / "predictions.parquet", {"step": step, "classes": CLASSES}, parts)


@pytest.fixture
def sweep(tmp_path):
    import random

    rng = random.Random(0)
    keys = list(SAID)
    runs = [random_run(rng, "PACS", name, [1], 0, trial) for name, trial in keys]
    folders = write(tmp_path / "sweep", runs, done=True)
    for (name, trial), folder in zip(keys, folders, strict=True):
        predict(folder, SAID[name, trial], order=(3, 1, 0, 2) if name == "Fishr" else range(4))
    return tmp_path / "sweep"


def found(sweep, *algorithms, method="oracle"):
    return misclassified(load_records(sweep), algorithms, SELECTION_METHODS[method])


def test_who_is_wrong(sweep):
    result = found(sweep, "ERM", "Fishr")
    wrong = {(row.trial_seed, row.image): row.wrong for row in result.images.itertuples()}
    assert wrong == {
        (0, "a.png"): "none",
        (0, "b.png"): "all",
        (0, "c.png"): "ERM",
        (0, "d.png"): "all",
        (1, "a.png"): "Fishr",
        **{(1, f"{name}.png"): "none" for name in "bcd"},
    }
    row = result.images.query("trial_seed == 0 and image == 'd.png'").iloc[0]
    assert (row["label"], row["predicted_ERM"], row["predicted_Fishr"]) == ("cat", "dog", "owl")
    assert (row["dataset"], row["domain"]) == ("PACS", "C")
    assert (result.earlier, result.runs) == (0, 4)


def test_counts(sweep):
    table = found(sweep, "ERM", "Fishr").counts()
    assert list(table.columns) == [
        *("dataset", "domain", "trial_seed", "images", "none", "all", "ERM", "Fishr"),
    ]
    assert table.to_numpy().tolist() == [
        ["PACS", "C", 0, 4, 1, 2, 1, 0],
        ["PACS", "C", 1, 4, 3, 0, 0, 1],
    ]


def test_the_command(sweep, capsys):
    words = ["errors", str(sweep), "--algorithms", "ERM", "Fishr", "--selection", "oracle"]
    with pytest.raises(SystemExit) as exit:
        main([*words, "--top", "1"])
    assert exit.value.code == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["PACS", "C", "0", "4", "1", "2", "1", "0"] in lines
    at = lines.index(["--------", "PACS:", "all", "are", "wrong,", "the", "first", "1", "of", "2"])
    assert lines[at + 2] == ["C", "0", "b.png", "dog", "cat", "cat"]
    at = lines.index(["--------", "PACS:", "only", "ERM", "is", "wrong"])
    assert lines[at + 2] == ["C", "0", "c.png", "owl", "cat", "owl"]
    with pytest.raises(SystemExit):
        main([*words, "--format", "csv"])
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert len(rows) == 8
    assert {row["wrong"] for row in rows} == {"all", "none", "ERM", "Fishr"}


def test_runs_chosen_at_an_earlier_step_are_counted(sweep):
    result = found(sweep, "ERM", "Fishr", method="training-domain")
    chosen = SELECTION_METHODS["training-domain"].select(load_records(sweep))
    assert result.earlier == (chosen["step"] < 20).sum() > 0


def test_three_algorithms(sweep):
    import random

    (folder,) = write(sweep, [random_run(random.Random(1), "PACS", "IRM", [1], 0, 0)], 9, done=True)
    predict(folder, [1, 1, 0, 0])
    result = found(sweep, "ERM", "Fishr", "IRM")
    wrong = dict(zip(result.images["image"], result.images["wrong"], strict=True))
    assert wrong == {"a.png": "IRM", "b.png": "some", "c.png": "some", "d.png": "some"}
    assert result.counts()["some"].tolist() == [3]


def break_file(folder):
    (folder / "predictions.parquet").unlink()


@pytest.mark.parametrize(
    ("algorithms", "change", "message"),
    [
        (["ERM"], None, "--algorithms ERM: give two or more"),
        (["ERM", "ERM"], None, "--algorithms ERM: give two or more"),
        (["ERM", "Fisher"], None, "no records of algorithm 'Fisher'"),
        (["ERM", "Fishr"], break_file, r"1 of 4 .* predict .* --save_predictions"),
        (
            ["ERM", "Fishr"],
            lambda folder: predict(folder, SAID["Fishr", 0], order=(0, 1, 2)),
            "predict other images",
        ),
        (
            ["ERM", "Fishr"],
            lambda folder: (folder / "predictions.parquet").write_text("x"),
            "predictions.parquet is damaged",
        ),
    ],
)
def test_what_cannot_be_compared(sweep, algorithms, change, message):
    if change:
        change(next(f for f in sweep.iterdir() if json.loads(_first(f))["args"]["trial_seed"] == 0))
    with pytest.raises(UserError, match=message):
        found(sweep, *algorithms)


def _first(folder):
    return (folder / "results.jsonl").read_text().splitlines()[0]
