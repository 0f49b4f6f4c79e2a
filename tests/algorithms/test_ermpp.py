"""ERM++: its warm-up, its average and its optimizers."""

from __future__ import annotations

import copy

import pytest
import torch
from helpers import CLASSES, build, flat_parameters, random_minibatches
from torch import nn

from domainbed.algorithms import ERMPlusPlus
from domainbed.algorithms.erm_plus_plus import LARS, PlateauRates, mean_rate
from domainbed.algorithms.fish import move_towards
from domainbed.errors import UserError
from domainbed.networks.featurizer import NETWORKS
from domainbed.spec import RunSpec

VECTORS = (6,)
SMALL = {"mlp_width": 8, "mlp_depth": 3, "mlp_dropout": 0.0}


def ermpp(**overrides):
    return build("ERMPlusPlus", shape=VECTORS, dtype=torch.float64, **{**SMALL, **overrides})


def updated(algorithm, updates, shape=VECTORS):
    """The weights of the network after each update."""
    found = []
    for step in range(updates):
        algorithm.update(random_minibatches((4, 3), step, shape, dtype=torch.float64))
        found.append(flat_parameters(algorithm.network))
    return found


def test_move_towards():
    network, target = nn.Linear(2, 1), nn.Linear(2, 1)
    start, end = network.weight.detach().clone(), target.weight.detach().clone()
    move_towards(network, target, 0.25)
    torch.testing.assert_close(network.weight.detach(), 0.75 * start + 0.25 * end)
    torch.testing.assert_close(target.weight.detach(), end)
    move_towards(network, target, 1)
    assert torch.equal(network.weight, target.weight)


@pytest.mark.parametrize("start", [1, 2, 4, 9])
def test_the_mean_begins_with_the_weights_before_the_start(start):
    """By hand, with single numbers in place of weights; the first is that before any update."""
    average, values = nn.Linear(1, 1, bias=False).double(), [3.0, -1.0, 4.0, 1.0, -5.0, 9.0]
    nn.init.constant_(average.weight, values[0])
    network = copy.deepcopy(average)
    for update in range(1, len(values)):
        nn.init.constant_(network.weight, values[update])
        move_towards(average, network, mean_rate(update, start))
        counted = values[start - 1 : update + 1] if update >= start else [values[update]]
        assert average.weight.item() == pytest.approx(sum(counted) / len(counted), rel=1e-14)


def test_integers_are_not_averaged():
    network, average = nn.BatchNorm1d(2), nn.BatchNorm1d(2)
    network(torch.randn(8, 2))
    move_towards(average, network, 0.5)
    assert (network.num_batches_tracked, average.num_batches_tracked) == (1, 0)
    torch.testing.assert_close(average.running_mean, network.running_mean / 2)


@pytest.mark.parametrize("linear_steps", [0, 2])
def test_the_head_warms_up_for_one_update_more_than_its_name_says(linear_steps):
    algorithm = ermpp(linear_steps=linear_steps)
    start, head = flat_parameters(algorithm.featurizer), flat_parameters(algorithm.classifier)
    for step in range(linear_steps + 1):
        algorithm.update(random_minibatches((4, 3), step, VECTORS, dtype=torch.float64))
        assert torch.equal(flat_parameters(algorithm.featurizer), start)
        assert all(p.grad is None for p in algorithm.featurizer.parameters())
        assert not torch.equal(flat_parameters(algorithm.classifier), head)
    algorithm.update(random_minibatches((4, 3), 9, VECTORS, dtype=torch.float64))
    assert not torch.equal(flat_parameters(algorithm.featurizer), start)


def test_the_warm_up_has_its_own_rate_and_moments():
    """Adam's first step is as long as its rate; after the warm-up, the first of another Adam."""
    algorithm = ermpp(linear_steps=0, linear_lr=0.5, lr=1e-3)
    head = flat_parameters(algorithm.classifier)
    first, second = updated(algorithm, 2)
    warmed = first[-len(head) :]
    assert (warmed - head).abs().max() == pytest.approx(0.5, rel=1e-4)
    assert (second - first).abs().max() == pytest.approx(1e-3, rel=1e-4)


