"""Defaults and draws equal the published table, name by name."""

from __future__ import annotations

import json
from itertools import product

import pytest
from hparams_reference import (
    KNOWN_DRAWS,
    OF_2020,
    OF_DATASET,
    naive_defaults,
    naive_random,
    naive_seed_hash,
    naive_sequence,
)

from domainbed.algorithms import ALGORITHMS
from domainbed.config.dimensions import refusal
from domainbed.config.protocols import differences, get_protocol
from domainbed.datasets import DATASETS
from domainbed.errors import UserError
from domainbed.hparams import (
    Choice,
    Fixed,
    LogUniform,
    Option,
    Uniform,
    default_hparams,
    random_hparams,
    search_space,
)
from domainbed.spec import RunSpec

PUBLISHED = (
    *("ColoredMNIST", "RotatedMNIST", "VLCS", "PACS", "OfficeHome", "TerraIncognita"),
    *("DomainNet", "ColoredDigits", "RotatedDigits", "Debug28", "Debug224"),
    *("SVIRO", "WILDSCamelyon", "WILDSFMoW", "Waterbirds", "CelebA", "MetaShift", "NICOpp"),
    *(f"Spawrious{k}_{level}" for k in ("O2O", "M2M") for level in ("easy", "medium", "hard")),
)
SEEDS = [naive_seed_hash(h, t) for h in range(1, 20, 3) for t in range(3)]


def test_all_datasets_are_covered():
    own_space = {name for name in DATASETS if name.startswith("Penguins")}
    assert set(PUBLISHED) == set(DATASETS) - own_space


@pytest.mark.parametrize("algorithm", list(ALGORITHMS))
def test_against_the_table(algorithm):
    """Defaults and draws, on each dataset; and JSON gives them back with their types."""
    for dataset in PUBLISHED:
        assert default_hparams(algorithm, dataset) == naive_defaults(algorithm, dataset), dataset
        for seed in SEEDS:
            drawn = random_hparams(algorithm, dataset, seed)
            assert drawn == naive_random(algorithm, dataset, seed), (dataset, seed)
        for hparams in (default_hparams(algorithm, dataset), drawn):
            again = json.loads(json.dumps(hparams))
            assert again == hparams
            assert list(map(type, again.values())) == list(map(type, hparams.values()))


def test_known_draws():
    """Values that DomainBed itself printed; the table above repeats its laws."""
    for (algorithm, dataset), expected in KNOWN_DRAWS.items():
        drawn = naive_random(algorithm, dataset, naive_seed_hash(1, 0))
        for name, value in expected.items():
            near = pytest.approx(value, rel=1e-5) if isinstance(value, float) else value
            assert drawn[name] == near, (algorithm, dataset, name)


@pytest.mark.parametrize("algorithm", OF_2020)
def test_the_sequence_of_draws_of_2020(algorithm):
    for dataset, trial in product(("ColoredMNIST", "PACS", "DomainNet"), range(3)):
        made = RunSpec.create(
            *(dataset, algorithm, [0]), protocol="domainbed-2020", hparams_seed=7, trial_seed=trial
        )
        drawn = naive_sequence(algorithm, dataset, naive_seed_hash(7, trial))
        assert {name: made.hparams[name] for name in drawn} == drawn
        shared = naive_defaults("ERM", dataset)
        kept = shared.keys() - drawn.keys()  # what is fixed, and what was no choice then
        assert {name: made.hparams[name] for name in kept} == {name: shared[name] for name in kept}


def test_a_later_algorithm_draws_what_it_replaces_after_what_is_shared():
    shared = naive_sequence("ERM", "PACS", 5)
    drawn = random_hparams("ADRMX", "PACS", 5, in_sequence=True)
    assert {name: drawn[name] for name in shared if name != "lr"} == {
        name: value for name, value in shared.items() if name != "lr"
    }
    assert drawn["lr"] in (2e-5, 3e-5, 4e-5, 5e-5)


