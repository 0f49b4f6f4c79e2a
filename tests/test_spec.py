"""Run specs: checks that name the field, an identity that is stable and free of paths."""

from __future__ import annotations

import json

import pytest

from domainbed.algorithms import ALGORITHMS, Fishr
from domainbed.config.dimensions import LogUniform
from domainbed.config.protocols import differences, get_protocol, protocol_names
from domainbed.config.run_fields import FeatureSource, RunFields
from domainbed.errors import UserError
from domainbed.hparams import search_space
from domainbed.spec import ALWAYS, RunSpec


def test_defaults_are_the_published_ones():
    spec = RunSpec.create("DomainNet", "ERM", [1])
    assert (spec.steps, spec.checkpoint_freq, spec.holdout_fraction) == (5001, 1000, 0.2)
    assert (spec.hparams_seed, spec.trial_seed, spec.task) == (0, 0, "domain_generalization")
    assert RunSpec.create("ColoredMNIST", "ERM", [1]).checkpoint_freq == 100
    assert RunSpec.create("PACS", "ERM", [1]).checkpoint_freq == 300


def test_seed_is_derived():
    spec = RunSpec.create("PACS", "ERM", [0], hparams_seed=3, trial_seed=1)
    assert spec.seed == 1704687671
    assert RunSpec.create("PACS", "ERM", [0], seed=7).seed == 7


FROZEN_IDS = {
    ("ColoredMNIST", "Fishr", (2,)): {},
    ("PACS", "ERM", (0, 3)): {"hparams_seed": 7, "trial_seed": 2},
    ("DomainNet", "DANN", (5,)): {"hparams": {"resnet18": True}, "steps": 15001},
    ("PACS", "CORAL", (1,)): {"protocol": "domainbed-2020", "hparams_seed": 1},
    ("RotatedMNIST", "IRM", (1,)): {"protocol": "domainbed-2024", "precision": "bf16"},
}


def test_run_ids_are_frozen():
    """Changing one would make every finished run of every user run again."""
    ids = [RunSpec.create(*run, **fields).run_id for run, fields in FROZEN_IDS.items()]
    assert ids == [
        "bcf2c773b66d4034752e0d251834360a",
        "5ea045ce5d2c7b533a60a8727990b0bc",
        "32aa50875f53db9b01d56d4c5a86ddd7",
        "ed4789412b44de712f19664b60f364ad",
        "4cc816be61bf69da11b886eace399fd2",
    ]


def test_a_new_field_with_a_default_changes_no_id():
    class Grown(RunSpec):
        averaging: str = "none"

    spec = RunSpec.create("PACS", "ERM", [0])
    grown = Grown.create("PACS", "ERM", [0])
    assert grown.averaging == "none"
    assert grown.run_id == spec.run_id
    # Declared where a run's fields are, it counts as soon as it is set.
    fields = RunFields.model_fields
    assert all(name in spec.identity() for name in ALWAYS)
    assert not {name for name in fields if name not in ALWAYS} & set(spec.identity())


def test_a_changed_search_space_changes_the_id(monkeypatch):
    before = RunSpec.create("PACS", "Fishr", [0])
    space = {**Fishr.search_space, "lambda": LogUniform(999, 1, 4, "another default")}
    monkeypatch.setattr(Fishr, "search_space", space)
    assert RunSpec.create("PACS", "Fishr", [0]).run_id != before.run_id


def test_weights_count_by_their_content(tmp_path):
    for name, content in (("a.pt", b"1"), ("b.pt", b"1"), ("c.pt", b"2")):
        (tmp_path / name).write_bytes(content)
    a, b, c = (
        RunSpec.create("PACS", "ERM", [0], hparams={"weights": str(tmp_path / name)}).run_id
        for name in ("a.pt", "b.pt", "c.pt")
    )
    assert a == b != c


def test_protocols_decide_what_nobody_sets():
    spec = RunSpec.create("RotatedMNIST", "DANN", [0], protocol="domainbed-2020")
    assert (spec.augment_validation, spec.record_last_step) == (True, False)
    assert (spec.draws, spec.data_seed, spec.eval_splits) == ("in-sequence", "run", "all")
    assert spec.hparams["rotation"] == "bicubic"
    assert spec.hparams["grad_penalty_of"] == "softmax"
    erm = RunSpec.create("PACS", "ERM", [0], protocol="domainbed-2024")
    assert (erm.hparams["freeze_bn"], erm.hparams["resnet50_augmix"]) == (False, True)
    assert "rotation" not in erm.hparams
    assert erm.identity()["protocol_version"] == 1
    assert not {"augment_validation", "eval_splits"} & set(erm.identity())
    own = RunSpec.create("PACS", "ERM", [0], protocol="domainbed-2024", augment_validation=False)
    assert own.identity()["augment_validation"] is False


