"""Why a cell is incomplete."""

import json

import pytest
from fake_sweep import random_runs, write

from domainbed.errors import UserError
from domainbed.reporting import (
    RENDERERS,
    build_report,
    cell_text,
    explain,
    load_records,
    planned_gaps,
)
from domainbed.runs.folder import RunFolder

TRACEBACK = "Traceback (most recent call last):\n  File x\nRuntimeError: CUDA out of memory\n"


def lines_of(root, **options):
    return explain(build_report(load_records(root), **options), root)


def plan(root, runs, folders):
    keys = ("dataset", "algorithm", "test_envs", "hparams_seed", "trial_seed")
    entries = {
        folder.name: {key: run[0]["args"][key] for key in keys}
        for run, folder in zip(runs, folders, strict=True)
    }
    (root / "plan.json").write_text(json.dumps({"runs": entries}))


def small(**options):
    """Eight runs of ERM on PACS: four test domains, one hparams seed, two trials."""
    return random_runs(0, ["PACS"], ["ERM"], pairs=False, **options)


def test_nothing_to_explain(tmp_path):
    write(tmp_path, random_runs(0), done=True)
    assert lines_of(tmp_path) == ["", "every run is there and finished"]


def test_missing_runs_are_inferred_from_the_grid(tmp_path):
    runs = random_runs(0, ["PACS"], ["ERM"], n_hparams=5, pairs=False)
    gone = [([2], 1, seed) for seed in (0, 1, 3)]
    keys = ("test_envs", "trial_seed", "hparams_seed")
    kept = [run for run in runs if tuple(run[0]["args"][key] for key in keys) not in gone]
    assert len(kept) == len(runs) - 3
    write(tmp_path, kept, done=True)
    cell = build_report(load_records(tmp_path), ["oracle"]).tables[0].rows["ERM"][2]
    assert lines_of(tmp_path, selection=["oracle"]) == [
        "",
        "PACS, ERM, test domain P (number 2); test-domain validation set (oracle) "
        f"({cell_text(cell)}, 2 of 2 trials):",
        "  missing: test_envs [2], trial 1, hparams seeds 0-1, 3",
    ]


def test_failed_and_interrupted_runs(tmp_path):
    folders = write(tmp_path, small(), done=True)  # two trials of test domain 0, then of 1, 2 and 3
    (folders[0] / "done").unlink()
    (folders[0] / "err.txt").write_text(TRACEBACK)
    (folders[2] / "done").unlink()
    (folders[2] / "err.txt").write_text("UserWarning: not an error\n")
    (folders[4] / "err.txt").write_text(TRACEBACK)  # of an earlier attempt: the run is done
    lines = lines_of(tmp_path, selection=["oracle"])
    assert [line for line in lines if line.startswith("  ")] == [
        "  failed: test_envs [0], trial 0, hparams seed 0: "
        f"RuntimeError: CUDA out of memory ({folders[0]})",
        "  interrupted: test_envs [1], trial 0, hparams seed 0: "
        f"last record at step 20 of 21 steps ({folders[2]})",
    ]


def test_damaged_runs(tmp_path):
    """They are left out, and no run that was planned and is left out is there and finished."""
    runs = small()
    folders = write(tmp_path, runs, done=True)
    plan(tmp_path, runs, folders)
    file = folders[2] / "results.jsonl"
    file.write_text(file.read_text().replace("0.1", "0.2", 1))
    lines = lines_of(tmp_path, selection=["oracle"])
    assert [line for line in lines if line.startswith("  ")] == [
        f"  failed: test_envs [1], trial 0, hparams seed 0: its records are damaged ({folders[2]})",
    ]


def test_runs_at_work(tmp_path):
    folders = write(tmp_path, small(), done=True)
    (folders[0] / "done").unlink()
    with RunFolder(folders[0]).exclusive():
        lines = lines_of(tmp_path, selection=["oracle"])
    assert lines[-1] == (
        "  running: test_envs [0], trial 0, hparams seed 0: "
        f"last record at step 20 of 21 steps ({folders[0]})"
    )