def test_mixup_alpha_was_always_a_tenth():
    def alpha(protocol, seed):
        return RunSpec.create("PACS", "Mixup", [0], protocol=protocol, hparams_seed=seed).hparams

    for protocol in ("domainbed-2020", "fishr-2022"):
        assert {alpha(protocol, seed)["mixup_alpha"] for seed in (1, 2, 3)} == {0.1}
        assert alpha(protocol, 0)["mixup_alpha"] == 0.2
    assert alpha("domainbed-2024", 1)["mixup_alpha"] == pytest.approx(0.631349, rel=1e-5)
    said = differences(get_protocol("default"), get_protocol("domainbed-2020"))
    assert ("range of Mixup.mixup_alpha", None, [-1, -1]) in said


def test_fishr_on_colored_mnist_by_hand():
    assert default_hparams("Fishr", "ColoredMNIST") == {
        "data_augmentation": True,
        "resnet18": False,
        "resnet_dropout": 0.0,
        "class_balanced": False,
        "nonlinear_classifier": False,
        "lr": 0.001,
        "weight_decay": 0.0,
        "batch_size": 64,
        "lambda": 1000,
        "penalty_anneal_iters": 1500,
        "ema": 0.95,
    }


def test_a_draw_is_independent_of_other_names():
    """ERM's names have the same draws in every algorithm."""
    shared = random_hparams("ERM", "PACS", 17)
    for algorithm in ALGORITHMS:
        own = random_hparams(algorithm, "PACS", 17)
        replaced = OF_DATASET.get(algorithm, lambda dataset: {})("PACS")
        assert {n: own[n] for n in shared if n not in replaced} == {
            n: value for n, value in shared.items() if n not in replaced
        }
    dann = random_hparams("DANN", "PACS", 17)
    assert len({dann["lr"], dann["lr_g"], dann["lr_d"]}) == 3


def test_unregistered_dataset_counts_as_natural_images():
    assert default_hparams("ERM", "my_photos") == naive_defaults("ERM", "my_photos")
    assert default_hparams("ERM", "my_photos")["lr"] == 5e-5


def test_unknown_algorithm():
    with pytest.raises(UserError, match="Did you mean 'Fishr'"):
        search_space("Fisher", "PACS")


def test_a_run_uses_the_draw_of_its_seeds():
    spec = RunSpec.create("PACS", "Fishr", [0], hparams_seed=4, trial_seed=2)
    assert spec.hparams == naive_random("Fishr", "PACS", naive_seed_hash(4, 2))
    shared = RunSpec.create("PACS", "Fishr", [0], hparams_seed=4, trial_seed=2, shared_draws=True)
    assert shared.hparams == naive_random("Fishr", "PACS", naive_seed_hash(4, 0))


@pytest.mark.parametrize(
    ("dimension", "text"),
    [
        (Fixed(1), "fixed"),
        (Choice(0.5, (0.05, 0.5)), "choice of 0.05, 0.5"),
        (Uniform(0.95, 0.9, 0.99), "uniform in [0.9, 0.99)"),
        (Uniform(5, 0, 50, integer=True), "integer, uniform in [0, 50)"),
        (LogUniform(1, -1, 5), "log-uniform in [10^-1, 10^5)"),
        (LogUniform(64, 3, 9, base=2, integer=True), "integer, log-uniform in [2^3, 2^9)"),
    ],
    ids=str,
)
def test_description(dimension, text):
    assert dimension.describe() == text


def test_a_subclass_adds_to_its_parents_space(monkeypatch):
    child = type("Child", (ALGORITHMS["IRM"],), {"search_space": {"more": Fixed(1)}})
    monkeypatch.setitem(ALGORITHMS._entries, "Child", child)
    assert default_hparams("Child", "PACS") == {**default_hparams("IRM", "PACS"), "more": 1}


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda: Uniform(0.5, 1, 0), "numbers, low and not below it high"),
        (lambda: Uniform(0.5, 0, float("nan")), "numbers"),
        (lambda: Uniform(5, 0, 1, below=2), "a default that may be set"),
        (lambda: LogUniform(1, 3, -3), "low and not below it high"),
        (lambda: LogUniform(1, -3, 3, base=0), "a base above 0"),
        (lambda: Choice(1, ()), "values to choose from"),
        (lambda: Choice("a", (1, 2)), "a default that may be set"),
        (lambda: Option("c", "", ("a", "b")), "a default that may be set"),
    ],
)
def test_dimensions_that_cannot_be(make, expected):
    with pytest.raises(ValueError, match=expected):
        make()


