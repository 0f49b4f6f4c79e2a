"""The selection methods against plain loops over lists of records, and on cases done by hand."""

import collections
import copy
import itertools
import random
import subprocess
import sys
from dataclasses import replace
from functools import partial

import numpy as np
import pandas as pd
import pytest

from domainbed.core.names import parse_record_key
from domainbed.errors import UserError
from domainbed.runs.records import RUN_KEYS, Records
from domainbed.selection import (
    CELL_KEYS,
    PUBLISHED_METHODS,
    SELECTION_METHODS,
    SelectionMethod,
)

ALL = [name for name in SELECTION_METHODS if name not in ("worst-group", "worst-class")]


def record(test_envs, step, in_acc, out_acc, hparams_seed=0, trial_seed=0, algorithm="ERM"):
    row = {"dataset": "D", "algorithm": algorithm, "test_envs": tuple(test_envs), "step": step}
    row |= {"hparams_seed": hparams_seed, "trial_seed": trial_seed}
    row |= {f"env{i}_in_acc": acc for i, acc in enumerate(in_acc) if acc is not None}
    return row | {f"env{i}_out_acc": acc for i, acc in enumerate(out_acc)}


def random_records(seed, domains=4, levels=4, p_missing=0.15):
    """Runs on single domains and pairs with gaps; few levels of accuracy, so many ties."""
    rng = random.Random(seed)
    envs = [[i] for i in range(domains)] + [
        rng.sample(pair, 2) for pair in itertools.combinations(range(domains), 2)
    ]
    runs = []
    for test_envs, hparams_seed, trial_seed, algorithm in itertools.product(
        envs, range(3), range(2), ("ERM", "IRM")
    ):
        steps = [0, 5, 10, 12][: rng.choice([4, 4, 4, 2])]
        rows = [
            record(
                test_envs, step,
                [rng.randrange(levels) / levels for _ in range(domains)],
                [rng.randrange(levels) / levels for _ in range(domains)],
                hparams_seed, trial_seed, algorithm,
            )
            for step in steps
        ]  # fmt: skip
        if rng.random() > p_missing:
            runs.append(rows)
    rng.shuffle(runs)
    return [row for rows in runs for row in rows]


def as_records(rows):
    """Rows as `Records`: a run for each set of seeds, and another where a step is there again."""
    runs, values, seen = {}, [], collections.Counter()
    for row in rows:
        key = tuple(row[name] for name in RUN_KEYS)
        seen[key, row["step"]] += 1
        run = runs.setdefault((key, seen[key, row["step"]]), {"number": len(runs)})
        accs = {k: v for name, v in row.items() if (k := parse_record_key(name))}
        run |= dict(zip(RUN_KEYS, key, strict=True)) | {
            "num_records": run.get("num_records", 0) + 1
        }
        run["num_domains"] = sum(split == "out" for _, split, _ in accs)
        values += [(run["number"], row["step"], *k, float(v)) for k, v in accs.items()]
    columns = ["run", "step", "domain", "split", "metric", "value"]
    return Records(pd.DataFrame(list(runs.values())), pd.DataFrame(values, columns=columns))


def in_cell(row, cell):
    trial, _, algorithm, env = cell
    return (row["trial_seed"], row["algorithm"]) == (trial, algorithm) and env in row["test_envs"]


def naive_training_domain(rows, env, over_domains=np.mean):
    best = None
    for row in sorted((r for r in rows if len(r["test_envs"]) == 1), key=lambda r: r["step"]):
        others, i = [], 0
        while f"env{i}_out_acc" in row:
            if i != env:
                others.append(row[f"env{i}_out_acc"])
            i += 1
        val = over_domains(others)
        if best is None or val > best[0]:
            best = (val, row[f"env{env}_in_acc"], row["step"])
    return best


def naive_leave_one_domain_out(rows, env):
    best = None
    for step in sorted({row["step"] for row in rows}):
        at_step = [row for row in rows if row["step"] == step]
        single = [row for row in at_step if len(row["test_envs"]) == 1]
        if len(single) != 1:
            continue
        domains = 0
        while f"env{domains}_out_acc" in single[0]:
            domains += 1
        found = {}
        for row in at_step:
            for other in row["test_envs"]:
                if other != env:
                    found[other] = row[f"env{other}_in_acc"]
        if len(found) < domains - 1:
            continue
        val = np.sum([found[i] for i in range(domains) if i != env]) / (domains - 1)
        if best is None or val > best[0]:
            best = (val, single[0][f"env{env}_in_acc"], step)
    return best


def naive_oracle(rows, env):
    rows = sorted((r for r in rows if len(r["test_envs"]) == 1), key=lambda r: r["step"])
    if not rows:
        return None
    return rows[-1][f"env{env}_out_acc"], rows[-1][f"env{env}_in_acc"], rows[-1]["step"]


