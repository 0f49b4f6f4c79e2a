"""The published table of hyper-parameters, written once more as plain data."""

from __future__ import annotations

import hashlib

import numpy as np

SMALL = ("ColoredMNIST", "RotatedMNIST", "ColoredDigits", "RotatedDigits")


def naive_seed_hash(*args):
    digest = hashlib.md5(str(args).encode("utf-8")).hexdigest()
    return int(digest, 16) % 2**31


def _log10(low, high):
    return lambda r: 10 ** r.uniform(low, high)


def _int_power(base, low, high):
    return lambda r: int(base ** r.uniform(low, high))


def _choice(*values):
    return lambda r: r.choice(list(values))


def _fixed(value):
    return lambda r: value


COMMON = {
    "data_augmentation": (True, _fixed(True)),
    "resnet18": (False, _fixed(False)),
    "resnet_dropout": (0.0, _choice(0.0, 0.1, 0.5)),
    "class_balanced": (False, _fixed(False)),
    "nonlinear_classifier": (False, _fixed(False)),
}
LR_SMALL, LR_OTHER = (1e-3, _log10(-4.5, -2.5)), (5e-5, _log10(-5, -3.5))
DECAY_SMALL, DECAY_OTHER = (0.0, _fixed(0.0)), (0.0, _log10(-6, -2))
EXTRA = {
    "ERM": {},
    "CORAL": {"mmd_gamma": (1.0, _log10(-1, 1))},
    "IRM": {
        "irm_lambda": (1e2, _log10(-1, 5)),
        "irm_penalty_anneal_iters": (500, _int_power(10, 0, 4)),
    },
    "VREx": {
        "vrex_lambda": (1e1, _log10(-1, 5)),
        "vrex_penalty_anneal_iters": (500, _int_power(10, 0, 4)),
    },
    "Fish": {"meta_lr": (0.5, _choice(0.05, 0.1, 0.5))},
    "Fishr": {
        "lambda": (1000.0, _log10(1, 4)),
        "penalty_anneal_iters": (1500, lambda r: int(r.uniform(0, 5000))),
        "ema": (0.95, lambda r: r.uniform(0.90, 0.99)),
    },
    "DANN": {
        "lambda": (1.0, _log10(-2, 2)),
        "weight_decay_d": (0.0, _log10(-6, -2)),
        "d_steps_per_g_step": (1, _int_power(2, 0, 3)),
        "grad_penalty": (0.0, _log10(-2, 1)),
        "beta1": (0.5, _choice(0.0, 0.5)),
        "mlp_width": (256, _int_power(2, 6, 10)),
        "mlp_depth": (3, _choice(3, 4, 5)),
        "mlp_dropout": (0.0, _choice(0.0, 0.1, 0.5)),
    },
}


def _by_dataset(dataset):
    if dataset in SMALL:
        return LR_SMALL, DECAY_SMALL, (64, _int_power(2, 3, 9))
    top = 5 if dataset == "DomainNet" else 5.5
    return LR_OTHER, DECAY_OTHER, (32, _int_power(2, 3, top))


def table(algorithm, dataset):
    """{name: (default, draw)} for one algorithm on one dataset."""
    lr, decay, batch = _by_dataset(dataset)
    rows = {**COMMON, "lr": lr, "weight_decay": decay, "batch_size": batch, **EXTRA[algorithm]}
    if algorithm == "DANN":
        rows |= {"lr_g": lr, "lr_d": lr, "weight_decay_g": decay}
    return rows


def naive_defaults(algorithm, dataset):
    return {name: default for name, (default, _) in table(algorithm, dataset).items()}


def naive_random(algorithm, dataset, seed):
    draws = {}
    for name, (_, draw) in table(algorithm, dataset).items():
        draws[name] = draw(np.random.RandomState(naive_seed_hash(seed, name)))
    return draws