@pytest.mark.parametrize(
    ("algorithm", "name", "value", "bounds"),
    [
        ("ERM", "lr", 0, "above 0"),
        ("ERM", "resnet_dropout", 1, "from 0 on, below 1"),
        ("ERM", "weight_decay", -0.1, "from 0 on"),
        ("ERM", "mlp_depth", 1, "from 2 on"),
        ("Fish", "meta_lr", -0.5, "from 0 on"),
        ("DANN", "mlp_dropout", 1, "below 1"),
    ],
)
def test_values_out_of_bounds(algorithm, name, value, bounds):
    with pytest.raises(UserError, match=rf"{name!r}.* cannot be {value}.*{bounds}"):
        RunSpec.create("ColoredMNIST", algorithm, [0], hparams={name: value})


@pytest.mark.parametrize(
    ("of", "value", "told"),
    [
        (
            LogUniform(0.001, -4.5, -2.5, above=0),
            "0.01",
            "expected a number above 0, without quotes "
            "(default 0.001; log-uniform in [10^-4.5, 10^-2.5))",
        ),
        (
            LogUniform(64, 3, 9, base=2, integer=True, least=1),
            "many",
            "expected a whole number from 1 on (default 64; integer, log-uniform in [2^3, 2^9))",
        ),
        (
            Uniform(0.95, 0.9, 0.99, least=0, most=1),
            2,
            "expected a number from 0 on, up to 1 (default 0.95; uniform in [0.9, 0.99))",
        ),
        (
            Choice(0.0, (0.0, 0.1), least=0, below=1),
            1,
            "expected a number from 0 on, below 1 (default 0.0; choice of 0.0, 0.1)",
        ),
        (
            Choice("a", ("a", "b"), "", ("c",)),
            1,
            "expected one of a, b, c (default 'a'; choice of a, b; also c)",
        ),
        (Fixed(False), "true", "expected true or false, without quotes (default False)"),
        (Fixed(0), 0.5, "expected a whole number (default 0)"),
        (Option("x"), 1, "expected a text (default 'x')"),
        (Option("a", "", ("a", "b")), "[" * 10000, "expected one of a, b (default 'a')"),
    ],
)
def test_what_is_said_of_a_value_that_cannot_be(of, value, told):
    assert refusal(value, of) == told


def test_weights_where_no_backbone_takes_them():
    with pytest.raises(UserError, match="'weights' is 'imagenet', but no backbone takes"):
        RunSpec.create("ColoredMNIST", "ERM", [0], hparams={"weights": "imagenet"})
    RunSpec.create("ColoredMNIST", "ERM", [0], hparams={"weights": "none", "backbone": "resnet18"})


def test_words_to_choose_from():
    for word in ("relu", "sigmoid"):
        RunSpec.create("ColoredMNIST", "URM", [0], hparams={"urm_generator_output": word})
    expected = "'gelu': expected one of tanh, relu, sigmoid "
    with pytest.raises(UserError, match=expected):
        RunSpec.create("ColoredMNIST", "URM", [0], hparams={"urm_generator_output": "gelu"})
    with pytest.raises(UserError, match="'lmbda' of CAD cannot be 'a'"):
        RunSpec.create("ColoredMNIST", "CAD", [0], hparams={"lmbda": "a"})


def test_another_name_of_the_learning_rate():
    with pytest.raises(UserError, match="Did you mean 'lr'"):
        RunSpec.create("PACS", "ERM", [0], hparams={"learning_rate": 0.1})
