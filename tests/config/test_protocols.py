"""Every field and option of every protocol, as published: a literal table."""

from __future__ import annotations

from dataclasses import asdict

from domainbed.config.protocols import get_protocol, protocol_names
from domainbed.spec import RunSpec

NOTHING = {"defaults": {}, "ranges": {}, "steps": {}, "checkpoint_freq": {}}
OWN = {
    "draws": "by-name",
    "data_seed": "trial",
    "augment_validation": False,
    "eval_splits": "needed",
    "record_last_step": True,
}
DOMAINBED = {
    "draws": "by-name",
    "data_seed": "run",
    "augment_validation": True,
    "eval_splits": "all",
    "record_last_step": True,
}
MASKS_ALL = {"SANDMask": {"tau": 1.0}}
A_TENTH = {"Mixup": {"mixup_alpha": [-1, -1]}}
FEATURES = {
    "backbone": "efficientnet_lite0",
    "weights": "imagenet",
    "views": 0,
    "precision": "float32",
}

PROTOCOLS = {
    "default": {**NOTHING, "fields": OWN, "options": {}},
    "frozen-features": {
        **NOTHING,
        "fields": {**OWN, "features": FEATURES},
        "options": {"featurizer": "Projection"},
    },
    "domainbed-2020": {
        **NOTHING,
        "fields": {**DOMAINBED, "draws": "in-sequence", "record_last_step": False},
        "options": {
            "fidelity": "domainbed",
            "freeze_bn": True,
            "resnet50_augmix": False,
            "rotation": "bicubic",
            "grad_penalty_of": "softmax",
            "mldg_pairs": "cyclic",
            "groupdro_reduction": "mean",
        },
        "defaults": MASKS_ALL,
        "ranges": A_TENTH,
    },
    "domainbed-2024": {
        **NOTHING,
        "fields": DOMAINBED,
        "options": {
            "fidelity": "domainbed",
            "freeze_bn": False,
            "resnet50_augmix": True,
            "rotation": "bilinear",
            "grad_penalty_of": "loss",
            "groupdro_reduction": "sum",
        },
        "defaults": MASKS_ALL,
    },
    "fishr-2022": {
        **NOTHING,
        "fields": {**DOMAINBED, "record_last_step": False},
        "options": {
            "fidelity": "domainbed",
            "freeze_bn": True,
            "resnet50_augmix": False,
            "rotation": "bilinear",
            "grad_penalty_of": "softmax",
            "mldg_pairs": "cyclic",
            "groupdro_reduction": "sum",
        },
        "defaults": MASKS_ALL,
        "ranges": A_TENTH,
    },
    "swad-2021": {
        **NOTHING,
        "fields": {
            "draws": "in-sequence",
            "data_seed": "run",
            "augment_validation": False,
            "eval_splits": "needed",
            "record_last_step": False,
        },
        "options": {
            "fidelity": "domainbed",
            "freeze_bn": True,
            "resnet50_augmix": False,
            "grad_penalty_of": "softmax",
            "mldg_pairs": "cyclic",
            "groupdro_reduction": "mean",
        },
        "ranges": A_TENTH,
        "steps": {"DomainNet": 15001},
        "checkpoint_freq": {
            **dict.fromkeys(["PACS", "VLCS", "OfficeHome", "TerraIncognita"], 200),
            "DomainNet": 1000,
        },
    },
}


def test_every_field_and_option():
    assert set(protocol_names()) == set(PROTOCOLS)
    for name, expected in PROTOCOLS.items():
        stated = asdict(get_protocol(name))
        about = {key: stated.pop(key) for key in ("name", "version", "title", "source")}
        assert stated == expected, name
        assert (about["name"], about["version"]) == (name, 1)


def test_the_trainer_of_swad():
    """As its commands run it: steps, intervals, batch norm, dropout, and what is drawn of them."""
    expected = {"PACS": (5001, 200, 5.5), "DomainNet": (15001, 1000, 5)}
    for dataset, (steps, interval, largest) in expected.items():
        spec = RunSpec.create(dataset, "MIRO", [0], protocol="swad-2021")
        assert (spec.steps, spec.checkpoint_freq) == (steps, interval)
        assert not spec.augment_validation
        chosen = {"lr": 5e-5, "weight_decay": 0.0, "batch_size": 32, "resnet_dropout": 0.0}
        chosen |= {"freeze_bn": True, "resnet50_augmix": False}
        assert {name: spec.hparams[name] for name in chosen} == chosen
        for seed in range(1, 20):
            drawn = RunSpec.create(
                dataset, "MIRO", [0], protocol="swad-2021", hparams_seed=seed
            ).hparams
            assert 1e-5 <= drawn["lr"] <= 10**-3.5
            assert 1e-6 <= drawn["weight_decay"] <= 1e-2
            assert 8 <= drawn["batch_size"] <= 2**largest
            assert drawn["resnet_dropout"] in (0.0, 0.1, 0.5)