def test_a_protocols_option_is_the_users_to_set():
    hparams = {"freeze_bn": True}
    spec = RunSpec.create("PACS", "ERM", [0], protocol="domainbed-2024", hparams=hparams)
    assert spec.hparams["freeze_bn"] is True


def test_a_protocols_defaults_are_those_of_hparams_seed_0_alone():
    def tau(protocol, seed=0, **hparams):
        made = RunSpec.create(
            *("PACS", "SANDMask", [0]), protocol=protocol, hparams_seed=seed, hparams=hparams
        )
        return made.hparams["tau"]

    assert tau("default") == 0.5
    assert tau("domainbed-2020") == tau("domainbed-2024") == tau("fishr-2022") == 1.0
    assert tau("default", 1) == tau("domainbed-2024", 1) == pytest.approx(0.393432, rel=1e-5)
    assert tau("domainbed-2024", tau=0.25) == 0.25
    assert ("SANDMask.tau", None, 1.0) in differences(
        get_protocol("default"), get_protocol("domainbed-2024")
    )


@pytest.mark.parametrize("protocol", protocol_names())
def test_a_protocols_defaults_can_be(protocol):
    for algorithm, values in get_protocol(protocol).defaults.items():
        space = search_space(algorithm, "PACS")
        assert all(space[name].accepts(value) for name, value in values.items())


def test_mldg_has_the_pairs_of_its_time():
    for protocol, pairs in [("domainbed-2020", "cyclic"), ("fishr-2022", "cyclic")]:
        hparams = RunSpec.create("PACS", "MLDG", [0], protocol=protocol).hparams
        assert (hparams["mldg_pairs"], hparams["fidelity"]) == (pairs, "domainbed")
    today = RunSpec.create("PACS", "MLDG", [0], protocol="domainbed-2024").hparams
    assert "mldg_pairs" not in today  # the option's default
    assert today["fidelity"] == "domainbed"


def test_unknown_protocol():
    with pytest.raises(UserError, match="Did you mean 'domainbed-2020'"):
        RunSpec.create("PACS", "ERM", [0], protocol="domainbed2020")


def test_test_envs_are_ordered():
    assert RunSpec.create("PACS", "ERM", [3, 1]) == RunSpec.create("PACS", "ERM", (1, 3))


def test_every_field_is_part_of_the_identity():
    spec = RunSpec.create("PACS", "ERM", [0])
    changed = {
        **{"algorithm": "IRM", "dataset": "VLCS", "test_envs": (1,), "hparams_seed": 1},
        **{"trial_seed": 1, "seed": 1, "steps": 3, "checkpoint_freq": 1, "protocol_version": 2},
        **{"holdout_fraction": 0.1, "uda_holdout_fraction": 0.1, "task": "domain_adaptation"},
        **{"hparams": {"lr": 1}, "shared_draws": True, "augment_validation": True},
        **{"precision": "bf16", "draws": "in-sequence", "data_seed": "run", "eval_splits": "all"},
        **{"record_last_step": False, "metrics": ("loss",), "on_divergence": "continue"},
        **{
            "initial_weights": "shared",
            "averages": ("ema",),
            "ema_decay": 0.5,
            "sma_start": 1,
            "swad_ratio": 1.2,
        },
        **{
            "swad_n_converge": 2,
            "swad_n_tolerance": 7,
            "wise_alpha": 0.1,
            "rerun": "oracle",
            "swad_rule": "authors",
        },
        **{"revision": 2, "tuned": "pacs"},
        **{"protocol": "domainbed-2020", "digests": {"weights": "sha256:0"}},
        **{"features": FeatureSource(), "labels": "binary"},
        **{"columns": {"path": "x"}, "classes": {"a": ("b",)}, "missing_classes": "allow"},
        **{"split": "stratified"},
    }
    assert set(changed) == set(RunSpec.model_fields) - {"fixed_hparams"}
    ids = {spec.model_copy(update={k: v}).run_id for k, v in changed.items()}
    assert len(ids | {spec.run_id}) == len(changed) + 1


