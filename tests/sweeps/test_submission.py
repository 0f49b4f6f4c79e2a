"""What is submitted, and the leaderboard of it: a real sweep stands, and each change is noticed."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from domainbed.cli import main
from domainbed.core.files import read_sealed_json, sealed_json
from domainbed.errors import UserError
from domainbed.runs.exported import write_export
from domainbed.runs.folder import RunFolder
from domainbed.spec import RunSpec
from domainbed.sweeps.config import load_config
from domainbed.sweeps.launch import prepare
from domainbed.sweeps.store import Store
from domainbed.sweeps.submission import OF_ONE, TOLERANCE, Check, alike, check, difference
from domainbed.training.trained import read_spec

ROOT = Path(__file__).parents[2]
CONFIG = {
    "datasets": ["Penguins"],
    "algorithms": ["ERM", "CORAL"],
    "trials": 2,
    "hparams_seeds": 2,
    "steps": 4,
    "checkpoint_freq": 2,
    "keep": "none",
    "selection": ["training-domain"],
    "launcher": "debug",
}


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("submitted") / "sweep"
    planned = prepare(load_config(None, {**CONFIG, "output_dir": str(root)}))
    planned.execute()
    return root


def make(folder: Path) -> Path:
    folder.mkdir(parents=True)
    return folder


def checks_of(root: Path, tmp_path: Path, rerun: int = 0) -> dict[str, Check]:
    file = tmp_path / "sweep.parquet"
    write_export(root, [folder.path for folder in Store(root).run_folders()], file)
    return {each.what: each for each in check(file, rerun)}


def test_a_sweep_stands_and_is_the_same_when_run_again(sweep: Path, tmp_path: Path) -> None:
    found = checks_of(sweep, tmp_path, rerun=2)
    assert all(each.stands for each in found.values()), found
    assert found["runs done"].found == "24 of 24 planned"
    assert found["seeds"].found == "2 methods on Penguins, 2 trials, 2 draws"
    again = [each.found for each in found.values() if each.what.startswith("again: ")]
    assert again == ["the same, bit for bit"] * 2


def test_methods_with_the_same_fixed_hyperparameters_are_told_together(tmp_path: Path) -> None:
    fixed = {"batch_size": 8, "CORAL": {"mmd_gamma": 0.5}}
    methods = ["ERM", "CORAL", "IRM", "VREx", "Fish"]
    changed = {"algorithms": methods, "hparams": fixed, "output_dir": str(tmp_path)}
    planned = prepare(load_config(None, CONFIG | changed))
    told = alike(planned.runs.values())
    assert told.stands
    assert told.found.startswith(
        '4 methods: {"batch_size": 8}; CORAL: {"batch_size": 8, "mmd_gamma": 0.5}; all: {'
    )


def test_a_wrong_count_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--rerun is -1: expected 0 or more runs"):
        check(tmp_path / "sweep.parquet", rerun=-1)


def change_spec(folder: RunFolder, **fields: Any) -> RunSpec:
    """Another run in a folder, with records that say so; the folder gets its name."""
    spec = read_spec(folder).model_copy(update=fields)
    content = {**spec.as_json(), "run_id": spec.run_id, "identity": spec.identity()}
    folder.spec.write_text(sealed_json(content))
    own = {n: v for n, v in spec.as_json().items() if n not in ("hparams", "fixed_hparams")}
    own["hparams"] = json.dumps(spec.fixed_hparams) if spec.fixed_hparams else None
    own["run_id"] = spec.run_id

    def tell(record: dict[str, Any]) -> None:
        record["args"] |= own
        record["hparams"] = spec.hparams

    change_records(folder, tell)
    folder.path.rename(folder.path.with_name(spec.run_id))
    return spec


def change_records(
    folder: RunFolder, change: Callable[[dict[str, Any]], None], last: int | None = None
) -> None:
    """Other records, with their digest."""
    records = [json.loads(line) for line in folder.results.read_text().splitlines()[:last]]
    for record in records:
        change(record)
    text = "".join(json.dumps(record) + "\n" for record in records)
    folder.results.write_text(text)
    folder.mark_done(text)


def change_plan(root: Path, change: Callable[[dict[str, Any]], None]) -> None:
    plan = read_sealed_json(root / "plan.json")
    change(plan["runs"])
    (root / "plan.json").write_text(sealed_json(plan))


def forget(root: Path, is_forgotten: Callable[[RunSpec], bool]) -> None:
    """Removes runs, from the plan as well."""
    for folder in Store(root).run_folders():
        if is_forgotten(read_spec(folder)):
            shutil.rmtree(folder.path)
            change_plan(root, lambda runs, name=folder.path.name: runs.pop(name))


def is_one_of_coral(spec: RunSpec) -> bool:
    place = spec.algorithm, spec.test_envs, spec.hparams_seed, spec.trial_seed
    return place == ("CORAL", (1,), 1, 1)


def first(root: Path) -> RunFolder:
    return Store(root).run_folders()[0]


def take_a_better_rate(root: Path) -> None:
    """As if it were what the seeds draw."""
    before = first(root).path.name
    hparams = read_spec(first(root)).hparams
    spec = change_spec(first(root), hparams={**hparams, "lr": 2 * hparams["lr"]})
    change_plan(root, lambda runs: runs.update({spec.run_id: runs.pop(before)}))


def fix_a_better_rate(root: Path) -> None:
    """As if the config had fixed it, of one run."""
    before = first(root).path.name
    hparams = {**read_spec(first(root)).hparams, "lr": 0.5}
    spec = change_spec(first(root), hparams=hparams, fixed_hparams={"lr": 0.5})
    change_plan(root, lambda runs: runs.update({spec.run_id: runs.pop(before)}))


def keep_the_better_draw(root: Path) -> None:
    """The plan calls it the first."""
    forget(root, lambda spec: spec.hparams_seed == 0)
    change_plan(root, lambda runs: [run.update(hparams_seed=0) for run in runs.values()])


def add_shorter_runs(root: Path) -> None:
    """All runs of a method again, with other settings: tables would take the better one."""
    for folder in Store(root).run_folders():
        if read_spec(folder).algorithm == "CORAL":
            again = RunFolder(shutil.copytree(folder.path, root / "again"))
            change_records(again, lambda record: None, last=2)
            spec = change_spec(again, steps=3)
            change_plan(root, lambda runs, spec=spec: runs.update({spec.run_id: spec.planned()}))


def hide_from_the_plan(root: Path) -> None:
    change_plan(root, lambda runs: runs.pop(first(root).path.name))


def tell_other_draws(root: Path) -> None:
    """Records say that the hyper-parameters were others."""
    change_records(first(root), lambda record: record["hparams"].update(lr=0.5))


def drop_a_record(root: Path) -> None:
    change_records(first(root), lambda record: None, last=-1)


def change_data(root: Path) -> None:
    facts = first(root).read_json(first(root).environment)
    facts["data"]["digest"] = "0" * 64
    first(root).environment.write_text(sealed_json(facts))


def lose(root: Path) -> None:
    shutil.rmtree(first(root).path)


@pytest.mark.parametrize(
    ("change", "noticed"),
    [
        (take_a_better_rate, {"hyper-parameters"}),
        (fix_a_better_rate, {"protocol"}),
        (keep_the_better_draw, {"seeds"}),
        (add_shorter_runs, {"seeds", "protocol"}),
        (lambda root: forget(root, lambda spec: spec.test_envs == (2,)), {"seeds"}),
        (lambda root: forget(root, is_one_of_coral), {"seeds"}),
        (hide_from_the_plan, {"runs done"}),
        (tell_other_draws, {"records"}),
        (drop_a_record, {"records"}),
        (change_data, {"data of Penguins"}),
        (lose, {"runs done", "seeds"}),
    ],
)
def test_each_change_is_noticed(
    sweep: Path, tmp_path: Path, change: Callable[[Path], None], noticed: set[str]
) -> None:
    copy = Path(shutil.copytree(sweep, tmp_path / "copy"))
    change(copy)
    found = checks_of(copy, tmp_path)
    assert {each.what for each in found.values() if not each.stands} == noticed, found


@pytest.mark.parametrize("step", [0, 3])
def test_better_numbers_are_noticed_when_run_again(sweep: Path, tmp_path: Path, step: int) -> None:
    """Of one split and step alone, which a selection method might choose."""

    def improve(record: dict[str, Any]) -> None:
        if record["step"] == step:
            key = f"env{record['args']['test_envs'][0]}_in_acc"
            record[key] = (record[key] + 0.5) % 1

    copy = Path(shutil.copytree(sweep, tmp_path / "copy"))
    for folder in Store(copy).run_folders():
        change_records(folder, improve)
    found = checks_of(copy, tmp_path, rerun=1)
    assert [each.what[:6] for each in found.values() if not each.stands] == ["again:"]


def test_records_within_the_tolerance_are_the_same_run() -> None:
    before = [
        {"step": step, "env0_in_acc": 0.5, "env1_in_acc": 0.5, "loss": 1.0, "step_time": 1.0}
        for step in (0, 3)
    ]
    assert difference(before, [before[0], {**before[1], "step_time": 2.0}])[1]
    for n, (accuracies, stands) in enumerate(
        [
            ((0.5 + TOLERANCE - 0.001,) * 2, True),
            ((0.5 + TOLERANCE + 0.001,) * 2, False),
            ((0.5 + OF_ONE - 0.001, 0.5 - OF_ONE + 0.001), True),
            ((0.5 + OF_ONE + 0.001, 0.5 - OF_ONE - 0.001), False),
        ]
    ):
        changed = dict(zip(("env0_in_acc", "env1_in_acc"), accuracies))
        for now in ([{**before[0], **changed}, before[1]], [before[0], {**before[1], **changed}]):
            assert difference(before, now)[1] is stands, n
    for wrong in ({"step": 2}, {"env2_in_acc": 1.0}):
        assert not difference(before, [before[0], {**before[1], **wrong}])[1]
    mass = [{"step": 0, "env0_in_rmse": 500.0}]
    assert difference(mass, [{"step": 0, "env0_in_rmse": 505.0}])[1]
    assert not difference(mass, [{"step": 0, "env0_in_rmse": 450.0}])[1]


def test_the_leaderboard_shows_every_method_with_its_uncertainty(
    sweep: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("domainbed.sweeps.leaderboard.MANY", 0)
    with pytest.raises(SystemExit) as exit:
        main(["leaderboard", str(sweep), "-o", str(tmp_path / "site")])
    assert exit.value.code == 0, capsys.readouterr().err
    page = (tmp_path / "site" / "index.html").read_text()
    assert "no two methods can be told apart" in page
    assert "Of 1 intervals at 95 % about 0 leave out zero by chance alone." in page
    assert "provisional" not in page
    assert page.count('data-algorithm="CORAL"') >= 1
    assert "arXiv 1607.01719" in page
    assert "default-src 'none'" in page  # so a browser fetches nothing


def halve(record: dict[str, Any]) -> None:
    record.update({name: v / 2 for name, v in record.items() if name.endswith("_acc")})


def test_ci_checks_what_is_submitted(sweep: Path, tmp_path: Path) -> None:
    """One that stands passes; numbers that no run gives fail."""
    folder, copy = tmp_path / "submissions", Path(shutil.copytree(sweep, tmp_path / "copy"))
    for each in Store(copy).run_folders():
        change_records(each, halve)
    for root, name in ((sweep, "good"), (copy, "bad")):
        checks_of(root, make(folder / name))
    command = [sys.executable, str(ROOT / ".ci" / "check_submissions.py"), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == f"do not stand: {folder}/bad/sweep.parquet"
    assert done.stdout.count("the same, bit for bit") == 3
    assert done.stdout.count("NO  again: ") == 3
    assert done.stdout.count("data of Penguins") == 2  # once in each file
