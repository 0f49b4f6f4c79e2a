"""Runs of several stages count as one record each, in this project's and in DomainBed's form."""

from __future__ import annotations

import json
import logging

import pytest
from fake_sweep import DOMAINS, write

from domainbed.errors import UserError
from domainbed.reporting import load_records
from domainbed.selection import SELECTION_METHODS

PACS, STEPS = DOMAINS["PACS"], 21


def args_of(test_envs, hparams_seed=0, trial_seed=0, **more):
    return {
        **{"algorithm": "ERMPlusPlus", "dataset": "PACS", "test_envs": test_envs},
        **{"hparams_seed": hparams_seed, "trial_seed": trial_seed, "steps": STEPS},
        **{"output_dir": "/somewhere", "holdout_fraction": 0.2, **more},
    }


def first(step, base, args):
    """A record of the first stage: out-splits at `base`, in-splits at 0.1."""
    found = {f"env{i}_in_acc": 0.1 for i in range(PACS)}
    found |= {f"env{i}_out_acc": base + i / 100 for i in range(PACS)}
    return {"args": args, "hparams": {"lr": 1e-3}, "step": step, "stage": 1, "loss": 0.9, **found}


def second(step, base, args):
    """A record of the second: every domain at `base` and a hundredth of its number."""
    found = {f"fd_env{i}_in_acc": base + i / 100 for i in range(PACS)}
    return {"args": args, "hparams": {"lr": 1e-3}, "step": step, "stage": 2, "loss": 0.3, **found}


def own_run(test_envs, ends=20, base=0.5, **keys):
    args = args_of(test_envs, stages=2, **keys)
    ours = [first(step, base + step / 100, args) for step in (0, 10, ends)]
    return ours + [second(step, base + 0.1 + step / 100, args) for step in (0, 10, ends)]


def of_domainbed(run):
    """The same without a word on stages, and with another fraction in the second's args."""
    lines = []
    for record in run:
        of_second = record["stage"] == 2
        args = {**record["args"], "holdout_fraction": 0.0 if of_second else 0.2}
        del args["stages"]
        lines.append({**record, "args": args, "lr": 1e-4})
        del lines[-1]["stage"]
    return lines


@pytest.mark.parametrize("form", [lambda run: run, of_domainbed], ids=["own", "DomainBed"])
def test_the_last_records_of_both_stages_are_one(tmp_path, form):
    write(tmp_path, [form(own_run([1], ends=15))], done=True)
    records = load_records(tmp_path)
    assert len(records) == len(records.runs) == 1
    run = records.runs.iloc[0]
    assert (run["num_domains"], run["last_step"], run["args"]["holdout_fraction"]) == (4, 20, 0.2)
    table = records.table
    assert table.out_split[0] == pytest.approx([0.65, 0.66, 0.67, 0.68])
    assert table.in_split[0] == pytest.approx([0.75, 0.76, 0.77, 0.78])
    values = records.values.set_index("metric")["value"]
    assert values["loss"] == 0.3
    assert not {"stage"} & set(values.index)


def test_training_domains_validate_and_the_second_model_counts(tmp_path):
    """The seed with the better last out-splits is chosen, though the other's results are better."""
    runs = [own_run([1], base=0.3, hparams_seed=0), own_run([1], base=0.5, hparams_seed=1)]
    runs[0][-1] |= {f"fd_env{i}_in_acc": 0.9 for i in range(PACS)}
    write(tmp_path, runs, done=True)
    records = load_records(tmp_path)
    chosen = SELECTION_METHODS["training-domain"].select(records).iloc[0]
    assert chosen["hparams_seed"] == 1
    assert chosen["val"] == pytest.approx((0.70 + 0.72 + 0.73) / 3)
    assert chosen["test"] == pytest.approx(0.81)
    oracle = SELECTION_METHODS["oracle"].select(records).iloc[0]
    assert oracle["val"] == pytest.approx(0.71)


def test_leave_one_domain_out_compares_the_ends_of_runs(tmp_path):
    """Stages end at steps of their own."""
    pairs = [own_run(sorted([1, d]), ends=11 + d) for d in (0, 2, 3)]
    write(tmp_path, [own_run([1], ends=20), *pairs], done=True)
    chosen = SELECTION_METHODS["leave-one-domain-out"].select(load_records(tmp_path)).iloc[0]
    held_out = [0.6 + (11 + d) / 100 + d / 100 for d in (0, 2, 3)]
    assert chosen["val"] == pytest.approx(sum(held_out) / 3)
    assert chosen["test"] == pytest.approx(0.81)


def test_a_run_in_its_first_stage_has_no_record_yet(tmp_path):
    write(tmp_path, [own_run([1])[:3]])
    with pytest.raises(UserError, match="no complete record"):
        load_records(tmp_path)
    write(tmp_path, [own_run([2], base=0.4)[:4]], seed=1)
    records = load_records(tmp_path)
    assert records.runs["test_envs"].tolist() == [(2,)]
    assert records.table.in_split[0, 2] == pytest.approx(0.52)


def test_a_run_of_another_method_in_the_same_file_stays_as_it_is(tmp_path):
    """Two runs one after the other; the steps of the plain one are all there."""
    plain = [
        {k: v for k, v in record.items() if k != "stage"}
        for record in (first(s, 0.2, args_of([1], hparams_seed=9)) for s in (0, 10, 20))
    ]
    write(tmp_path, [own_run([1]) + plain], done=True)
    records = load_records(tmp_path)
    assert records.runs["num_records"].tolist() == [1, 3]


def test_two_whole_runs_in_one_file_are_told_as_one_twice(tmp_path, caplog):
    write(tmp_path, [own_run([1]) * 2], done=True)
    with caplog.at_level(logging.WARNING):
        assert len(load_records(tmp_path)) == 2
    assert "1 records are there twice" in caplog.text


@pytest.mark.parametrize("line", ["3", '{"stage": 1}', '{"stage": 2, "args": 5}'])
def test_damage_is_named_as_ever(tmp_path, line):
    folder = write(tmp_path, [own_run([1])], done=True)[0]
    (folder / "done").write_text("done")  # without a digest, which would notice it before
    with (folder / "results.jsonl").open("a") as stream:
        stream.write(line + "\n")
    with pytest.raises(UserError, match=r"results\.jsonl, line \d"):
        load_records(tmp_path)


def test_a_metric_that_is_called_stage_is_no_stage(tmp_path):
    """Of an algorithm of DomainBed's, which may report what it likes."""
    args = args_of([1])
    run = [{**first(step, 0.5, args), "stage": 1.5} for step in (0, 10)]
    folder = write(tmp_path, [run], done=True)[0]
    assert json.loads((folder / "results.jsonl").read_text().splitlines()[0])["stage"] == 1.5
    assert len(load_records(tmp_path)) == 2
