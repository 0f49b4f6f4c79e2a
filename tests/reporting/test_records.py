"""Loading of run folders, whole, torn and damaged."""

import json
import random

import pytest
from fake_sweep import random_run, random_runs, write

from domainbed.errors import UserError
from domainbed.reporting import load_records


@pytest.fixture
def run(tmp_path):
    """The results.jsonl of a sweep's only run, with three records."""
    records = random_run(random.Random(0), "PACS", "ERM", [1], 4, 2)
    return write(tmp_path, [records])[0] / "results.jsonl"


def test_every_number_is_read(tmp_path):
    runs = random_runs(0)
    folders = write(tmp_path, runs)
    table = load_records(tmp_path)
    assert len(table) == sum(map(len, runs))
    rows = {(row["folder"], row["step"]): row for row in table.to_dict("records")}
    for folder, records in zip(folders, runs, strict=True):
        for record in records:
            row = rows[str(folder), record["step"]]
            assert row["test_envs"] == tuple(record["args"]["test_envs"])
            for key in ("dataset", "algorithm", "hparams_seed", "trial_seed", "output_dir"):
                assert row[key] == record["args"][key]
            for key, value in record.items():
                assert row[key] == value


def test_folders_are_read_in_the_order_of_their_names(tmp_path):
    write(tmp_path, random_runs(0, pairs=False))
    folders = list(load_records(tmp_path)["folder"])
    assert folders == sorted(folders)


def test_training_domains_may_lack_their_in_split(run):
    records = [json.loads(line) for line in run.read_text().splitlines()]
    for record in records[:2]:
        for env in (0, 2, 3):
            del record[f"env{env}_in_acc"]
    run.write_text("".join(json.dumps(record) + "\n" for record in records))
    table = load_records(run.parent.parent)
    assert table["env0_in_acc"].isna().tolist() == [True, True, False]
    assert table["env1_in_acc"].tolist() == [record["env1_in_acc"] for record in records]
    assert table["num_domains"].tolist() == [4, 4, 4]


def test_a_run_folder_and_several_folders(tmp_path):
    runs = random_runs(0, pairs=False)
    write(tmp_path / "a", runs[:5])
    write(tmp_path / "b", runs[5:], seed=1)
    both = load_records([tmp_path / "a", tmp_path / "b"])
    assert len(both) == 3 * len(runs)
    one = next((tmp_path / "a").iterdir())
    assert len(load_records(one)) == 3
    # the same folder, named twice, counts once
    assert len(load_records([one, tmp_path / "a"])) == 15


def test_progress_counts_folders(tmp_path):
    write(tmp_path, random_runs(0, pairs=False)[:3])
    seen = []
    load_records(tmp_path, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 3), (2, 3), (3, 3)]


@pytest.mark.parametrize("cut", [1, 2, 50, 400])
def test_a_torn_last_line_is_skipped_with_a_warning(run, cut, caplog):
    run.write_bytes(run.read_bytes()[:-cut])
    assert load_records(run.parent)["step"].tolist() == [0, 10]
    assert str(run) in caplog.text
    assert "cut off" in caplog.text


def test_an_unreadable_last_line_is_torn_too(run, caplog):
    run.write_bytes(run.read_bytes()[:-50] + b"\n")
    assert load_records(run.parent)["step"].tolist() == [0, 10]
    assert str(run) in caplog.text


def test_a_file_with_nothing_but_a_torn_line(tmp_path, run, caplog):
    run.write_bytes(run.read_bytes()[:100])
    with pytest.raises(UserError, match="no complete record"):
        load_records(tmp_path)


def test_whole_files_raise_no_warning(tmp_path, caplog):
    write(tmp_path, random_runs(0))
    load_records(tmp_path)
    assert caplog.text == ""


def test_blank_lines_are_no_damage(run, caplog):
    run.write_text(run.read_text().replace("\n", "\n\n"))
    assert load_records(run.parent)["line"].tolist() == [1, 3, 5]


def damaged(lines, number, change):
    record = json.loads(lines[number - 1])
    change(record)
    lines[number - 1] = json.dumps(record) + "\n"


@pytest.mark.parametrize(
    ("number", "change", "message"),
    [
        (1, lambda r: r.pop("step"), "lacks the key 'step'"),
        (2, lambda r: r.pop("args"), "lacks the key 'args'"),
        (3, lambda r: r["args"].pop("trial_seed"), "lacks the key 'trial_seed'"),
        (3, lambda r: r.pop("env1_in_acc"), "lacks the key 'env1_in_acc'"),
        (2, lambda r: r.pop("env0_out_acc"), "lacks the key 'env0_out_acc'"),
        (2, lambda r: r.update(step="ten"), "step is 'ten'"),
        (2, lambda r: r.update(env1_in_acc="high"), "env1_in_acc is 'high'"),
        (2, lambda r: r.update(env3_out_acc="high"), "env3_out_acc is 'high'"),
        (1, lambda r: r["args"].update(test_envs=1), "test_envs is 1"),
        (1, lambda r: r["args"].update(test_envs=["1"]), r"test_envs is \['1'\]"),
        (1, lambda r: r["args"].update(hparams_seed=None), "hparams_seed is None"),
        (1, lambda r: r["args"].update(dataset=3), "dataset is 3"),
        (1, lambda r: r.update(args=[]), r"args is \[\]"),
    ],
)
def test_a_damaged_record_is_named(run, number, change, message):
    lines = run.read_text().splitlines(keepends=True)
    damaged(lines, number, change)
    run.write_text("".join(lines))
    with pytest.raises(UserError, match=message) as error:
        load_records(run.parent)
    assert f"{run}, line {number}: " in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "line", [b"{", b'{"step": 1', b'"step": 1}', b"12", b"[]", b"\xff\xfe", b"{} {}", b"{},{}"]
)
@pytest.mark.parametrize("number", [1, 2])
def test_a_damaged_line_is_named(run, line, number):
    lines = run.read_bytes().splitlines(keepends=True)
    lines[number - 1] = line + b"\n"
    run.write_bytes(b"".join(lines))
    with pytest.raises(UserError) as error:
        load_records(run.parent)
    assert f"{run}, line {number}: " in str(error.value)


def test_folders_without_records(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        load_records(tmp_path / "nowhere")
    with pytest.raises(UserError, match="no records in"):
        load_records(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="is not a folder"):
        load_records(tmp_path / "file")


def test_the_same_run_in_two_folders(tmp_path, caplog):
    records = random_run(random.Random(0), "PACS", "ERM", [1], 4, 2)
    folders = write(tmp_path, [records, records])
    assert len(load_records(tmp_path)) == 6
    assert "3 records are there twice, such as step 0" in caplog.text
    assert all(str(folder) in caplog.text for folder in folders)


def test_unfinished_runs_are_counted_in_a_warning(tmp_path, caplog):
    write(tmp_path, random_runs(0))
    for folder in sorted(tmp_path.iterdir())[3:]:
        (folder / "done").write_text("done")
    load_records(tmp_path)
    assert "3 of 24 runs are not finished" in caplog.text
