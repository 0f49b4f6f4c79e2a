"""Reading a sweep again out of its cache: the same records, and every change is noticed."""

import json
import math
import os
from pathlib import Path

import pandas as pd
import pytest
from fake_sweep import random_runs, write

from domainbed.reporting import load_records
from domainbed.runs import load
from domainbed.runs.folder import RunFolder

RUNS = 2 * (4 + 3) * 2 * 2


@pytest.fixture
def sweep(tmp_path, monkeypatch):
    """Finished runs of several datasets and algorithms, not changed for a while."""
    monkeypatch.setattr(load, "LEAST_FILES", 2)
    monkeypatch.setattr(load, "_BATCH", 7)
    runs = random_runs(1, ("PACS", "ColoredMNIST"), n_hparams=2, pairs=False)
    runs[3][1]["a_text"], runs[4][0]["only_here"] = "x", 3
    runs[5][0]["hparams"]["lr"] = math.inf  # which is not JSON
    folders = write(tmp_path / "sweep", runs, done=True)
    for folder in folders:
        settle(folder / "results.jsonl")
    return tmp_path / "sweep"


def settle(file, seconds=100):
    """A time of change long ago; the time of the inode's change cannot be set, so nor asked."""
    told = file.stat()
    os.utime(file, ns=(told.st_mtime_ns - int(seconds * 1e9),) * 2)


@pytest.fixture(autouse=True)
def settled_at_once(monkeypatch):
    monkeypatch.setattr(load, "_SETTLED", -1e12)


def cached():
    return list((Path(os.environ["DOMAINBED_CACHE_DIR"]) / "records").glob("*"))


def read(monkeypatch, folder):
    """The records, and how many files were parsed for them."""
    parsed = []
    read_batch = load.read_batch

    def counting(files, on_file, damages):
        parsed.extend(files)
        return read_batch(files, on_file, damages)

    with monkeypatch.context() as patch:
        patch.setattr(load, "read_batch", counting)
        return load_records(folder), len(parsed)


def anew(monkeypatch, folder):
    with monkeypatch.context() as patch:
        patch.setattr(load, "LEAST_FILES", 10**9)
        return load_records(folder)


def assert_same(one, other):
    pd.testing.assert_frame_equal(one.runs, other.runs)
    pd.testing.assert_frame_equal(one.values, other.values)


def test_the_second_reading_parses_nothing_and_is_the_same(sweep, monkeypatch):
    first, parsed = read(monkeypatch, sweep)
    assert parsed == RUNS
    again, parsed = read(monkeypatch, sweep)
    assert parsed == 0
    assert_same(first, again)
    assert_same(first, anew(monkeypatch, sweep))
    assert len(cached()) == 1


def rewrite(folder):
    records = (folder / "results.jsonl").read_text().replace('"epoch"', '"loss2"')
    (folder / "results.jsonl").write_text(records)


def same_size(folder):
    """Another accuracy with as many digits, and the old time of change on it."""
    file = folder / "results.jsonl"
    told, text = file.stat(), file.read_text()
    at = text.index('"env0_in_acc": 0.') + len('"env0_in_acc": 0.')
    file.write_text(text[:at] + str(9 - int(text[at])) + text[at + 1 :])
    os.utime(file, ns=(told.st_atime_ns, told.st_mtime_ns))


def replaced(folder):
    file = folder / "results.jsonl"
    (folder / "other").write_text(file.read_text().replace('"loss"', '"lose"'))
    os.replace(folder / "other", file)


@pytest.mark.parametrize("change", [rewrite, same_size, replaced])
def test_a_changed_run_is_parsed_anew_and_alone(sweep, monkeypatch, change):
    before, _ = read(monkeypatch, sweep)
    folder = sorted(sweep.iterdir())[5]
    change(folder)
    RunFolder(folder).mark_done((folder / "results.jsonl").read_text())
    after, parsed = read(monkeypatch, sweep)
    assert parsed == 1
    assert not before.values.equals(after.values)
    assert_same(after, anew(monkeypatch, sweep))
    again, parsed = read(monkeypatch, sweep)
    assert parsed == 0
    assert_same(after, again)


