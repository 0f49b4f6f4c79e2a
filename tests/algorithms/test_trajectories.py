"""Every algorithm follows the naive implementation over several updates, in float64."""

from __future__ import annotations

import copy

import pytest
import torch
from helpers import SHAPE, build, flat_parameters, random_minibatches
from references import NAIVE

from domainbed.algorithms import get_algorithm_class

UPDATES = 4
VECTORS = (6,)  # through a small MLP: fast, and the mathematics is the same
SMALL_MLP = {"mlp_width": 8, "mlp_depth": 3, "mlp_dropout": 0.0}


def input_shape(name):
    """Of the small inputs to test an algorithm with: vectors, unless its naive one says else."""
    return getattr(NAIVE[name], "inputs", VECTORS)


def assert_follows(algorithm, naive, tolerance):
    for module in naive.compared:
        own, reference = getattr(algorithm, module), getattr(naive, module)
        named = zip(own.named_parameters(), reference.parameters(), strict=True)
        for (parameter_name, parameter), expected in named:
            torch.testing.assert_close(
                parameter,
                expected,
                rtol=tolerance,
                atol=tolerance,
                msg=lambda text, where=parameter_name: f"{where}: {text}",
            )


def follow(name, sizes, updates=UPDATES, shape=None, **overrides):
    """Runs both side by side on new minibatches each update and compares after each.

    The inputs are vectors where the algorithm takes them: a small MLP is fast.
    """
    shape = shape or input_shape(name)
    overrides = {"weight_decay": 0.01, **SMALL_MLP, **overrides}
    algorithm = build(name, len(sizes), dtype=torch.float64, shape=shape, **overrides)
    naive = NAIVE[name].twin(algorithm, len(sizes))
    start = copy.deepcopy(algorithm.featurizer.state_dict())
    for step in range(updates):
        minibatches = random_minibatches(sizes, step, shape, dtype=torch.float64)
        algorithm.update(minibatches)
        naive.update(minibatches)
        assert_follows(algorithm, naive, tolerance=1e-9)
    moved = algorithm.featurizer.state_dict()
    assert any(not torch.equal(moved[key], start[key]) for key in start)


COUNTS = [
    (name, sizes)
    for name in NAIVE
    for sizes in [(5,), (4, 3), (2, 5, 3), (2, 3, 2, 4, 3)]
    if len(sizes) >= get_algorithm_class(name).least_domains
]


@pytest.mark.parametrize(("name", "sizes"), COUNTS, ids=str)
def test_domain_counts_and_unequal_batches(name, sizes):
    follow(name, sizes, updates=3)


@pytest.mark.parametrize("name", list(NAIVE))
def test_nonlinear_classifier(name):
    extra = {"penalty_anneal_iters": 1, "lambda": 50.0} if name == "Fishr" else {}
    follow(name, (3, 4), nonlinear_classifier=True, **extra)


@pytest.mark.parametrize("anneal", [0, 1, 2])
@pytest.mark.parametrize(
    ("name", "weight", "anneal_name"),
    [
        ("IRM", {"irm_lambda": 30.0}, "irm_penalty_anneal_iters"),
        ("VREx", {"vrex_lambda": 20.0}, "vrex_penalty_anneal_iters"),
        ("Fishr", {"lambda": 200.0, "ema": 0.9}, "penalty_anneal_iters"),
    ],
)
def test_annealing_switch(name, weight, anneal_name, anneal):
    follow(name, (3, 4, 2), **weight, **{anneal_name: anneal})


@pytest.mark.parametrize("ema", [0.0, 0.5, 0.95])
def test_fishr_moving_average(ema):
    follow("Fishr", (3, 2), ema=ema, penalty_anneal_iters=0, **{"lambda": 1000.0})


@pytest.mark.parametrize("meta_lr", [0.05, 0.5, 1.0])
def test_fish_keeps_the_inner_adam(meta_lr):
    follow("Fish", (2, 3, 2), meta_lr=meta_lr)


def test_coral_weight():
    follow("CORAL", (3, 4, 2), mmd_gamma=7.0)


@pytest.mark.parametrize("rounds", [1, 2, 3])
@pytest.mark.parametrize("grad_penalty", [0.0, 2.0])
def test_dann_alternation(rounds, grad_penalty):
    follow(
        "DANN",
        (3, 2, 4),
        updates=2 * (rounds + 1),
        d_steps_per_g_step=rounds,
        grad_penalty=grad_penalty,
        weight_decay_d=0.02,
        weight_decay_g=0.03,
        lr_d=2e-3,
        lr_g=5e-4,
        mlp_depth=4,
        **{"lambda": 0.7},
    )


@pytest.mark.parametrize("beta1", [0.0, 0.5])
def test_dann_beta1(beta1):
    follow("DANN", (3, 2), beta1=beta1)


@pytest.mark.parametrize("name", list(NAIVE))
def test_images(name):
    follow(name, (3, 2), updates=2, shape=SHAPE)


@pytest.mark.parametrize("name", list(NAIVE))
def test_float32_stays_within_rounding(name):
    """After three small steps the distance of all parameters is rounding."""
    rates, shape = {"lr": 1e-4, "lr_g": 1e-4, "lr_d": 1e-4}, input_shape(name)
    algorithm = build(name, shape=shape, **{**SMALL_MLP, **rates})
    naive = NAIVE[name].twin(algorithm, 2)
    for step in range(3):
        minibatches = random_minibatches((4, 3), step, shape)
        algorithm.update(minibatches)
        naive.update(minibatches)
    own, reference = (
        flat_parameters(*[getattr(side, module) for module in naive.compared])
        for side in (algorithm, naive)
    )
    assert (own - reference).abs().mean() < 1e-7
