"""A sweep as one file reads as its folder does."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from domainbed.cli import main
from domainbed.config.run_fields import RunOptions
from domainbed.errors import UserError
from domainbed.reporting import (
    build_report,
    collect,
    load_records,
    planned_gaps,
    planned_selection,
)
from domainbed.runs import exported
from domainbed.runs.exported import unpacked
from domainbed.runs.folder import RunFolder
from domainbed.runs.packed import text_of
from domainbed.runs.states import DONE, FAILED, INTERRUPTED
from domainbed.sweeps.config import load_config
from domainbed.sweeps.launch import prepare
from domainbed.training.trainer import run

RUNS = {"b": 2, "a": 0, "c": 1}
MACHINE = ["folder", "args", "has_digest"]


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    """Three runs, of which the last is under way; and a fourth that failed."""
    root = tmp_path / "sweep"
    for name, env in RUNS.items():
        (root / name).mkdir(parents=True)
        args = {"dataset": "ColoredDigits", "algorithm": "ERM", "test_envs": [env]}
        args |= {"hparams_seed": 0, "trial_seed": 0, "data_dir": "/somewhere/data"}
        accuracies = {f"env{e}_{split}_acc": 0.1 * (e + 1) for e in range(3)
                      for split in ("in", "out")}  # fmt: skip
        lines = [json.dumps({"step": step, **accuracies, "args": args, "hparams": {"lr": 0.1}})
                 for step in (0, 3)]  # fmt: skip
        (root / name / "results.jsonl").write_text("\n".join(lines) + "\n")
        hparams = {"weights": "/somewhere/w.pt", "url": "https://a.org/b/c", "name": "cat/dog"}
        del args["data_dir"]
        (root / name / "run.json").write_text(json.dumps({**args, "hparams": hparams}))
        facts = {"host": "here", "place": {"data_dir": "/somewhere"}, "resumed": [{"host": "b"}]}
        (root / name / "environment.json").write_text(json.dumps({**facts, "torch": "2.6.0"}))
        if name != "c":
            (root / name / "done").write_text("done")
    (root / "d").mkdir()
    (root / "d" / "run.json").write_text("{}")
    (root / "d" / "err.txt").write_text("it bröke\n")
    (root / "a" / "model.pkl").write_bytes(b"weights")
    lacking = {"dataset": "ColoredDigits", "algorithm": "MLDG", "test_envs": [0], "why": "small"}
    plan = {"version": 1, "runs": {}, "left_out": [lacking]}
    (root / "plan.json").write_text(json.dumps(plan))
    (root / "sweep.yaml").write_text("selection: [oracle]\noutput_dir: /somewhere/else\n")
    return root


def export(sweep: Path) -> Path:
    file = sweep.parent / "shared.parquet"
    with pytest.raises(SystemExit) as exit:
        main(["sweep", "export", str(sweep), str(file)])
    assert exit.value.code == 0
    return file


def test_it_reads_as_the_folder_does(sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = export(sweep)
    assert capsys.readouterr().out.startswith(f"4 runs: {file} (")
    ours, theirs = load_records(sweep), load_records(file)
    pd.testing.assert_frame_equal(ours.values, theirs.values)
    pd.testing.assert_frame_equal(
        ours.runs.drop(columns=MACHINE), theirs.runs.drop(columns=MACHINE)
    )
    assert planned_selection(file) == ["oracle"]
    assert planned_gaps(file) == planned_gaps(sweep)
    assert build_report(ours, ["oracle"]).tables == build_report(theirs, ["oracle"]).tables
    assert len(load_records([sweep, file]).runs) == 6


def test_what_is_lost_is_of_the_machine_alone(sweep: Path) -> None:
    file = export(sweep)
    folder = unpacked(file)
    assert folder.name == "shared"
    for name in "abc":
        kept = text_of(folder / name, "results.jsonl").splitlines()
        for here, there in zip((sweep / name / "results.jsonl").read_text().splitlines(), kept):
            expected = json.loads(here)
            expected["args"] = {**expected["args"], "run_id": name}
            del expected["args"]["data_dir"]
            assert json.loads(there) == expected
    assert RunFolder(folder / "d").last_error() == "it bröke"
    states = {name: RunFolder(folder / name).state() for name in "abcd"}
    assert states == {"a": DONE, "b": DONE, "c": INTERRUPTED, "d": FAILED}
    spec = RunFolder(folder / "a").read_json(folder / "a" / "run.json")
    assert spec == {**json.loads((sweep / "a" / "run.json").read_text()), "run_id": "a"} | {
        "hparams": {"weights": "w.pt", "url": "https://a.org/b/c", "name": "cat/dog"}
    }
    everything = b"".join(each.read_bytes() for each in folder.rglob("*") if each.is_file())
    assert b"/somewhere" not in file.read_bytes() + everything
    before = folder.stat().st_mtime_ns
    assert unpacked(file).stat().st_mtime_ns == before


def test_columns_to_look_for_runs(sweep: Path) -> None:
    frame = pd.read_parquet(export(sweep)).set_index("run")
    assert {name: frame.loc[name, "test_envs"].tolist() for name in RUNS} == {
        name: [env] for name, env in RUNS.items()
    }
    assert frame.loc["a", "algorithm"] == "ERM"


def test_what_is_no_export(sweep: Path, tmp_path: Path) -> None:
    file = export(sweep)
    with pytest.raises(UserError, match=r"other.parquet' does not exist"):
        load_records(tmp_path / "other.parquet")
    (tmp_path / "other.parquet").write_bytes(file.read_bytes()[:-9])
    with pytest.raises(UserError, match=r"other.parquet is damaged \(Arrow"):
        load_records(tmp_path / "other.parquet")
    pd.DataFrame({"run": ["a"]}).to_parquet(tmp_path / "other.parquet")
    with pytest.raises(UserError, match="holds no sweep that this version exported"):
        load_records(tmp_path / "other.parquet")
    assert not [*tmp_path.glob("cache/exports/*/other")]


@pytest.mark.parametrize("name", ["../../evil", "/evil", "..", "", "plan.json", "a/b", None])
def test_no_run_is_written_elsewhere(sweep: Path, tmp_path: Path, name: str | None) -> None:
    table = pq.read_table(export(sweep))
    names = [name, *table["run"].to_pylist()[1:]]
    table = table.set_column(0, table.schema.field("run"), [names])
    about = table.schema.metadata
    digest = exported._digest(about[b"domainbed_sweep"].decode(), table.to_pylist())
    table = table.replace_schema_metadata({**about, b"domainbed_digest": digest})
    pq.write_table(table, tmp_path / "evil.parquet")
    with pytest.raises(UserError, match=r"is damaged \((ValueError|TypeError)\)"):
        load_records(tmp_path / "evil.parquet")
    assert not [*tmp_path.rglob("evil")]


def test_what_cannot_be_exported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words, says in (
        (["shared.csv"], "'shared.csv': expected a name that ends in .parquet"),
        (["shared.parquet"], "holds no runs: name the folder of a launched sweep"),
    ):
        with pytest.raises(SystemExit):
            main(["sweep", "export", str(tmp_path), *words])
        assert says in capsys.readouterr().err


def test_no_flip_gives_other_numbers(sweep: Path, tmp_path: Path) -> None:
    """Nor another file: what can be unpacked is what was exported."""
    file = export(sweep)

    def files() -> dict[str, bytes | None]:
        folder = unpacked(file)
        texts = {name: text_of(folder / name, "results.jsonl") for name in "abc"}
        return {**texts, "plan": (folder / "plan.json").read_bytes()}

    whole, expected, rng, noticed = file.read_bytes(), files(), random.Random(5), 0
    for _ in range(150):
        changed = bytearray(whole)
        changed[rng.randrange(len(whole))] ^= 1 << rng.randrange(8)
        file.write_bytes(changed)
        try:
            assert files() == expected
        except UserError:
            noticed += 1
    assert noticed > 30


def test_rows_are_neither_lost_nor_moved(sweep: Path, tmp_path: Path) -> None:
    table = pq.read_table(export(sweep))
    other = {
        b"domainbed_sweep": table.schema.metadata[b"domainbed_sweep"].replace(b"small", b"large")
    }
    changed = {
        "lost": table.slice(1),
        "cut": table.slice(0, 3),
        "moved": table.take([1, 0, 2, 3]),
        "twice": pa.concat_tables([table, table.slice(3)]),
        "metadata": table.replace_schema_metadata({**table.schema.metadata, **other}),
    }
    for name, each in changed.items():
        pq.write_table(each, tmp_path / f"{name}.parquet")
        with pytest.raises(UserError, match=rf"{name}\.parquet is damaged"):
            load_records(tmp_path / f"{name}.parquet")


def test_a_damaged_run_is_not_exported(sweep: Path, caplog) -> None:
    text = (sweep / "a" / "results.jsonl").read_text()
    RunFolder(sweep / "a").mark_done(text)
    (sweep / "a" / "results.jsonl").write_text(text.replace("0.1", "0.3", 1))
    assert set(pd.read_parquet(export(sweep))["run"]) == {"b", "c", "d"}
    assert "a/results.jsonl is damaged" in caplog.text


def test_an_imported_sweep_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What is done is not done again, and what a launch adds makes the sweep whole."""
    fields = {"datasets": ["ColoredDigits"], "algorithms": ["ERM"], "trials": 1, "steps": 2,
              "hparams_seeds": 1, "test_envs": [0, 1], "selection": ["oracle"]}  # fmt: skip
    config = load_config(None, {**fields, "output_dir": str(tmp_path / "first")})
    launch = prepare(config)
    launch.store.write_plan(config, launch.planned)
    first, second = config.plan()
    run(first, tmp_path / "first" / first.run_id, RunOptions(keep="none"))
    file = tmp_path / "half.parquet"
    with pytest.raises(SystemExit):
        main(["sweep", "export", str(tmp_path / "first"), str(file)])

    words = ["sweep", "import", str(file), "-o", str(tmp_path / "new" / "second")]
    with pytest.raises(SystemExit) as exit:
        main(words)
    assert exit.value.code == 0
    counts = capsys.readouterr().out.splitlines()[-1].split()
    assert counts == ["ColoredDigits", "ERM", "2", "1", "0", "0", "0", "0", "1"]
    with pytest.raises(SystemExit) as exit:
        main(words)
    assert exit.value.code == 2
    assert "is there already: name a new folder" in capsys.readouterr().err

    config = load_config(None, {**fields, "output_dir": words[-1]})
    assert prepare(config).todo == [second.run_id]
    run(second, Path(words[-1]) / second.run_id, RunOptions(keep="none"))
    assert prepare(config).todo == []
    run(second, tmp_path / "first" / second.run_id, RunOptions(keep="none"))
    pd.testing.assert_frame_equal(collect(words[-1]), collect(tmp_path / "first"))
