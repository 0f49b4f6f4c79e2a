"""Tables of runs that leave out what no selection method reads, beside those of all splits."""

from __future__ import annotations

import itertools
import json
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from pandas.testing import assert_frame_equal

from domainbed.algorithms import ERM
from domainbed.core.names import record_key
from domainbed.errors import UserError
from domainbed.reporting import collect, load_records, to_frame
from domainbed.reporting.single_source import single_source_report
from domainbed.runs.folder import RunFolder
from domainbed.selection import PUBLISHED_METHODS, mean_over_others
from domainbed.spec import RunSpec
from domainbed.sweeps.config import load_config
from domainbed.sweeps.launch import prepare
from domainbed.training.evaluation import EvaluationSplit, Evaluator, RecordedSplits, Value
from domainbed.training.sampling import Split
from domainbed.training.trainer import RunOptions, run

EARLY = ["training-domain", "oracle"]
STEPS = (0, 10, 20, 30, 40, 45)

Accuracies = dict[tuple[int, str], float]


def recorded_splits(
    eval_splits: str, test_envs: tuple[int, ...], domains: int, last: int, metric: str = "accuracy"
) -> RecordedSplits:
    spec: Any = SimpleNamespace(eval_splits=eval_splits, test_envs=test_envs, steps=STEPS[-1] + 1)
    train_envs = [e for e in range(domains) if e not in test_envs]
    return RecordedSplits(spec, SimpleAlgorithm(), train_envs, False, last, metric)


class SimpleAlgorithm(ERM):
    def __init__(self) -> None:
        pass


def measured(eval_splits: str, test_envs: tuple[int, ...], records: list[Accuracies]) -> list[Any]:
    """The values of each record, and how many splits were evaluated for them."""
    domains = len(records[0]) // 2
    recorded = recorded_splits(eval_splits, test_envs, domains, STEPS[-1])
    found = []
    for step, accuracies in zip(STEPS, records, strict=True):
        evaluated: list[EvaluationSplit] = []

        def evaluate(
            splits: list[EvaluationSplit], seen: Any = evaluated, known: Any = accuracies
        ) -> list[Value]:
            seen += splits
            return [Value(s.domain, s.name, "accuracy", known[s.domain, s.name]) for s in splits]

        values = recorded.measure([Split([0], [1, 2], [])] * domains, step, evaluate)
        found.append((values, evaluated))
    return found


def write_sweep(root: Path, eval_splits: str, domains: int, levels: int, seed: int) -> None:
    """Runs on single domains, pairs and all but one, of random accuracies with many ties."""
    rng = random.Random(seed)
    sets = [(e,) for e in range(domains)] + list(itertools.combinations(range(domains), 2))
    if domains > 3:
        sets += itertools.combinations(range(domains), domains - 1)
    for number, (envs, hparams_seed, trial) in enumerate(
        itertools.product(sets, range(2), range(2))
    ):
        records = [
            {
                (e, split): rng.randrange(levels + 1) / levels
                for e in range(domains)
                for split in ("in", "out")
            }
            for _ in STEPS
        ]
        args = {"dataset": "Birds", "algorithm": "ERM", "test_envs": list(envs)}
        args |= {"hparams_seed": hparams_seed, "trial_seed": trial, "eval_splits": eval_splits}
        lines = []
        for step, (values, _) in zip(STEPS, measured(eval_splits, envs, records), strict=True):
            accuracies = {
                record_key(v.domain, v.split, v.metric): None if np.isnan(v.value) else v.value
                for v in values
            }
            lines.append(json.dumps({"step": step, "args": args, "hparams": {}, **accuracies}))
        folder = root / f"{number:03d}"
        folder.mkdir(parents=True)
        (folder / "results.jsonl").write_text("\n".join(lines) + "\n")