def test_methods_with_the_same_reasons_share_them(tmp_path):
    folders = write(tmp_path, small(), done=True)
    (folders[0] / "done").unlink()
    lines = lines_of(tmp_path, selection=["oracle", "training-domain"])
    assert len(lines) == 3
    assert "(oracle)" in lines[1]
    assert "training-domain validation set" in lines[1]


def test_a_plan_names_runs_that_left_nothing(tmp_path):
    runs = small()
    folders = write(tmp_path, runs, done=True)
    plan(tmp_path, runs, folders)
    for folder in (folders[6], folders[7]):  # both trials of test domain 3
        (folder / "results.jsonl").unlink()
        (folder / "done").unlink()
    (folders[6] / "err.txt").write_text(TRACEBACK)
    folders[7].rmdir()
    text = "\n".join(lines_of(tmp_path, selection=["oracle"]))
    assert "PACS, ERM, test domain S (number 3); test-domain validation set (oracle) (X, 0" in text
    assert "  missing: test_envs [3], trial 1, hparams seeds 0" in text
    assert "  failed: test_envs [3], trial 0, hparams seed 0: RuntimeError" in text
    assert "nothing names" not in text


def test_a_planned_algorithm_without_records(tmp_path):
    runs = random_runs(0, ["PACS"], ["ERM", "IRM"], n_trials=1, pairs=False)
    folders = write(tmp_path / "all", runs, done=True)
    write(tmp_path / "erm", runs[:4], done=True)
    plan(tmp_path / "erm", runs, folders)
    lines = lines_of(tmp_path / "erm")
    absent = lines[lines.index("PACS, IRM; no record of any run:") :]
    assert absent[1:5] == [
        f"  missing: test_envs [{env}], trial 0, hparams seeds 0" for env in range(4)
    ]
    assert "IRM" not in "\n".join(lines_of(tmp_path / "erm", algorithms=["ERM"]))


def test_leave_one_out_without_pairs(tmp_path):
    write(tmp_path, small(), done=True)
    text = "\n".join(lines_of(tmp_path))
    assert text.count("no runs with two test domains are planned or there") == 4
    assert "leave-one-domain-out cross-validation (X, 0 of 2 trials)" in text
    assert "oracle" not in text


def test_runs_without_a_common_step(tmp_path):
    runs = random_runs(0, ["PACS"], ["ERM"], n_trials=1)
    for run in runs:
        if len(run[0]["args"]["test_envs"]) == 2:
            for record in run:
                record["step"] += 1
    write(tmp_path, runs, done=True)
    assert "no step is recorded exactly once" in "\n".join(lines_of(tmp_path))


def test_folders_that_nothing_names(tmp_path):
    folders = write(tmp_path, small(), done=True)
    (folders[0] / "results.jsonl").unlink()
    (folders[0] / "err.txt").write_text(TRACEBACK)
    (tmp_path / "notes").mkdir()
    lines = lines_of(tmp_path, selection=["oracle"])
    assert lines[-2:] == [
        "folders without a record that name no run:",
        f"  {folders[0]}: RuntimeError: CUDA out of memory",
    ]


NAMES_A_NUMBER = '{"dataset": 3, "algorithm": "ERM", "test_envs": [0]}'


@pytest.mark.parametrize("damaged", ["{", "[]", "{}", NAMES_A_NUMBER, None])
def test_a_folder_that_names_itself(tmp_path, damaged):
    runs = small()
    folders = write(tmp_path, runs, done=True)
    for folder, text in ((folders[0], json.dumps(runs[0][0]["args"])), (folders[1], damaged)):
        (folder / "results.jsonl").write_text("")
        (folder / "done").unlink()
        (folder / "out.txt").touch()
        if text is not None:
            (folder / "run.json").write_text(text)
    text = "\n".join(lines_of(tmp_path, selection=["oracle"]))
    assert (
        f"interrupted: test_envs [0], trial 0, hparams seed 0: no record yet ({folders[0]})" in text
    )
    assert "missing: test_envs [0], trial 1, hparams seeds 0" in text
    assert f"name no run:\n  {folders[1]}: no error is on file" in text