def test_runs_that_come_and_go(sweep, monkeypatch):
    read(monkeypatch, sweep)
    folders = sorted(sweep.iterdir())
    (folders[0] / "results.jsonl").unlink()
    folders[1].rename(sweep / "zzz")
    new = random_runs(2, ["Birds"], ["Mixup"], pairs=False)
    write(sweep, new, seed=5, done=True)
    after, parsed = read(monkeypatch, sweep)
    assert parsed == 1 + len(new)
    assert_same(after, anew(monkeypatch, sweep))


def test_a_wrong_run_json_is_noticed(sweep, monkeypatch, caplog):
    read(monkeypatch, sweep)
    folder = sorted(sweep.iterdir())[2]
    (folder / "run.json").write_text(json.dumps({"trial_seed": 77}))
    found, _ = read(monkeypatch, sweep)
    assert len(found.runs) == RUNS - 1
    assert "run.json names" in caplog.text


def test_a_damaged_run_is_noticed_whatever_is_cached(sweep, monkeypatch, caplog):
    """It is read, and left out, each time; what is cached of the others stays."""
    folder = sorted(sweep.iterdir())[5]
    same_size(folder)
    for files in (RUNS, 1):
        found, parsed = read(monkeypatch, sweep)
        assert (len(found.runs), parsed) == (RUNS - 1, files)
    assert caplog.text.count(f"{folder}/results.jsonl is damaged") == 2


def test_unfinished_and_torn_runs_are_never_kept(sweep, monkeypatch, caplog):
    folders = sorted(sweep.iterdir())
    (folders[0] / "done").unlink()
    (folders[1] / "done").unlink()
    with (folders[1] / "results.jsonl").open("a") as stream:
        stream.write('{"step": 30')
    read(monkeypatch, sweep)
    caplog.clear()
    _, parsed = read(monkeypatch, sweep)
    assert parsed == 2
    assert "cut off" in caplog.text


def test_files_that_changed_a_moment_ago_are_not_kept(sweep, monkeypatch):
    monkeypatch.setattr(load, "_SETTLED", 2e9)
    assert [read(monkeypatch, sweep)[1] for _ in range(2)] == [RUNS, RUNS]
    assert cached() == []


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[: len(content) // 2],
        lambda content: content[:1000] + bytes([content[1000] ^ 1]) + content[1001:],
        lambda content: b"",
        lambda content: b"something else",
    ],
)
def test_a_damaged_cache_counts_as_none(sweep, monkeypatch, damage):
    first, _ = read(monkeypatch, sweep)
    (file,) = cached()
    file.write_bytes(damage(file.read_bytes()))
    again, parsed = read(monkeypatch, sweep)
    assert parsed == RUNS
    assert_same(first, again)
    assert read(monkeypatch, sweep)[1] == 0


def test_another_version_counts_as_none(sweep, monkeypatch):
    read(monkeypatch, sweep)
    monkeypatch.setattr(load, "_CODE", load._CODE[1:])
    assert read(monkeypatch, sweep)[1] == RUNS


def test_where_the_cache_lies(sweep, monkeypatch):
    """In a sweep of this project its own folder; in what DomainBed wrote, nothing is written."""
    monkeypatch.delenv("DOMAINBED_CACHE_DIR")
    before = sorted(sweep.rglob("*"))
    read(monkeypatch, sweep)
    assert sorted(sweep.rglob("*")) == before
    (sweep / "plan.json").write_text("{}")
    read(monkeypatch, sweep)
    assert len(list((sweep / "cache" / "records").iterdir())) == 1
    assert read(monkeypatch, sweep)[1] == 0
    monkeypatch.setattr(os, "geteuid", lambda: os.stat(sweep).st_uid + 1)
    assert read(monkeypatch, sweep)[1] == RUNS


def test_a_cache_that_cannot_be_written(sweep, monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("DOMAINBED_CACHE_DIR", str(tmp_path / "file"))
    assert [read(monkeypatch, sweep)[1] for _ in range(2)] == [RUNS, RUNS]


def test_two_folders_of_which_one_is_in_the_other(sweep, monkeypatch):
    run = sorted(sweep.iterdir())[4]
    first = load_records([run, sweep])
    again = load_records([run, sweep])
    assert_same(first, again)
    assert first.runs["folder"].iloc[0] == str(run)
    assert len(first.runs) == RUNS