def tables(root: Path, selection: list[str] | None = None) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Those of the sweep, and those of its runs that train on one domain."""
    single = single_source_report(load_records(root), EARLY)
    return collect(root, selection), to_frame(single)


@pytest.mark.parametrize(("domains", "levels"), [(3, 2), (3, 1000), (5, 4)])
def test_tables_are_those_of_all_splits(domains: int, levels: int, tmp_path: Path) -> None:
    for eval_splits in ("all", "needed", "selection", "best"):
        write_sweep(tmp_path / eval_splits, eval_splits, domains, levels, seed=domains + levels)
    everything = tables(tmp_path / "all")
    assert everything[0]["mean"].notna().all()
    assert set(everything[0]["selection"]) == set(PUBLISHED_METHODS)
    for eval_splits in ("needed", "selection"):
        for ours, theirs in zip(tables(tmp_path / eval_splits), everything, strict=True):
            assert_frame_equal(ours, theirs, check_exact=True)
    early = [collect(tmp_path / "all", EARLY), everything[1]]
    for ours, theirs in zip(tables(tmp_path / "best", EARLY), early, strict=True):
        assert_frame_equal(ours, theirs, check_exact=True)
    # What other runs decide on was not measured: no number, rather than one of chosen steps.
    assert collect(tmp_path / "best", ["leave-one-domain-out"])["mean"].isna().all()


def test_what_is_evaluated() -> None:
    def sizes(eval_splits: str, test_envs: tuple[int, ...], outs: list[float]) -> list[int]:
        records = [
            {(e, s): out if s == "out" else 0.5 for e in range(4) for s in ("in", "out")}
            for out in outs
        ]
        return [len(splits) for _, splits in measured(eval_splits, test_envs, records)]

    outs = [0.3, 0.3, 0.5, 0.4, 0.5, 0.1]
    assert sizes("all", (1,), outs) == [8] * 6
    assert sizes("needed", (1,), outs) == [5] * 5 + [8]
    assert sizes("selection", (1,), outs) == [4] * 5 + [8]
    assert sizes("best", (1,), outs) == [4, 3, 4, 3, 3, 8]
    assert sizes("needed", (1, 2), outs) == [6] * 5 + [8]
    assert sizes("selection", (1, 2), outs) == [2] * 5 + [8]
    assert sizes("selection", (0, 1, 2), outs) == [4, 1, 4, 1, 1, 8]


def test_the_mean_is_that_of_selection_to_the_last_bit() -> None:
    rng = np.random.default_rng(0)
    for domains in (2, 3, 5, 9, 12, 40):
        out = rng.random((50, domains))
        keys = pd.DataFrame({"test_env": [1] * 50, "num_domains": [domains] * 50})
        theirs = mean_over_others(out, keys)
        for row, mean in zip(out, theirs, strict=True):
            recorded = recorded_splits("best", (1,), domains, 9)
            recorded._is_best("", [value for e, value in enumerate(row.tolist()) if e != 1])
            assert recorded._best[""] == mean


def test_lower_may_be_better_and_no_value_is_worst() -> None:
    """Whether a record's test domain is read, by the validation of a metric, record by record."""

    def read(metric: str, values: list[float]) -> list[bool]:
        recorded = recorded_splits("best", (1,), 2, 99, metric)
        found = [recorded._is_best("", [value]) for value in values]
        again = recorded_splits("best", (1,), 2, 99, metric)
        key = record_key(0, "out", metric)
        lines = [json.dumps({key: None if np.isnan(v) else v}) for v in values]
        again.restore(lines, [])
        assert str(again._best) == str(recorded._best)  # NaN equals no number
        return found

    nan = float("nan")
    assert read("rmse", [3, 4, 2, 2, 1, 1.5]) == [True, False, True, False, True, False]
    assert read("auroc", [3, 4, 2, 4, 5]) == [True, True, False, False, True]
    assert read("auroc", [nan, nan, 0.1, nan, 0.05, 0.2]) == [True, False, True, False, False, True]


def real(eval_splits: str, **changes: Any) -> RunSpec:
    fields = {"test_envs": [1], "steps": 18, "checkpoint_freq": 3, **changes}
    hparams = {"batch_size": 8, "lr": 0.01, **fields.pop("hparams", {})}
    algorithm = fields.pop("algorithm", "ERM")
    return RunSpec.create(
        "ColoredDigits", algorithm, eval_splits=eval_splits, hparams=hparams, **fields
    )


def records_of(folder: Path) -> list[dict[str, Any]]:
    """All records but for timings, the folder's own path and what was asked to be evaluated."""
    found = [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]
    for record in found:
        del record["step_time"], record["args"]["output_dir"]
        del record["args"]["run_id"], record["args"]["eval_splits"]
    return found


