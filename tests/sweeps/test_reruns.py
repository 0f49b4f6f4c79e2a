"""New trials of what selection chose: which runs they are, and how tables call them."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "training"))
from vectors import Vectors

from domainbed import cli
from domainbed.core.names import rerun_algorithm, trained_algorithm
from domainbed.datasets import DATASETS
from domainbed.errors import UserError
from domainbed.reporting import load_records
from domainbed.selection import SELECTION_METHODS
from domainbed.spec import RunSpec
from domainbed.sweeps.config import SweepConfig
from domainbed.sweeps.launch import prepare
from domainbed.sweeps.selected import prepare_reruns, rerun_methods

ORACLE, PAIRS = SELECTION_METHODS["oracle"], SELECTION_METHODS["leave-one-domain-out"]


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(DATASETS._entries, "Vectors", Vectors)


def config(root: Path, **fields: Any) -> SweepConfig:
    """Three hparams seeds and two trials of one test domain."""
    given: dict[str, Any] = {
        **{"datasets": ("Vectors",), "algorithms": ("ERM",), "test_envs": ((2,),)},
        **{"trials": (0, 1), "hparams_seeds": (0, 1, 2), "steps": 4, "checkpoint_freq": 2},
        **{"output_dir": str(root), "device": "cpu", "launcher": {"name": "debug"}},
        **{"selection": ("oracle",), "keep": "none", "hparams": {"batch_size": 4}},
    }
    return SweepConfig(**{**given, **fields})


def command(*words: object) -> int:
    return cli.run(["sweep", *map(str, words)])


def test_what_was_chosen_runs_with_new_trials(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prepare(config(tmp_path)).execute()
    searched = load_records(tmp_path)
    chosen = ORACLE.select(searched).sort_values(["val", "trial_seed"], ascending=[False, True])
    best = chosen.iloc[0]
    flags = ("--trials", 3, "--selection", "oracle", "--skip_confirmation")
    assert command("rerun-best", tmp_path, *flags, "--dry_run") == 0
    assert "3 runs, 0 done" in capsys.readouterr().out
    assert command("rerun-best", tmp_path, *flags) == 0
    folder = tmp_path / "rerun-oracle"
    found = load_records(folder)
    assert sorted(found.runs["trial_seed"]) == [2, 3, 4]
    assert set(found.runs["hparams_seed"]) == {best["hparams_seed"]}
    assert set(found.runs["algorithm"]) == {"ERM (rerun: oracle)"}
    same = (searched.runs["trial_seed"] == best["trial_seed"]) & (
        searched.runs["hparams_seed"] == best["hparams_seed"]
    )
    (hparams,) = searched.runs.loc[same, "hparams"]
    assert all(each == hparams for each in found.runs["hparams"])
    assert len({args["seed"] for args in found.runs["args"]}) == 3
    # The search's own tables know nothing of them; beside each other they stay apart.
    assert len(load_records(tmp_path).runs) == 6
    both = load_records([tmp_path, folder])
    assert len(ORACLE.select(both)) == 2 + 3
    # Again: nothing is left to do, and the choice is the same.
    capsys.readouterr()
    assert command("rerun-best", tmp_path, *flags) == 0
    assert "3 runs, 3 done, 0 failed, 0 running; 0 to do" in capsys.readouterr().out
    assert command("status", folder, "--json") == 0
    assert json.loads(capsys.readouterr().out)["total"]["done"] == 3
    for action in ("launch", "retry", "plan"):
        with pytest.raises(UserError, match=r"with the same --trials, resumes them"):
            command(action, folder)


def test_of_an_unfinished_sweep_nothing_is_chosen(tmp_path: Path) -> None:
    launch = prepare(config(tmp_path))
    launch.store.write_plan(launch.config, launch.planned)
    one = config(tmp_path, hparams_seeds=(0,), trials=(0,))
    prepare(one).execute()
    with pytest.raises(UserError, match=r"5 of the 6 runs in .* are not done: new trials"):
        prepare_reruns(one, ORACLE, 2)


def test_methods(tmp_path: Path) -> None:
    wanted = config(tmp_path, selection=("oracle", PAIRS.name))
    assert rerun_methods(wanted) == [ORACLE]
    with pytest.raises(UserError, match="leave-one-domain-out chooses with runs on pairs"):
        rerun_methods(wanted, [PAIRS.name])
    with pytest.raises(UserError, match="leave-one-domain-out chooses with runs on pairs"):
        rerun_methods(config(tmp_path, selection=(PAIRS.name,)))
    with pytest.raises(UserError, match="unknown selection method 'orcale'"):
        rerun_methods(wanted, ["orcale"])
    with pytest.raises(UserError, match="--trials 0: expected a whole number from 1 on"):
        command("rerun-best", tmp_path, "--trials", 0)


def test_a_rerun_is_another_run_and_says_so() -> None:
    spec = RunSpec.create("ColoredDigits", "ERM", [0])
    rerun = spec.model_copy(update={"rerun": "oracle"})
    assert "rerun" not in {**spec.as_json(), **spec.identity()}
    assert rerun.as_json()["rerun"] == rerun.identity()["rerun"] == "oracle"
    assert rerun.run_id != spec.run_id
    name = rerun_algorithm("ERM + SWAD", "oracle")
    assert name == "ERM + SWAD (rerun: oracle)"
    assert trained_algorithm(name) == "ERM"
