"""Every field and option of every protocol, as published: a literal table."""

from __future__ import annotations

from dataclasses import asdict

from domainbed.config.protocols import get_protocol, protocol_names

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
}


def test_every_field_and_option():
    assert set(protocol_names()) == set(PROTOCOLS)
    for name, expected in PROTOCOLS.items():
        stated = asdict(get_protocol(name))
        about = {key: stated.pop(key) for key in ("name", "version", "title", "source")}
        assert stated == expected, name
        assert (about["name"], about["version"]) == (name, 1)