def test_real_sweeps_have_the_same_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images: list[int] = []
    evaluate = Evaluator.evaluate

    def counting(self: Evaluator, algorithm: Any, splits: Any, *others: Any) -> list[Value]:
        images[-1] += sum(len(split.indices) for split in splits)
        return evaluate(self, algorithm, splits, *others)

    monkeypatch.setattr(Evaluator, "evaluate", counting)
    frames = {}
    for eval_splits in ("all", "selection"):
        images.append(0)
        fields = {
            "datasets": ["ColoredDigits"],
            "algorithms": ["ERM"],
            "test_envs": [[1], [0, 1], [1, 2]],
            **{"trials": 1, "hparams_seeds": 1, "steps": 6, "checkpoint_freq": 2},
            **{"hparams": {"batch_size": 8}, "launcher": "debug", "skip_model_save": True},
            **{"output_dir": str(tmp_path / eval_splits), "eval_splits": eval_splits},
        }
        prepare(load_config(None, fields)).execute()
        frames[eval_splits] = tables(tmp_path / eval_splits)
    for ours, theirs in zip(frames["selection"], frames["all"], strict=True):
        assert_frame_equal(ours, theirs, check_exact=True)
    chosen = frames["all"][0][frames["all"][0]["test_env"] == "1"]
    assert len(chosen) == 3
    assert chosen["mean"].notna().all()
    assert images[1] < 0.7 * images[0]


def test_records_have_the_values_of_needed_or_null(tmp_path: Path) -> None:
    for name in ("needed", "best"):
        run(real(name), tmp_path / name, RunOptions(skip_model_save=True))
    needed, best = (records_of(tmp_path / name) for name in ("needed", "best"))
    highest, left_out = -1.0, 0
    for ours, theirs in zip(best, needed, strict=True):
        assert ours.keys() == theirs.keys()
        null = {key for key, value in ours.items() if value is None}
        assert {k: v for k, v in ours.items() if k not in null} == {
            k: v for k, v in theirs.items() if k not in null
        }
        v = float(np.mean([theirs["env0_out_acc"], theirs["env2_out_acc"]]))
        tests = {"env1_in_acc", "env1_out_acc"}
        expected = {"env1_out_acc"} if v > highest else tests
        assert null == (set() if ours["step"] == 17 else expected)
        highest, left_out = max(v, highest), left_out + len(null)
    assert left_out > len(best)  # some in-splits, too
    assert " - " in (tmp_path / "best" / "out.txt").read_text()


class Killed(BaseException):
    """Stands for a kill at a moment that a test chooses."""


def test_a_killed_run_goes_on_with_the_highest_so_far(tmp_path: Path) -> None:
    spec = real("best", averages=["ema"])
    run(spec, tmp_path / "whole")

    def on_step(taken: int) -> None:
        if taken in (8, 14):
            raise Killed

    for _ in range(2):
        with pytest.raises(Killed):
            run(spec, tmp_path / "pieces", on_step=on_step)
    run(spec, tmp_path / "pieces")
    whole = records_of(tmp_path / "whole")
    assert records_of(tmp_path / "pieces") == whole
    for key in ("env1_in_acc", "ema_env1_in_acc"):  # each is compared with its own
        assert 0 < sum(record[key] is None for record in whole) < len(whole)


def test_runs_that_end_themselves_evaluate_what_is_needed(tmp_path: Path) -> None:
    hparams = {"linear_steps": 1, "sma_start": 2}
    few = {"algorithm": "ERMPlusPlus", "hparams": hparams, "steps": 3}
    for name in ("needed", "best"):
        run(real(name, **few), RunFolder(tmp_path / name))
    assert records_of(tmp_path / "best") == records_of(tmp_path / "needed")


def sweep(**fields: Any) -> Any:
    tiny = {"datasets": ["ColoredDigits"], "algorithms": ["ERM"], "trials": 1, "hparams_seeds": 1}
    return load_config(None, {**tiny, **fields})


def test_a_sweep_evaluates_what_its_methods_read() -> None:
    every = sweep(eval_splits="selection").plan()
    assert {run.eval_splits for run in every} == {"selection"}
    early = sweep(eval_splits="selection", selection=EARLY).plan()
    assert {run.eval_splits for run in early} == {"best"}
    with pytest.raises(UserError, match="eval_splits is 'best', but leave-one-domain-out reads"):
        sweep(eval_splits="best")


def test_the_weights_that_selection_would_choose_are_kept(tmp_path: Path) -> None:
    kept = {}
    for name in ("all", "best"):
        options = RunOptions(keep="selected", selection=("training-domain",))
        run(real(name), tmp_path / name, options)
        kept[name] = sorted(file.name for file in (tmp_path / name).glob("model_step*.pkl"))
    assert kept["best"] == kept["all"]