@pytest.mark.parametrize("text", ["{", "[]", '{"runs": {"a": {}}}', '{"runs": []}'])
def test_a_damaged_plan(tmp_path, text):
    write(tmp_path, small(), done=True)
    (tmp_path / "plan.json").write_text(text)
    with pytest.raises(UserError, match=r"plan\.json: not a plan of runs"):
        lines_of(tmp_path)


def test_runs_that_cannot_be_are_not_missing(tmp_path, caplog):
    """Methods that need what was left out have no cells, and say why; the others are complete."""
    runs = random_runs(0, ["ColoredMNIST"], ["TRM"], pairs=False)
    runs += random_runs(1, ["ColoredMNIST"], ["ERM"])
    folders = write(tmp_path, runs, done=True)
    plan(tmp_path, runs, folders)
    content = json.loads((tmp_path / "plan.json").read_text())
    why, other = "TRM needs at least 2 training domains", "TRM needs them on PACS, too"
    content["left_out"] = [
        {"dataset": "ColoredMNIST", "algorithm": "TRM", "test_envs": pair, "why": why}
        for pair in ([0, 1], [0, 2], [1, 2])
    ]
    content["left_out"] += [{"dataset": "PACS", "algorithm": "TRM", "test_envs": [0], "why": other}]
    (tmp_path / "plan.json").write_text(json.dumps(content))
    report = build_report(load_records(tmp_path), gaps=planned_gaps(tmp_path))
    assert "no result" not in caplog.text
    lines = explain(report, tmp_path)
    assert [line for line in lines if line.startswith("  ")] == [
        *[f"  left out of the plan: {why}"] * 3,
        f"  {other}",
    ]
    assert not any("missing" in line or "training-domain validation" in line for line in lines)
    text = RENDERERS["text"](report)
    assert text.replace("\n    ", " ").count(f"X, not available: {why}\n") == 1
    gaps = [cell.gap for table in report.tables for row in table.rows.values() for cell in row]
    assert sorted(gaps)[-3:] == [why] * 3
    assert sum(map(bool, gaps)) == 3


def test_averages_lack_what_their_runs_lack(tmp_path):
    """Their runs are planned under the name of the algorithm that was trained."""
    runs = small()
    for run in runs:
        for record in run:
            accs = {key: value for key, value in record.items() if key.startswith("env")}
            record.update({f"swad_{key}": value for key, value in accs.items()})
    folders = write(tmp_path, runs[:-1], done=True)
    plan(tmp_path, runs, [*folders, tmp_path / "gone"])
    missing = ["  missing: test_envs [3], trial 1, hparams seeds 0"] * 2
    lines = lines_of(tmp_path, selection=["oracle"])
    assert [line for line in lines if "missing" in line] == missing
    assert [line.split(", ")[1] for line in lines if ", test domain" in line] == [
        *("ERM", "ERM + SWAD")
    ]


def test_runs_of_datasets_that_share_a_name_are_told_apart(tmp_path):
    runs = random_runs(0, ["PACS"], ["ERM", "CORAL"], pairs=False)
    folders = write(tmp_path, runs, done=True)
    for run, folder in zip(runs, folders, strict=True):
        digest = run[0]["args"]["algorithm"].lower() * 20
        facts = {"data": {"domains": list("ACPS"), "images": [9] * 4, "digest": digest}}
        (folder / "environment.json").write_text(json.dumps(facts))
    lines = lines_of(tmp_path, selection=["oracle"])
    assert len(lines) == 4 * 8  # four domains for each of two algorithms on the other's data
    assert lines[1].startswith("PACS [data coralc], ERM, test domain 0")
    assert lines[2:4] == [
        f"  missing: test_envs [0], trial {trial}, hparams seeds 0" for trial in (0, 1)
    ]
