"""Released baselines: found by name, checked by digest, compared with runs that were made alike."""

from __future__ import annotations

import json
import runpy
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from fake_sweep import random_runs, write

from domainbed import reporting
from domainbed.cli import main
from domainbed.config import baselines
from domainbed.config.baselines import baseline_of
from domainbed.errors import UserError
from domainbed.reporting.released import beside_released
from domainbed.runs.exported import write_export
from domainbed.runs.load import load_records
from domainbed.spec import RunSpec
from domainbed.sweeps.config import load_config

SUMMARIZE = runpy.run_path(str(Path(__file__).parents[2] / "results/baselines/summarize.py"))
GRID = {"n_hparams": 3, "n_trials": 3, "pairs": False, "protocol": "default"}


@pytest.fixture
def released(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of a baseline called toy, of which the package has the summary."""
    folder = tmp_path / "baselines" / "toy"
    for part, algorithm in enumerate(("ERM", "CORAL")):
        runs = random_runs(part, algorithms=(algorithm,), **GRID)
        folders = write(tmp_path / f"sweep{part}", runs, seed=part, done=True)
        folder.mkdir(parents=True, exist_ok=True)
        write_export(tmp_path / f"sweep{part}", folders, folder / f"{algorithm}.parquet")
    (folder / "README.md").write_text("# Toy\n\ndomainbed sweep launch toy\n")
    monkeypatch.setattr(baselines, "_FOLDER", tmp_path)
    monkeypatch.setenv("DOMAINBED_BASELINES", str(folder.parent))
    baselines.summaries.cache_clear()
    (tmp_path / "toy.json").write_text(json.dumps(SUMMARIZE["summary"](folder)))
    yield folder
    baselines.summaries.cache_clear()


def said(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    with pytest.raises(SystemExit) as exit:
        main(list(words))
    found = capsys.readouterr()
    assert exit.value.code == 0, found.err
    return found.out


def test_they_are_listed_and_shown_by_name(released: Path, capsys) -> None:
    row = ["toy", "ColoredMNIST", "default", "21", "2", "0", "3", "3", "54"]
    assert said(capsys, "baselines").splitlines()[-1].split() == row
    assert baselines.summaries()["toy"]["command"] == "domainbed sweep launch toy"
    files = sorted(map(str, released.glob("*.parquet")))
    tables = reporting.collect(files)
    pd.testing.assert_frame_equal(reporting.collect("baseline:toy"), tables)
    assert said(capsys, "baselines", "toy") == said(capsys, "collect", *files)
    for show, columns in (
        ("hparams", {"selection", "trial_seed", "step", "accuracy", "hparams"}),
        ("curves", {"step", "validation", "test", "chosen"}),
        ("expected", {"draws", "accuracy"}),
        ("cost", {"accuracy", "passes", "provisional"}),
    ):
        text = said(capsys, "baselines", "toy", "--show", show, "--format", "json")
        (section,) = json.loads(text)["baselines"]
        assert section["rows"]
        assert columns <= section["rows"][0].keys()
    with pytest.raises(UserError, match=r"unknown baseline 'tay'\. Did you mean 'toy'\?"):
        load_records("baseline:tay")


def test_what_nobody_has_checked_is_marked(tmp_path: Path, monkeypatch, capsys) -> None:
    """In the export, in what is shown, and on the leaderboard; costs are beside results."""
    folder, runs = tmp_path / "baselines" / "toy", []
    for milliseconds, algorithm in ((2, "ERM"), (5, "SAM+CORAL"), (3, "DANN")):
        own = random_runs(milliseconds, algorithms=(algorithm,), **GRID)
        for record in (record for run in own for record in run):
            record["step_time"] = milliseconds / 1000
        runs += own
    folders = write(tmp_path / "sweep", runs, done=True)
    for run in folders:
        args = json.loads((run / "results.jsonl").read_text().splitlines()[0])["args"]
        (run / "run.json").write_text(json.dumps(args))
    folder.mkdir(parents=True)
    write_export(tmp_path / "sweep", folders, folder / "all.parquet")
    rows = pd.read_parquet(folder / "all.parquet")
    assert set(rows[rows["provisional"]]["algorithm"]) == {"SAM+CORAL"}
    (folder / "README.md").write_text("domainbed sweep launch toy\n")
    monkeypatch.setattr(baselines, "_FOLDER", tmp_path)
    monkeypatch.setenv("DOMAINBED_BASELINES", str(folder.parent))
    baselines.summaries.cache_clear()
    (tmp_path / "toy.json").write_text(json.dumps(SUMMARIZE["summary"](folder)))
    assert baselines.summaries()["toy"]["about"]["provisional"] == 1
    assert said(capsys, "baselines", "toy").splitlines()[-1] == "provisional: SAM+CORAL"
    words = ("--show", "cost", "--selection", "training-domain", "--format", "json")
    (section,) = json.loads(said(capsys, "baselines", "toy", *words))["baselines"]
    costs = {row["algorithm"]: row for row in section["rows"]}
    found = {name: [row[n] for n in ("ms", "times", "passes", "provisional")]
             for name, row in costs.items()}  # fmt: skip
    assert found == {
        "ERM": [2, 1, 1, False],
        "SAM+CORAL": [5, 2.5, 2, True],
        "DANN": [3, 1.5, 0.67, False],
    }
    tables = reporting.collect("baseline:toy")
    average = tables[(tables["domain"] == "Avg") & (tables["selection"] == "training-domain")]
    means = dict(zip(average["algorithm"], average["mean"]))
    assert {name: row["accuracy"] for name, row in costs.items()} == pytest.approx(means)
    said(capsys, "leaderboard", "baseline:toy", "-o", str(tmp_path / "site"))
    page = (tmp_path / "site" / "index.html").read_text()
    assert page.count("SAM+CORAL (provisional)") == page.count("(provisional)") == 2
    assert ", made by <code>domainbed sweep launch toy</code>" in page
    baselines.summaries.cache_clear()


def test_a_folder_of_exports_is_read_as_one_sweep(released: Path, tmp_path: Path, capsys) -> None:
    expected = load_records("baseline:toy").values
    pd.testing.assert_frame_equal(load_records(released).values, expected)
    said(capsys, "leaderboard", str(released), "-o", str(tmp_path / "site"))
    # Beside records, an export could hold the same ones.
    shutil.copy(released / "ERM.parquet", tmp_path / "sweep1")
    assert set(load_records(tmp_path / "sweep1").runs["algorithm"]) == {"CORAL"}
    with pytest.raises(UserError, match=r"has no exports: .* name these \(.*baselines/\*\)"):
        load_records(released.parent)


def test_records_are_fetched_once_and_checked(released: Path, monkeypatch) -> None:
    expected = load_records("baseline:toy").values
    monkeypatch.setenv("DOMAINBED_BASELINES", released.parent.as_uri())
    pd.testing.assert_frame_equal(load_records("baseline:toy").values, expected)
    for file in released.glob("*.parquet"):
        file.unlink()
    pd.testing.assert_frame_equal(load_records("baseline:toy").values, expected)
    monkeypatch.setenv("DOMAINBED_BASELINES", str(released.parent))
    with pytest.raises(UserError, match=r"cannot be read from .* set DOMAINBED_BASELINES"):
        load_records("baseline:toy")
    (released / "CORAL.parquet").write_bytes(b"another")
    with pytest.raises(UserError, match=r"CORAL.parquet is not what was released"):
        load_records("baseline:toy")


def test_only_runs_that_were_made_alike_are_compared(released: Path, tmp_path: Path) -> None:
    """Two draws and two trials of one's own are compared with the same ones of others."""
    mine = random_runs(5, algorithms=("Mine", "ERM"), **{**GRID, "n_hparams": 2, "n_trials": 2})
    write(tmp_path / "mine", mine, seed=5, done=True)
    records = load_records(tmp_path / "mine")
    both, notes = beside_released(records)
    counts = both.runs.groupby("algorithm").size().to_dict()
    assert counts == dict.fromkeys(("Mine", "ERM (yours)", "ERM", "CORAL"), 3 * 2 * 2)
    lacking = "whose test domains, draw or trial the other lacks"
    assert notes == [f"left out: 30 runs on ColoredMNIST {lacking}"]
    alone = load_records("baseline:toy")
    wanted = (alone.runs["hparams_seed"] < 2) & (alone.runs["trial_seed"] < 2)
    kept = both.only(both.runs["algorithm"].isin(["ERM", "CORAL"]))
    assert kept.values["value"].tolist() == alone.only(wanted).values["value"].tolist()

    for field, value, reason in (
        ("steps", 31, "steps is 21, and 31 in the first of yours"),
        ("protocol", "fishr-2022", "protocol is default, and fishr-2022 in the first of yours"),
        ("tuned", "toy", "tuned is , and toy in the first of yours"),
        ("hparams", '{"batch_size": 32}', "batch_size is drawn, and 32 in the first of yours"),
    ):
        args = [{**each, field: value} for each in records.runs["args"]]
        other = replace(records, runs=records.runs.assign(args=args))
        with pytest.raises(UserError) as raised:
            beside_released(other)
        said = f"no run of toy was made like yours: left out: 30 runs on ColoredMNIST {lacking}; "
        assert str(raised.value).startswith(said)
        assert f"left out: CORAL, ERM on ColoredMNIST ({reason})" in str(raised.value)
    short = replace(records, runs=records.runs.assign(hparams_seed=7))
    with pytest.raises(UserError, match="no run of toy was made like yours: left out: "):
        beside_released(short)


def test_the_baseline_with_the_most_of_ones_draws_and_trials_is_taken(monkeypatch) -> None:
    def summary(draws: int, trials: int, *algorithms: str) -> dict[str, Any]:
        about = {"draws": draws, "trials": trials}
        tuned = {"PACS": {name: {} for name in algorithms}} if draws > 1 else {}
        return {
            **{"about": about, "datasets": ["PACS"], "features": ""},
            **{"algorithms": algorithms, "tuned": tuned},
        }

    found = {
        "all": summary(1, 3, "ERM", "CORAL", "IRM"),
        "draws": summary(20, 3, "ERM", "CORAL"),
        "trials": summary(1, 30, "ERM"),
        "two": summary(2, 3, "ERM", "CORAL", "IRM"),
    }
    monkeypatch.setattr(baselines, "summaries", lambda: found)
    assert baseline_of("PACS", "", 40, 1) == "draws"
    assert baseline_of("PACS", "", 40, tuned="ERM") == "draws"
    assert baseline_of("PACS", "", 40, tuned="IRM") == "two"  # the only one that has it
    del found["two"]
    assert baseline_of("PACS", "") == baseline_of("PACS", "", 1, 3) == "all"
    assert baseline_of("PACS", "", 2, 3) == "draws"
    assert baseline_of("PACS", "", 1, 5) == "trials"


def test_the_command_compares_with_them(released: Path, tmp_path: Path, capsys) -> None:
    mine = random_runs(5, algorithms=("Mine",), **GRID)
    write(tmp_path / "mine", mine, seed=5, done=True)
    words = ["compare", str(tmp_path / "mine"), "--selection", "oracle"]
    for name in ("baselines", "baseline:toy"):
        text = said(capsys, *words, "--with", name)
        assert text.startswith("-------- Differences to Mine, model selection method: oracle")
    text = said(capsys, *words, "--with", "baselines", "--baseline", "ERM", "--format", "json")
    (section,) = json.loads(text)["differences"]
    assert {(row["algorithm"], row["trials"]) for row in section["rows"]} == {
        ("Mine", 3),
        ("CORAL", 3),
    }


def test_tuned_hyper_parameters_are_those_of_the_choice(released: Path) -> None:
    tuned = baselines.summaries()["toy"]["tuned"]["ColoredMNIST"]["ERM"]
    assert set(tuned) == {"0", "1", "2"}
    spec = RunSpec.create("ColoredMNIST", "ERM", [1], hparams={"tuned": True, "lr": 0.5})
    assert (spec.tuned, spec.hparams["lr"]) == ("toy", 0.5)
    assert spec.hparams["batch_size"] == 32
    assert spec.as_json()["tuned"] == spec.identity()["tuned"] == "toy"
    assert spec.fixed_hparams == {"lr": 0.5}
    usual = RunSpec.create("ColoredMNIST", "ERM", [1])
    assert "tuned" not in usual.as_json() | usual.identity()
    fields = {"datasets": "ColoredMNIST", "algorithms": "ERM", "selection": "oracle", "trials": 1}
    config = load_config(None, {**fields, "hparams": "tuned", "hparams_seeds": 1})
    rates = [run.hparams["lr"] for run in config.plan()]
    assert rates == [tuned[str(env)]["lr"] for env in range(3)]
    assert len(set(rates)) > 1
    assert {run.run_id for run in config.plan()}.isdisjoint({spec.run_id, usual.run_id})
    for wrong, says in (
        ({"hparams_seeds": 2}, "takes the place of the defaults, and the hparams seed is 1"),
        ({"algorithms": "Fishr"}, "tuned no Fishr for test domain 0 of ColoredMNIST"),
        ({"datasets": "RotatedMNIST"}, "no released baseline has tuned RotatedMNIST with images"),
    ):
        with pytest.raises(UserError, match=says):
            load_config(None, {**fields, "hparams": "tuned", "hparams_seeds": 1, **wrong}).plan()