NAIVE = {
    "worst-domain": partial(naive_training_domain, over_domains=min),
    "training-domain": naive_training_domain,
    "leave-one-domain-out": naive_leave_one_domain_out,
    "oracle": naive_oracle,
}


def naive_ranking(rows, name):
    """For each cell the list of (val, seed, test, step), best first, of equals the highest seed."""
    cells = {
        (r["trial_seed"], r["dataset"], r["algorithm"], e) for r in rows for e in r["test_envs"]
    }
    ranking = {}
    for cell in cells:
        mine = [row for row in rows if in_cell(row, cell)]
        scores = []
        for seed in {row["hparams_seed"] for row in mine}:
            score = NAIVE[name]([r for r in mine if r["hparams_seed"] == seed], cell[3])
            if score is not None:
                scores.append((score[0], seed, score[1], score[2]))
        if scores:
            ranking[cell] = sorted(scores, reverse=True)
    return ranking


def as_dict(ranked):
    result = {}
    for row in ranked.to_dict("records"):
        score = (row["val"], row["hparams_seed"], row["test"], row["step"])
        result.setdefault(tuple(row[key] for key in CELL_KEYS), []).append(score)
    return result


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("seed", range(6))
def test_equals_plain_loops_to_the_last_bit(name, seed):
    levels = 3 if seed % 2 else 10**9
    rows = random_records(seed, domains=3 + seed % 2, levels=levels)
    method = SELECTION_METHODS[name]
    expected = naive_ranking(rows, name)
    assert as_dict(method.rank(as_records(rows))) == expected
    best = {cell: scores[:1] for cell, scores in expected.items()}
    assert as_dict(method.select(as_records(rows))) == best


@pytest.mark.parametrize("name", ALL)
def test_the_lower_value_is_chosen_where_it_is_the_better_one(name):
    """Of values with the opposite sign the same runs and steps are chosen, of equal ones too."""
    higher = as_records(random_records(7, levels=3))
    lower = replace(
        higher,
        values=higher.values.assign(metric="rmse", value=-higher.values["value"]),
        metric="rmse",
        selection_metric="rmse",
        lower_is_better=True,
    )
    expected = SELECTION_METHODS[name].rank(higher)
    expected[["val", "test"]] *= -1
    pd.testing.assert_frame_equal(SELECTION_METHODS[name].rank(lower), expected)


@pytest.mark.parametrize("name", ["training-domain", "leave-one-domain-out"])
@pytest.mark.parametrize("domains", [8, 9, 10, 12, 20])
def test_sums_as_numpy_sums_a_list_with_many_domains(name, domains):
    """From eight numbers on numpy adds pairwise, and only along contiguous memory."""
    rng = random.Random(domains)
    envs = [[i] for i in range(domains)] + list(itertools.combinations(range(domains), 2))
    rows = [
        record(e, step, *([rng.random() for _ in range(domains)] for _ in "io"))
        for e in envs
        for step in range(4)
    ]
    ranked = SELECTION_METHODS[name].rank(as_records(rows))
    assert as_dict(ranked) == naive_ranking(rows, name)


@pytest.mark.parametrize("name", ALL)
def test_order_of_folders_does_not_matter(name):
    rows = random_records(11, levels=3)
    shuffled = random.Random(0).sample(rows, len(rows))
    method = SELECTION_METHODS[name]
    pd.testing.assert_frame_equal(
        method.select(as_records(rows)), method.select(as_records(shuffled))
    )


@pytest.mark.parametrize("name", ALL)
def test_does_not_change_its_input(name):
    records = as_records(random_records(3))
    before = copy.deepcopy(records)
    SELECTION_METHODS[name].select(records)
    pd.testing.assert_frame_equal(records.runs, before.runs)
    pd.testing.assert_frame_equal(records.values, before.values)


@pytest.mark.parametrize("name", ALL)
def test_selects_the_same_from_some_of_the_runs(name):
    rows = random_records(5)
    records = as_records(rows)
    of_irm = records.only(records.runs["algorithm"] == "IRM")
    assert len(of_irm) == sum(row["algorithm"] == "IRM" for row in rows)
    method = SELECTION_METHODS[name]
    expected = method.select(as_records([row for row in rows if row["algorithm"] == "IRM"]))
    pd.testing.assert_frame_equal(method.select(of_irm), expected)


