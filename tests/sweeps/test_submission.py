"""What is submitted, and the leaderboard of it: a real sweep stands, and each change is noticed."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from domainbed.cli import main
from domainbed.core.files import sealed_json
from domainbed.errors import UserError
from domainbed.runs.exported import write_export
from domainbed.runs.folder import RunFolder
from domainbed.sweeps.config import load_config
from domainbed.sweeps.launch import prepare
from domainbed.sweeps.store import Store
from domainbed.sweeps.submission import TOLERANCE, Check, check, difference

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


def checks_of(root: Path, tmp_path: Path, rerun: int = 0) -> dict[str, Check]:
    file = tmp_path / "sweep.parquet"
    write_export(root, [folder.path for folder in Store(root).run_folders()], file)
    return {each.what: each for each in check(file, rerun)}


def test_a_sweep_stands_and_is_the_same_when_run_again(sweep: Path, tmp_path: Path) -> None:
    found = checks_of(sweep, tmp_path, rerun=2)
    assert all(each.stands for each in found.values()), found
    assert found["runs done"].found == "24 of 24 planned"
    assert found["seeds"].found == "2 methods on datasets, 2 draws, 2 trials each"
    again = [each.found for each in found.values() if each.what.startswith("again: ")]
    assert again == ["the same, bit for bit"] * 2


def test_a_wrong_count_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--rerun is -1: expected 0 or more runs"):
        check(tmp_path / "sweep.parquet", rerun=-1)


def change_rate(folder: RunFolder) -> None:
    spec = folder.read_json(folder.spec)
    spec["hparams"]["lr"] *= 2
    folder.spec.write_text(sealed_json(spec))


def drop_a_record(folder: RunFolder) -> None:
    *lines, _ = folder.results.read_text().splitlines(keepends=True)
    folder.results.write_text("".join(lines))
    folder.mark_done("".join(lines))


def change_data(folder: RunFolder) -> None:
    facts = folder.read_json(folder.environment)
    facts["data"]["digest"] = "0" * 64
    folder.environment.write_text(sealed_json(facts))


def lose(folder: RunFolder) -> None:
    shutil.rmtree(folder.path)


@pytest.mark.parametrize(
    ("change", "noticed"),
    [
        (change_rate, {"hyper-parameters"}),
        (drop_a_record, {"records"}),
        (change_data, {"data of Penguins"}),
        (lose, {"runs done"}),
    ],
)
def test_each_change_is_noticed(
    sweep: Path, tmp_path: Path, change: Callable[[RunFolder], None], noticed: set[str]
) -> None:
    copy = shutil.copytree(sweep, tmp_path / "copy")
    change(Store(copy).run_folders()[0])
    found = checks_of(copy, tmp_path)
    assert {each.what for each in found.values() if not each.stands} == noticed


def test_records_within_the_tolerance_are_the_same_run() -> None:
    before = [{"step": 3, "env0_in_acc": 0.5, "loss": 1.0, "step_time": 1.0, "args": {}}]
    assert difference(before, [{**before[0], "step_time": 2.0}]) == ("the same, bit for bit", True)
    for change, stands in ((TOLERANCE - 0.001, True), (TOLERANCE + 0.001, False)):
        assert difference(before, [{**before[0], "env0_in_acc": 0.5 + change}])[1] is stands
    assert difference(before, [{**before[0], "step": 2}]) == ("records of other steps", False)


def test_the_leaderboard_shows_every_method_with_its_uncertainty(
    sweep: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit:
        main(["leaderboard", str(sweep), "-o", str(tmp_path / "site")])
    assert exit.value.code == 0, capsys.readouterr().err
    page = (tmp_path / "site" / "index.html").read_text()
    assert "no two methods can be told apart" in page
    assert page.count('data-algorithm="CORAL"') >= 1
    assert "arXiv 1607.01719" in page
    assert "default-src 'none'" in page  # so a browser fetches nothing