def test_it_predicts_with_the_mean_and_trains_the_network():
    algorithm = ermpp(linear_steps=0, sma_start=3, lr=0.05)
    weights = updated(algorithm, 5)
    mean = torch.stack(weights[1:]).mean(dim=0)
    torch.testing.assert_close(flat_parameters(algorithm.network_sma), mean)
    x = random_minibatches((5,), 7, VECTORS, dtype=torch.float64)[0][0]
    logits = algorithm.predict(x)
    assert torch.equal(logits, algorithm.network_sma(x))
    assert not torch.allclose(logits, algorithm.network(x), atol=1e-3)
    assert not logits.requires_grad


def test_without_averaging_it_predicts_with_the_network():
    algorithm = ermpp(sma_start=600)
    updated(algorithm, 3)
    assert torch.equal(flat_parameters(algorithm.network_sma), flat_parameters(algorithm.network))


class Normalised(nn.Module):
    """A featurizer of vectors with batch norm that trains, and dropout."""

    n_outputs = 4

    def __init__(self, input_shape, hparams):
        super().__init__()
        self.linear = nn.Linear(input_shape[0], 4)
        self.norm = nn.BatchNorm1d(4)

    def forward(self, x):
        return self.norm(self.linear(x))


def test_the_average_gathers_its_own_statistics(monkeypatch):
    """After the mean of all running statistics, one pass of the minibatch through the average."""
    monkeypatch.setitem(NETWORKS._entries, "Normalised", Normalised)
    algorithm = ermpp(featurizer="Normalised", linear_steps=0, sma_start=2, lr=0.1).train()
    own = torch.zeros(4, dtype=torch.float64)
    network = torch.zeros(4, dtype=torch.float64)
    for step in range(4):
        minibatches = random_minibatches((4, 3), step, VECTORS, dtype=torch.float64)
        x = torch.cat([x for x, _ in minibatches])
        with torch.no_grad():
            network = 0.9 * network + 0.1 * algorithm.featurizer.linear(x).mean(dim=0)
        algorithm.update(minibatches)
        weight = 1.0 if step == 0 else 1 / (step + 1)
        averaged = algorithm.network_sma[0]
        own = own + weight * (network - own)
        with torch.no_grad():
            own = 0.9 * own + 0.1 * averaged.linear(x).mean(dim=0)
        torch.testing.assert_close(algorithm.featurizer.norm.running_mean, network)
        torch.testing.assert_close(averaged.norm.running_mean, own)
        assert algorithm.featurizer.norm.training
        assert not averaged.norm.training


def test_the_average_is_never_in_training_mode():
    algorithm = ermpp()
    for mode in (True, False, True):
        assert algorithm.train(mode).training is mode
        assert not algorithm.network_sma.training
    assert not any(p.requires_grad for p in algorithm.network_sma.parameters())


def test_rates_fall_with_the_second_record_in_a_row_without_improvement():
    optimizer = torch.optim.Adam(nn.Linear(1, 1).parameters(), lr=1.0)
    schedule = PlateauRates(optimizer)
    losses = [1.0, 0.9999, 1.1, 0.5, 0.6, 0.5, 0.4, 0.4, 0.4]
    #         best, no more: a ten-thousandth is asked for, fall, best, -, fall, best, -, third fall
    ended = [schedule.follow(loss) for loss in losses]
    assert schedule.rates == pytest.approx([1, 1, 0.1, 0.1, 0.1, 0.01, 0.01, 0.01, 0.001])
    assert ended == [False] * 8 + [True]
    schedule.to_come = [0.5, 0.25]
    assert [(schedule.replay(), schedule.rate) for _ in range(2)] == [(False, 0.5), (True, 0.25)]
    assert optimizer.param_groups[0]["lr"] == 0.25


def test_permuted_domains_and_samples_give_the_same_weights():
    first, second = ermpp(lr=0.01), ermpp(lr=0.01)
    for step in range(3):
        minibatches = random_minibatches((4, 3), step, VECTORS, dtype=torch.float64)
        first.update(minibatches)
        second.update([(x.flip(0), y.flip(0)) for x, y in reversed(minibatches)])
    for side in ("network", "network_sma"):
        own, other = (flat_parameters(getattr(a, side)) for a in (first, second))
        torch.testing.assert_close(own, other, rtol=1e-9, atol=1e-9)