def test_identity_is_json_and_has_no_path(tmp_path):
    for domain in "ab":
        (tmp_path / "photos" / domain / "cat").mkdir(parents=True)
    spec = RunSpec.create(f"folder:{tmp_path / 'photos'}", "ERM", [0])
    text = json.dumps(spec.identity())
    assert json.loads(text) == spec.identity()
    assert str(tmp_path) not in text
    assert spec.identity()["dataset"] == "photos"


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("test_envs", {"test_envs": []}, "at least one"),
        ("test_envs", {"test_envs": [4]}, "between 0 and 3"),
        ("test_envs", {"test_envs": [-1]}, "between 0 and 3"),
        ("test_envs", {"test_envs": [1, 1]}, "each domain once"),
        ("test_envs", {"test_envs": [0, 1, 2, 3]}, "a training domain left"),
        ("steps", {"steps": 0}, "from 1 on"),
        ("checkpoint_freq", {"checkpoint_freq": 0}, "from 1 on"),
        ("holdout_fraction", {"holdout_fraction": 0.0}, "above 0, below 1"),
        ("holdout_fraction", {"holdout_fraction": 1.0}, "above 0, below 1"),
        ("uda_holdout_fraction", {"uda_holdout_fraction": 1.0}, "below 1"),
        ("uda_holdout_fraction", {"task": "domain_adaptation"}, "more than 0"),
        ("uda_holdout_fraction", {"uda_holdout_fraction": 0.1}, "0, unless the task"),
        ("seed", {"seed": 2**64}, "up to"),
        ("hparams_seed", {"hparams_seed": -1}, "from 0"),
        ("trial_seed", {"trial_seed": -1}, "from 0"),
        ("task", {"task": "segmentation"}, "domain_generalization"),
        ("precision", {"precision": "fp8"}, "float32, bf16, tf32"),
    ],
)
def test_impossible_values(name, values, message):
    arguments = {"dataset": "PACS", "algorithm": "ERM", "test_envs": [0], **values}
    with pytest.raises(UserError, match=message) as caught:
        RunSpec.create(**arguments)
    text = str(caught.value)
    assert text.startswith(f"{name} is ")
    assert "\n" not in text


def test_misspelt_hyper_parameter():
    with pytest.raises(UserError) as caught:
        RunSpec.create("PACS", "Fishr", [0], hparams={"lamda": 1})
    message = "unknown hyper-parameter 'lamda' of Fishr. Did you mean 'lambda'?"
    assert str(caught.value) == message


def test_hyper_parameter_of_a_wrong_type():
    with pytest.raises(UserError, match="'lr' of ERM cannot be 'high': expected a number above 0 "):
        RunSpec.create("PACS", "ERM", [0], hparams={"lr": "high"})


@pytest.mark.parametrize(
    ("algorithm", "hparams"),
    [
        ("ERM", {"batch_size": 8.5}),
        ("ERM", {"batch_size": 0}),
        ("ERM", {"batch_size": True}),
        ("ERM", {"lr": -1}),
        ("ERM", {"lr": float("nan")}),
        ("ERM", {"class_balanced": 1}),
        ("DANN", {"mlp_depth": 3.5}),
        ("Fishr", {"ema": 1.0}),
        ("Fishr", {"penalty_anneal_iters": 1.5}),
    ],
)
def test_values_that_cannot_be(algorithm, hparams):
    with pytest.raises(UserError, match=f"'{next(iter(hparams))}' of {algorithm} cannot be"):
        RunSpec.create("PACS", algorithm, [0], hparams=hparams)


def test_values_at_the_edge_are_accepted():
    hparams = {"lambda": 0.5, "penalty_anneal_iters": 0, "ema": 0, "batch_size": 1, "lr": 1}
    spec = RunSpec.create("PACS", "Fishr", [0], hparams=hparams)
    assert spec.hparams["lambda"] == 0.5


def test_fixed_values_win_over_draws():
    spec = RunSpec.create("PACS", "ERM", [0], hparams_seed=5, hparams={"lr": 0.25})
    other = RunSpec.create("PACS", "ERM", [0], hparams_seed=5)
    assert spec.hparams == {**other.hparams, "lr": 0.25}


@pytest.mark.parametrize(("dataset", "algorithm"), [("PACCS", "ERM"), ("PACS", "EMR")])
def test_unknown_names(dataset, algorithm):
    with pytest.raises(UserError, match="Did you mean"):
        RunSpec.create(dataset, algorithm, [0])


def test_numbers_that_json_does_not_have(monkeypatch):
    """Of a class without a search space too, whose hyper-parameters nobody knows."""

    class Foreign(Fishr):
        pass

    Foreign.__module__ = "elsewhere"
    monkeypatch.setitem(ALGORITHMS._entries, "Foreign", Foreign)
    with pytest.raises(UserError, match="'their_weight' of Foreign cannot be inf"):
        RunSpec.create("PACS", "Foreign", [0], hparams={"their_weight": float("inf")})


@pytest.mark.parametrize(("algorithm", "enough"), [("TRM", False), ("MLDG", False), ("ERM", True)])
def test_too_few_training_domains_for_an_algorithm(algorithm, enough):
    RunSpec.create("ColoredMNIST", algorithm, [0])
    if enough:
        RunSpec.create("ColoredMNIST", algorithm, [0, 1])
        return
    with pytest.raises(UserError) as error:
        RunSpec.create("ColoredMNIST", algorithm, [0, 1])
    assert str(error.value) == (
        f"{algorithm} needs at least 2 training domains, and 2 of the 3 of "
        "ColoredMNIST are held out"
    )
