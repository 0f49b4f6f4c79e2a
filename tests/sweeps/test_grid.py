"""Which runs a sweep needs, in which order, and what their names depend on."""

import itertools
import json
import sys
import time
from pathlib import Path

import pytest

from domainbed.core.names import DATASET_DOMAINS, TEST_DOMAINS
from domainbed.datasets import get_dataset_class
from domainbed.errors import UserError
from domainbed.selection import SELECTION_METHODS
from domainbed.spec import RunSpec
from domainbed.sweeps import config as configs
from domainbed.sweeps.config import load_config

CONFIGS = Path(__file__).parents[2] / "configs"


def config(**fields):
    return load_config(None, {"datasets": ["PACS"], "algorithms": ["ERM"], **fields})


@pytest.mark.parametrize("dataset", [name for name in DATASET_DOMAINS if name not in TEST_DOMAINS])
def test_singles_and_pairs_are_planned_for_all_methods(dataset):
    n = len(DATASET_DOMAINS[dataset])
    runs = config(datasets=[dataset], trials=2, hparams_seeds=3).plan()
    assert len(runs) == 2 * 3 * (n + n * (n - 1) // 2)
    assert {run.test_envs for run in runs} == {
        *itertools.combinations(range(n), 1),
        *itertools.combinations(range(n), 2),
    }


@pytest.mark.parametrize("method", list(SELECTION_METHODS))
def test_pairs_are_planned_only_for_methods_that_need_them(method):
    metrics = ["accuracy", "accuracy_by_group", "accuracy_by_class"]
    runs = config(selection=[method], trials=1, hparams_seeds=1, metrics=metrics).plan()
    assert len(runs) == (10 if SELECTION_METHODS[method].needs_pairs else 4)


def folder_dataset(root, domains, **fields):
    """The name of a dataset of empty folders; `fields` are those of its YAML file."""
    for number in range(domains):
        (root / "images" / f"d{number:04d}").mkdir(parents=True)
    file = root / "many.yaml"
    file.write_text(json.dumps({"path": "images", **fields}))
    return str(file)


class TestManyDomains:
    def test_pairs_are_of_a_domain_that_is_evaluated(self, tmp_path):
        name = folder_dataset(tmp_path, 300, test_domains=[7, 2])
        sets = [run.test_envs for run in config(datasets=[name], trials=1, hparams_seeds=1).plan()]
        assert sets[:2] == [(2,), (7,)]
        assert len(sets) == len(set(sets)) == 2 + 299 + 298
        assert all({2, 7} & set(envs) for envs in sets)
        alone = config(datasets=[name], selection=["oracle"], trials=1, hparams_seeds=1)
        assert [run.test_envs for run in alone.plan()] == [(2,), (7,)]

    def test_too_many_sets_are_not_planned_unasked(self, tmp_path):
        name = folder_dataset(tmp_path, 45)
        few = {"datasets": [name], "trials": 1, "hparams_seeds": 1}
        with pytest.raises(UserError, match=r"45 domains .* 1,035 sets .* leave-one-domain-out"):
            config(**few)
        assert len(config(selection=["training-domain"], **few).plan()) == 45
        assert len(config(test_envs=[[44], [44, 3]], **few).plan()) == 2

    def test_no_dataset_of_the_registry_has_too_many(self):
        for name, domains in DATASET_DOMAINS.items():
            pairs = len(domains) > 2
            methods = [m for m, rule in SELECTION_METHODS.items() if pairs or not rule.needs_pairs]
            assert configs.test_env_sets(name, get_dataset_class(name), methods)

    @pytest.mark.parametrize("domains", [[3], [-1], [True], ["0"], []])
    def test_domains_that_are_not_there(self, domains, tmp_path):
        name = folder_dataset(tmp_path, 3, test_domains=domains)
        with pytest.raises(UserError, match=r"test_domains"):
            config(datasets=[name])


def test_explicit_test_domains_seeds_and_fields_reach_the_runs():
    runs = config(
        algorithms=["ERM", "Fishr"],
        test_envs=[[2, 0], 1],
        trials=[4],
        hparams_seeds=[7, 9],
        steps=11,
        hparams={"batch_size": 8, "Fishr": {"ema": 0.5}},
        shared_draws=True,
    ).plan()
    assert [run.test_envs for run in runs[:2]] == [(0, 2), (1,)]
    assert runs[2] == RunSpec.create(
        "PACS",
        "Fishr",
        [0, 2],
        hparams_seed=7,
        trial_seed=4,
        steps=11,
        hparams={"batch_size": 8, "ema": 0.5},
        shared_draws=True,
    )
    assert len(runs) == 2 * 2 * 2


def test_every_planned_run_is_what_create_makes_of_it():
    for run in config(algorithms=["ERM", "DANN"], trials=2, hparams_seeds=2).plan():
        assert run == RunSpec.create(
            run.dataset,
            run.algorithm,
            run.test_envs,
            hparams_seed=run.hparams_seed,
            trial_seed=run.trial_seed,
        )


def test_runs_that_share_dataset_and_trial_are_neighbours():
    runs = config(datasets=["PACS", "VLCS"], algorithms=["ERM", "IRM"], hparams_seeds=2).plan()
    groups = [key for key, _ in itertools.groupby(runs, lambda r: (r.dataset, r.trial_seed))]
    assert len(groups) == len(set(groups)) == 6
    first = runs[: len(runs) // 6]
    assert [run.hparams_seed for run in first] == sorted(run.hparams_seed for run in first)


def test_run_ids_depend_on_no_machine():
    here = config(output_dir="a", data_dir="b", device="cpu").plan()
    there = config(output_dir="x", data_dir="y", device="cuda", launcher="debug").plan()
    assert [run.run_id for run in here] == [run.run_id for run in there]
    assert len({run.run_id for run in here}) == len(here)
    other = config(hparams={"lr": 0.1}).plan()
    assert not {run.run_id for run in here} & {run.run_id for run in other}


def test_the_name_of_a_folder_dataset_counts_and_not_its_place(tmp_path):
    ids = []
    for place in ("here", "there"):
        for domain in "abc":
            (tmp_path / place / "Birds" / domain).mkdir(parents=True)
        runs = config(datasets=[f"folder:{tmp_path / place / 'Birds'}"]).plan()
        ids.append([run.run_id for run in runs])
    assert ids[0] == ids[1]


def test_two_domains_are_too_few_for_pairs(tmp_path):
    for domain in "ab":
        (tmp_path / "Two" / domain).mkdir(parents=True)
    dataset = f"folder:{tmp_path / 'Two'}"
    with pytest.raises(UserError, match="leave-one-domain-out needs a domain to train on"):
        config(datasets=[dataset])
    assert len(config(datasets=[dataset], selection=["oracle"], trials=1).plan()) == 2 * 20


OTHERS = {CONFIGS / "irm_colored_mnist.yaml", CONFIGS / "start" / "sweep.yaml"}
SWEEPS = sorted(set(CONFIGS.glob("**/*.yaml")) - OTHERS)


@pytest.mark.parametrize("file", SWEEPS, ids=lambda f: f.stem)
def test_the_configs_of_the_repository_are_valid(file):
    to_average = file.stem == "averages_pacs"  # `domainbed model average` needs the weights
    assert load_config(file).weights == ("last" if to_average else "none")


def test_the_whole_published_sweep_is_planned_in_seconds():
    published = load_config(CONFIGS / "paper" / "all.yaml")
    assert len(published.datasets) == len(published.algorithms) == 7
    before = time.process_time()  # other tests run at the same time
    runs = published.plan()
    assert len(runs) == 7 * 20 * 3 * (6 + 21 + 4 * 10 + 21)
    assert time.process_time() - before < 30


def test_runs_with_too_few_training_domains_are_left_out():
    fields = {"datasets": ["ColoredDigits", "PACS"], "algorithms": ["TRM", "ERM"], "trials": 1}
    asked = config(**fields, hparams_seeds=1)
    runs, gaps = asked.plan(), asked.left_out
    assert len(runs) == (3 + 6) + 2 * 10
    of_trm = [r.test_envs for r in runs if (r.dataset, r.algorithm) == ("ColoredDigits", "TRM")]
    assert of_trm == [(0,), (1,), (2,)]
    assert [(gap["dataset"], gap["algorithm"], gap["test_envs"]) for gap in gaps] == [
        ("ColoredDigits", "TRM", list(pair)) for pair in itertools.combinations(range(3), 2)
    ]
    assert {gap["why"] for gap in gaps} == {
        "TRM needs at least 2 training domains, and 2 of the 3 of ColoredDigits are held out"
    }
    assert config(**fields, selection=["oracle"]).left_out == []


def test_a_dataset_on_which_nothing_can_run_is_refused():
    with pytest.raises(UserError, match="TRM needs at least 2 training domains"):
        config(datasets=["ColoredDigits"], algorithms=["TRM"], test_envs=[[0, 1]])
    asked = config(datasets=["ColoredDigits"], algorithms=["TRM", "ERM"], test_envs=[[0, 1]])
    assert {run.algorithm for run in asked.plan()} == {"ERM"}


def test_planning_looks_no_name_up_again():
    asked = config(algorithms=["ERM", "Fishr", "DANN"], trials=3, hparams_seeds=4)
    called = set()
    sys.setprofile(lambda frame, event, argument: called.add(frame.f_code.co_name))
    try:
        asked.plan()
    finally:
        sys.setprofile(None)
    assert {"plan", "variant"} <= called
    assert not {"get_algorithm_class", "get_dataset_class", "get_protocol"} & called