def test_training_domain_by_hand():
    rows = [
        record([0], 0, [0.1, 0, 0], [0.99, 0.5, 0.6]),  # val 0.55
        record([0], 10, [0.2, 0, 0], [0.0, 0.75, 0.75]),  # val 0.75: first of two
        record([0], 20, [0.3, 0, 0], [0.0, 0.5, 1.0]),  # val 0.75
        record([0, 1], 0, [0.9, 0.9, 0], [1, 1, 1]),  # a pair does not count
    ]
    choice = SELECTION_METHODS["training-domain"].select(as_records(rows))
    assert choice[["val", "test", "step"]].to_numpy().tolist() == [[0.75, 0.2, 10]]


def test_between_equal_seeds_the_highest_wins():
    rows = [record([1], 0, [0, seed / 10], [0.5, 0.5], hparams_seed=seed) for seed in (2, 7, 4)]
    for name in ("training-domain", "oracle"):
        choice = SELECTION_METHODS[name].select(as_records(rows))
        assert choice[["hparams_seed", "test"]].to_numpy().tolist() == [[7, 0.7]]


def test_oracle_looks_at_the_last_step_only():
    rows = [
        record([0], 20, [0.3, 0], [0.1, 0]),
        record([0], 10, [0.9, 0], [0.9, 0]),
    ]
    choice = SELECTION_METHODS["oracle"].select(as_records(rows))
    assert choice[["val", "test", "step"]].to_numpy().tolist() == [[0.1, 0.3, 20]]


def test_leave_one_domain_out_by_hand():
    nothing = [0, 0, 0]
    rows = [
        record([0], 0, [0.1, None, None], nothing),
        record([0], 10, [0.2, None, None], nothing),
        record([0], 20, [0.3, None, None], nothing),
        record([0, 1], 0, [0.9, 0.25, None], nothing),
        record([0, 1], 10, [0.9, 0.5, None], nothing),
        record([0, 1], 20, [0.9, 1.0, None], nothing),
        record([2, 0], 0, [0.9, None, 0.5], nothing),
        record([2, 0], 10, [0.9, None, 1.0], nothing),  # no step 20: that step does not count
    ]
    method = SELECTION_METHODS["leave-one-domain-out"]
    choice = method.select(as_records(rows))
    assert choice[["val", "test", "step"]].to_numpy().tolist() == [[0.75, 0.2, 10]]
    twice = [*rows, rows[1]]  # the single run's step 10 is there twice: it does not count either
    choice = method.select(as_records(twice))
    assert choice[["val", "test", "step"]].to_numpy().tolist() == [[0.375, 0.1, 0]]


def test_leave_one_domain_out_chooses_from_whole_runs():
    """What a run measured at some records only are steps that it chose itself."""
    method, nothing = SELECTION_METHODS["leave-one-domain-out"], [0, 0, 0]

    def chosen(single=0.2, pair=0.5):
        rows = [
            record([0], 0, [0.1, None, None], nothing),
            record([0], 10, [single, None, None], nothing),
            record([0, 1], 0, [0.9, 0.25, None], nothing),
            record([0, 1], 10, [0.9, pair, None], nothing),
            record([2, 0], 0, [0.9, None, 0.5], nothing),
            record([2, 0], 10, [0.9, None, 1.0], nothing),
        ]
        return method.select(as_records(rows))["step"].tolist()

    assert chosen() == [10]
    assert chosen(single=None) == []
    assert chosen(pair=None) == []


@pytest.mark.parametrize("name", ALL)
def test_nothing_to_choose_from(name):
    method = SELECTION_METHODS[name]
    records = as_records(random_records(0))
    assert method.select(records.only([False] * len(records.runs))).empty
    pairs_only = [row for row in random_records(0) if len(row["test_envs"]) == 2]
    assert method.select(as_records(pairs_only)).empty


def test_names_titles_and_needs():
    found = {name: (m.title, m.needs_pairs) for name, m in SELECTION_METHODS.items()}
    assert found == {
        "training-domain": ("training-domain validation set", False),
        "leave-one-domain-out": ("leave-one-domain-out cross-validation", True),
        "oracle": ("test-domain validation set (oracle)", False),
        "worst-domain": ("worst training domain's validation set", False),
        "worst-group": ("worst group of the training-domain validation set", False),
        "worst-class": ("worst class of the training-domain validation set", False),
    }
    assert list(found)[:3] == list(PUBLISHED_METHODS)
    assert all(isinstance(method, SelectionMethod) for method in SELECTION_METHODS.values())
    with pytest.raises(UserError, match="Did you mean 'oracle'"):
        SELECTION_METHODS["orakel"]


def test_importing_imports_nothing_of_training():
    code = (
        "import sys, domainbed.reporting, domainbed.selection\n"
        "rooms = ('algorithms', 'datasets', 'training', 'spec', 'sweeps', 'networks')\n"
        "loaded = {'torch', *(f'domainbed.{room}' for room in rooms)} & set(sys.modules)\n"
        "assert not loaded, loaded"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