def test_state_dicts_load_before_and_after_the_first_update():
    trained = ermpp(lr=0.05)
    updated(trained, 3)
    fresh = build("ERMPlusPlus", seed=5, shape=VECTORS, dtype=torch.float64, **SMALL)
    fresh.load_state_dict(trained.state_dict())
    trained.load_state_dict(fresh.state_dict())
    assert fresh.updates_done() == 3
    x = random_minibatches((5,), 7, VECTORS, dtype=torch.float64)[0][0]
    assert torch.equal(fresh.predict(x), trained.predict(x))


def naive_lars(weight, gradient, moment, lr, decay):
    """One tensor's step, by its definition."""
    if weight.dim() > 1:
        gradient = gradient + decay * weight
        norms = weight.square().sum().sqrt().item(), gradient.square().sum().sqrt().item()
        if all(norms):
            gradient = gradient * (0.001 * norms[0] / norms[1])
    moment = 0.9 * moment + gradient
    return weight - lr * moment, moment


@pytest.mark.parametrize("decay", [0.0, 0.3])
def test_lars(decay):
    torch.manual_seed(0)
    layer = nn.Linear(3, 2).double()
    nn.init.zeros_(layer.bias)
    optimizer = LARS(layer.parameters(), lr=0.7, weight_decay=decay)
    state = [(p.detach().clone(), torch.zeros_like(p)) for p in layer.parameters()]
    for _ in range(3):
        gradients = [torch.randn_like(p) for p in layer.parameters()]
        for parameter, gradient in zip(layer.parameters(), gradients, strict=True):
            parameter.grad = gradient
        optimizer.step()
        moved = zip(state, gradients, strict=True)
        state = [naive_lars(w, g, m, 0.7, decay) for (w, m), g in moved]
        for parameter, (expected, _) in zip(layer.parameters(), state, strict=True):
            torch.testing.assert_close(parameter.detach(), expected)


def test_lars_leaves_tensors_alone_that_have_no_gradient_or_no_length():
    layer = nn.Linear(2, 2).double()
    nn.init.zeros_(layer.weight)
    optimizer = LARS(layer.parameters(), lr=1.0, weight_decay=0.1)
    layer.weight.grad = torch.ones_like(layer.weight)
    bias = layer.bias.detach().clone()
    optimizer.step()
    assert torch.equal(layer.weight, -torch.ones_like(layer.weight))  # a plain step
    assert torch.equal(layer.bias, bias)


def test_lars_trains_head_and_network():
    algorithm = ermpp(lars=True, linear_steps=0, lr=1.0, linear_lr=1.0)
    start = flat_parameters(algorithm.network)
    assert isinstance(algorithm.optimizer, LARS)
    first, second = updated(algorithm, 2)
    head = CLASSES * 8 + CLASSES
    assert torch.equal(first[:-head], start[:-head])
    assert not torch.equal(first[-head:], start[-head:])
    assert not torch.equal(second[:-head], first[:-head])
    assert second.isfinite().all()


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("linear_lr", 0.0, "above 0"),
        ("linear_steps", -1, "from 0 on"),
        ("sma_start", 0, "from 1 on"),
        ("lars", 1, "expected true or false .default False"),
    ],
)
def test_values_that_cannot_be(name, value, says):
    with pytest.raises(UserError, match=says):
        RunSpec.create("ColoredDigits", "ERMPlusPlus", [0], hparams={name: value})


def test_the_options_of_the_published_search_space_stay_out_of_records():
    spec = RunSpec.create("PACS", "ERMPlusPlus", [0])
    assert spec.hparams["linear_lr"] == 5e-5
    assert not set(ERMPlusPlus.options) & set(spec.hparams)


@pytest.mark.parametrize("name", ["ERMPlusPlus", "Fishr+ERMPlusPlus"])
def test_what_predicts_is_what_is_diagnosed(name):
    algorithm = build(name, shape=VECTORS, dtype=torch.float64, **SMALL, lr=0.05)
    trained = getattr(algorithm, "base", algorithm).network
    for step in range(4):
        algorithm.update(random_minibatches((4, 3), step, VECTORS, dtype=torch.float64))
    x = random_minibatches((5,), 7, VECTORS, dtype=torch.float64)[0][0]
    parts = nn.Sequential(*algorithm.predicting_parts())
    assert torch.equal(parts(x), algorithm.predict(x))
    assert not torch.allclose(parts(x), trained(x), atol=1e-4)
