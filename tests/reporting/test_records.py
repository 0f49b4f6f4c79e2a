"""Loading of run folders, whole, torn and damaged."""

import json
import random
import re
import shutil

import numpy as np
import pandas as pd
import pytest
from fake_sweep import random_run, random_runs, write

from domainbed.errors import UserError
from domainbed.reporting import load_records
from domainbed.runs.folder import seal_of


@pytest.fixture
def run(tmp_path):
    """The results.jsonl of a sweep's only run, with three records."""
    records = random_run(random.Random(0), "PACS", "ERM", [1], 4, 2)
    return write(tmp_path, [records])[0] / "results.jsonl"


def steps_of(records):
    return records.values["step"].drop_duplicates().tolist()


def test_every_number_is_read(tmp_path):
    runs = random_runs(0)
    folders = write(tmp_path, runs)
    records = load_records(tmp_path)
    assert len(records) == sum(map(len, runs))
    assert len(records.runs) == len(runs)
    by_folder = {row["folder"]: (n, row) for n, row in records.runs.iterrows()}
    found = {row[:-1]: row[-1] for row in records.values.itertuples(index=False, name=None)}
    total = 0
    for folder, lines in zip(folders, runs, strict=True):
        number, run = by_folder[str(folder)]
        assert run["test_envs"] == tuple(lines[0]["args"]["test_envs"])
        for key in ("dataset", "algorithm", "hparams_seed", "trial_seed", "output_dir"):
            assert run[key] == lines[0]["args"][key]
        assert (run["args"], run["hparams"]) == (lines[0]["args"], lines[0]["hparams"])
        assert (run["num_domains"], run["num_records"], run["last_step"]) == (3, 3, 20)
        for record in lines:
            expected = {(-1, "", "loss"): "loss", (-1, "", "epoch"): "epoch"}
            expected |= {
                (env, split, "accuracy"): f"env{env}_{split}_acc"
                for env in range(3)
                for split in ("in", "out")
            }
            for (domain, split, metric), key in expected.items():
                assert found[number, record["step"], domain, split, metric] == record[key]
            total += len(expected)
    assert len(records.values) == total


def test_folders_are_read_in_the_order_of_their_names(tmp_path):
    write(tmp_path, random_runs(0, pairs=False))
    folders = list(load_records(tmp_path).runs["folder"])
    assert folders == sorted(folders)


def test_training_domains_may_lack_their_in_split(run):
    records = [json.loads(line) for line in run.read_text().splitlines()]
    for record in records[:2]:
        for env in (0, 2, 3):
            del record[f"env{env}_in_acc"]
    run.write_text("".join(json.dumps(record) + "\n" for record in records))
    read = load_records(run.parent.parent)
    assert read.runs["num_domains"].tolist() == [4]
    accuracies = read.table
    assert np.isnan(accuracies.in_split[:, 0]).tolist() == [True, True, False]
    assert accuracies.in_split[:, 1].tolist() == [record["env1_in_acc"] for record in records]
    assert accuracies.keys["step"].tolist() == [0, 10, 20]


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
    assert steps_of(load_records(run.parent)) == [0, 10]
    assert str(run) in caplog.text
    assert "cut off" in caplog.text


def test_an_unreadable_last_line_is_torn_too(run, caplog):
    run.write_bytes(run.read_bytes()[:-50] + b"\n")
    assert steps_of(load_records(run.parent)) == [0, 10]
    assert str(run) in caplog.text


def test_a_file_with_nothing_but_a_torn_line(tmp_path, run, caplog):
    run.write_bytes(run.read_bytes()[:100])
    with pytest.raises(UserError, match="no complete record"):
        load_records(tmp_path)


@pytest.mark.parametrize("cut", [1, 50])
@pytest.mark.parametrize("end", [b"", b"\n"])
def test_a_torn_last_line_of_a_finished_run_is_an_error(run, cut, end):
    torn = run.read_bytes()[:-cut] + end
    run.write_bytes(torn)
    run.with_name("done").touch()
    if cut == 1:  # all but the line end, which editors leave out
        assert steps_of(load_records(run.parent)) == [0, 10, 20]
        return
    with pytest.raises(UserError, match=r"cut off, but the run is marked done: .*do the run again"):
        load_records(run.parent)


def test_whole_files_raise_no_warning(tmp_path, caplog):
    write(tmp_path, random_runs(0), done=True)
    load_records(tmp_path)
    assert caplog.text == ""


def test_records_without_a_digest_are_told_once(tmp_path, caplog):
    """Those of DomainBed, and of this project's earlier versions."""
    write(tmp_path, random_runs(0), done=True)
    whole = load_records(tmp_path)
    for folder in sorted(tmp_path.iterdir())[:5]:
        (folder / "done").write_text("done")
    pd.testing.assert_frame_equal(load_records(tmp_path).values, whole.values)
    (message,) = caplog.messages
    assert "5 of 24 runs have no digest" in message


def test_blank_lines_are_no_damage(run, caplog):
    run.write_text(run.read_text().replace("\n", "\n\n"))
    assert steps_of(load_records(run.parent)) == [0, 10, 20]
    assert all("no digest" in message for message in caplog.messages)


def damaged(lines, number, change):
    record = json.loads(lines[number - 1])
    change(record)
    lines[number - 1] = json.dumps(record) + "\n"


@pytest.mark.parametrize(
    ("number", "change", "message"),
    [
        (1, lambda r: r.pop("step"), "lacks the key 'step'"),
        (2, lambda r: r.pop("args"), "lacks the key 'args'"),
        (2, lambda r: r.update(tr_outloss=0.5), "a record of SWAD's trainer"),
        (3, lambda r: r["args"].pop("trial_seed"), "lacks the key 'trial_seed'"),
        (3, lambda r: r.pop("env1_in_acc"), "lacks the key 'env1_in_acc'"),
        (2, lambda r: r.pop("env0_out_acc"), "lacks the key 'env0_out_acc'"),
        (2, lambda r: r.update(step="ten"), "step is 'ten'"),
        (2, lambda r: r.update(step=2**63), "step is 9223372036854775808, not an integer of 64"),
        (2, lambda r: r.update(env1_in_acc=10**400), "env1_in_acc is 1000"),
        (2, lambda r: r.update(env1_in_acc="high"), "env1_in_acc is 'high'"),
        (2, lambda r: r.update(env3_out_acc="high"), "env3_out_acc is 'high'"),
        (2, lambda r: r.update(env3_out_acc="0.5"), "env3_out_acc is '0.5'"),
        (2, lambda r: r.update(env1_in_acc=None), "env1_in_acc is None"),
        (3, lambda r: r.update(env1_in_acc=63.1), r"env1_in_acc is 63.1, not a number in \[0, 1\]"),
        (1, lambda r: r.update(env2_out_acc=-0.5), r"env2_out_acc is -0.5, not a number in \[0,"),
        (2, lambda r: r.update(env2_out_acc=float("nan")), "env2_out_acc is nan, not a number in"),
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
    "line",
    [
        b"{",
        b'{"step": 1',
        b'"step": 1}',
        b"12",
        b"[]",
        b"\xff\xfe",
        b"{} {}",
        b"{},{}",
        b"9" * 9999,
    ],
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


def test_a_sweep_in_a_folder_of_sweeps_is_named_in_a_warning(tmp_path, caplog):
    runs, folder = random_runs(0), tmp_path / "results"
    inner = folder / "quickstart"
    write(folder, runs[:3])
    write(inner, runs[3:])
    (inner / "plan.json").write_text("{}")
    assert len(load_records(folder).runs) == 3
    assert f"warning: {inner} is a sweep of its own, and is not read: name it" in caplog.text
    caplog.clear()
    assert len(load_records([folder, inner]).runs) == len(runs)
    assert "sweep of its own" not in caplog.text
    for name in ("later", "latest"):
        (folder / name).mkdir()
        (folder / name / "plan.json").touch()
    load_records(folder)
    assert f"{folder / 'later'} and 2 more are sweeps of their own" in caplog.text


def test_new_trials_in_a_sweep_are_of_it(tmp_path, caplog):
    write(tmp_path, random_runs(0))
    for folder in (tmp_path, tmp_path / "rerun-oracle"):
        folder.mkdir(exist_ok=True)
        (folder / "plan.json").touch()
    load_records(tmp_path)
    assert "sweep of its own" not in caplog.text


def test_a_folder_of_sweeps_alone(tmp_path):
    (tmp_path / "quickstart").mkdir()
    (tmp_path / "quickstart" / "plan.json").touch()
    with pytest.raises(UserError, match=r"quickstart is a sweep of its own, .*: name it"):
        load_records(tmp_path)


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


def test_a_step_that_is_there_again_is_another_run_of_the_same_folder(run, caplog):
    run.write_text(run.read_text() * 2)
    records = load_records(run.parent)
    assert records.runs["folder"].tolist() == [str(run.parent)] * 2
    assert records.runs["num_records"].tolist() == [3, 3]
    assert "3 records are there twice" in caplog.text


def test_losses_need_not_be_finite(run):
    lines = run.read_text().splitlines(keepends=True)
    damaged(lines, 1, lambda r: r.update(loss=float("nan"), diverged=True))
    damaged(lines, 2, lambda r: r.update(loss=float("inf"), env0_in_loss=float("-inf")))
    damaged(lines, 3, lambda r: r.update(loss=None, note="text", mem_gb=[1]))
    run.write_text("".join(lines))
    assert "NaN" in lines[0]
    assert "Infinity" in lines[1]
    records = load_records(run.parent)
    losses = records.values[records.values["metric"] == "loss"]
    np.testing.assert_equal(
        losses[["step", "domain", "value"]].to_numpy().tolist(),
        [[0, -1, np.nan], [10, -1, np.inf], [10, 0, -np.inf]],
    )
    assert records.runs["diverged"].tolist() == [True]
    assert set(records.values["metric"]) == {"loss", "epoch", "accuracy"}


def test_a_folder_that_names_another_run(run):
    args = json.loads(run.read_text().splitlines()[0])["args"]
    keys = ("dataset", "algorithm", "test_envs", "hparams_seed", "trial_seed")
    name = {key: args[key] for key in keys}
    run.with_name("run.json").write_text(json.dumps({**name, "dataset": "folder:/data/PACS"}))
    assert len(load_records(run.parent)) == 3
    others = {"dataset": "VLCS", "algorithm": "IRM", "test_envs": [2]}
    for key, other in (others | {"hparams_seed": 7, "trial_seed": 7}).items():
        run.with_name("run.json").write_text(json.dumps({**name, key: other}))
        with pytest.raises(UserError, match=f"records with {key} .*, but .* names ") as error:
            load_records(run.parent)
        for word in (str(run), str(run.with_name("run.json")), repr(args[key]), repr(other)):
            assert word in str(error.value)


@pytest.mark.parametrize("text", ["{", "[1]", "12", '"run"'])
def test_a_damaged_name_of_a_folder(run, text):
    run.with_name("run.json").write_text(text)
    with pytest.raises(UserError, match=r"run\.json is damaged"):
        load_records(run.parent)


def test_links_out_of_the_folder_are_not_followed(tmp_path, caplog):
    runs = random_runs(0, pairs=False)
    inside = write(tmp_path / "sweep", runs[:2])
    outside = write(tmp_path / "other", runs[2:4], seed=1)
    (tmp_path / "sweep" / "link").symlink_to(outside[0])
    (tmp_path / "sweep" / "half").mkdir()
    (tmp_path / "sweep" / "half" / "results.jsonl").symlink_to(outside[1] / "results.jsonl")
    folders = load_records(tmp_path / "sweep").runs["folder"].tolist()
    assert folders == sorted(map(str, inside))
    for name in ("sweep/link", "sweep/half/results.jsonl"):
        assert f"{tmp_path / name} is a link that leaves" in caplog.text
    (tmp_path / "sweep" / "link").unlink()
    (tmp_path / "sweep" / "again").symlink_to(inside[0])
    assert len(load_records(tmp_path / "sweep").runs) == 3
    (tmp_path / "named").symlink_to(tmp_path / "sweep")
    assert len(load_records(tmp_path / "named").runs) == 3


@pytest.mark.parametrize("with_empty_records", [True, False])
def test_a_sweep_whose_runs_all_failed_says_so(tmp_path, with_empty_records):
    for name in "ab":
        (tmp_path / name).mkdir()
        (tmp_path / name / "run.json").write_text("{}")
        (tmp_path / name / "err.txt").write_text(f"Traceback\n{name} has no data\n")
        if with_empty_records:
            (tmp_path / name / "results.jsonl").touch()
    with pytest.raises(UserError, match=r"2 runs failed, such as .*a: a has no data$"):
        load_records(tmp_path)


def flipped(content, place, bit):
    """The same bytes but for one bit."""
    changed = bytearray(content)
    changed[place] ^= 1 << bit
    return bytes(changed)


@pytest.mark.parametrize("name", ["results.jsonl", "done"])
def test_a_finished_run_is_left_out_after_any_flip(tmp_path, caplog, name):
    folder, *others = write(tmp_path, random_runs(3)[:3], done=True)
    expected, file = load_records(tmp_path), folder / name
    kept = expected.only(expected.runs["folder"] != str(folder))
    whole, rng = file.read_bytes(), random.Random(0)
    for _ in range(40):
        place = rng.randrange(len(whole))
        file.write_bytes(flipped(whole, place, rng.randrange(8)))
        caplog.clear()
        found = load_records(tmp_path)
        if len(found.runs) == 3:  # the mark's first word, and its end
            assert name == "done"
            assert place < 5 or place == len(whole) - 1
            pd.testing.assert_frame_equal(found.values, expected.values)
            continue
        pd.testing.assert_frame_equal(found.runs, kept.runs)
        pd.testing.assert_frame_equal(found.values, kept.values.reset_index(drop=True))
        (message,) = caplog.messages
        assert re.search(rf"{folder}/\S+ is damaged", message)
        assert message.endswith("the run is left out")
    for other in others:
        shutil.rmtree(other)
    with pytest.raises(UserError, match=f"{folder}/.* is damaged"):
        load_records(tmp_path)


def test_records_of_an_unfinished_run_are_compared_with_its_checkpoint(run, caplog):
    """But for the last line, which may have been written after it."""
    whole = run.read_bytes()
    first, second, _ = whole.splitlines(keepends=True)
    title = f"domainbed checkpoint, sha256 {'0' * 64}; {seal_of(first + second)}\n"
    run.with_name("checkpoint.pt").write_bytes(title.encode() + b"anything")
    run.with_name("run.json").write_text("{}")
    assert steps_of(load_records(run.parent)) == [0, 10, 20]
    assert "no digest" not in caplog.text
    for place in (0, 100, len(first + second) - 1):
        run.write_bytes(flipped(whole, place, 0))
        with pytest.raises(UserError, match=r"results\.jsonl is damaged .*: resume the run"):
            load_records(run.parent)
    run.write_bytes(first)
    with pytest.raises(UserError, match=r"results\.jsonl is damaged"):
        load_records(run.parent)


def test_what_no_run_recorded_is_left_out(tmp_path, caplog):
    """A NaN, a text in place of a seed, an accuracy above 1, in folders without digests."""
    folders = write(tmp_path, random_runs(4)[:6])
    changes = {
        "not a number in": lambda record: record.update(env1_in_acc=float("nan")),
        "not an integer": lambda record: record["args"].update(trial_seed="0"),
        "is 1.5": lambda record: record.update(env0_out_acc=1.5),
        "lacks the key": lambda record: record.pop(f"env{record['args']['test_envs'][0]}_in_acc"),
    }
    for folder, change in zip(folders, changes.values()):
        file = folder / "results.jsonl"
        records = list(map(json.loads, file.read_text().splitlines()))
        change(records[-1])
        file.write_text("".join(json.dumps(record) + "\n" for record in records))
    found = load_records(tmp_path)
    assert sorted(found.runs["folder"]) == sorted(map(str, folders[4:]))
    left_out = [message for message in caplog.messages if "left out" in message]
    assert len(left_out) == len(changes)
    for folder, reason in zip(folders, changes):
        assert any(f"{folder}/results.jsonl, line 3" in m and reason in m for m in left_out)


def test_own_images_in_a_folder_called_like_a_dataset_are_not_that_dataset(tmp_path):
    runs = random_runs(0, ["PACS"], ["ERM"], pairs=False, environments=["w", "x", "y", "z"])
    write(tmp_path, runs)
    assert set(load_records(tmp_path).runs["dataset"]) == {"PACS [own images]"}
