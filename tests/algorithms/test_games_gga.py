"""BIRM, IRMGames, GGA and GGA_L: loops in float64 over several updates, in both readings."""

from __future__ import annotations

import copy

import pytest
import torch
from helpers import build, flat_parameters, random_minibatches
from references import concatenated, mean_loss

from domainbed.algorithms.gga import aligned
from domainbed.config.run_facts import RunFacts

VECTORS, SIZES = (6,), (2, 5, 3)
CHANGES = {"weight_decay": 0.01, "mlp_width": 8, "mlp_depth": 3, "mlp_dropout": 0.0}


def small(name, **changes):
    hparams = {**CHANGES, **changes}
    return build(name, len(SIZES), dtype=torch.float64, shape=VECTORS, **hparams)


def vectors(step):
    return random_minibatches(SIZES, step, VECTORS, dtype=torch.float64)


def adam_of(network, algorithm, factor=1.0):
    rate = factor * algorithm.hparams["lr"]
    return torch.optim.Adam(network.parameters(), lr=rate, weight_decay=0.01)


def assert_same(algorithm, network):
    ours, expected = flat_parameters(algorithm.network), flat_parameters(network)
    torch.testing.assert_close(ours, expected, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("fidelity", ["paper", "authors"])
def test_updates_of_birm_follow_loops(fidelity):
    """Over the switch, with scales drawn as large as they come, and one of less than 1."""
    birm = small("BIRM", fidelity=fidelity, birm_penalty_anneal_iters=2, birm_lambda=7.0)
    birm.facts = RunFacts(group_sizes=(1500, 1500, 1000))
    network, draws = copy.deepcopy(birm.network), copy.deepcopy(birm.draws)
    adam = adam_of(network, birm)
    for step in range(4):
        minibatches = vectors(step)
        u = (1 + 1200 / 4000 * draws.normal(10, 3)).double()
        squares = []
        for draw in range(10):
            for e, (x, y) in enumerate(minibatches):
                scale = u[draw, e].clone().requires_grad_()
                loss = mean_loss(scale * network(x), y)
                squares.append(torch.autograd.grad(loss, scale, create_graph=True)[0] ** 2)
        x, y = concatenated(minibatches)
        risk = mean_loss(network(x), y)
        if fidelity == "authors":
            noisy = [u[9, e] * network(x_e) for e, (x_e, _) in enumerate(minibatches)]
            risk = mean_loss(torch.cat(noisy), y)
        loss = risk if step < 2 else (risk + 7 * sum(squares) / 30) / 8
        adam.zero_grad()
        loss.backward()
        adam.step()
        assert birm.update(minibatches)["loss"] == pytest.approx(loss.item(), rel=1e-9)
        assert_same(birm, network)


def test_birm_outside_a_run_has_no_spread_and_divides_by_no_small_weight():
    birm = small("BIRM", birm_penalty_anneal_iters=0, birm_lambda=0.5)
    loss, parts = birm.objective(vectors(0))
    assert loss.item() == pytest.approx((parts["nll"] + 0.5 * parts["penalty"]).item())
    assert birm.objective(vectors(0))[0].item() == loss.item()


@pytest.mark.parametrize("fidelity", ["paper", "authors"])
@pytest.mark.parametrize("game", ["variable", "fixed"])
def test_turns_of_irm_games_follow_loops(game, fidelity):
    games = small("IRMGames", irm_game=game, fidelity=fidelity)
    shared, heads = copy.deepcopy(games.featurizer), copy.deepcopy(games.classifier.members)
    adams = [adam_of(head, games) for head in heads]
    turns = [0, 1, 2]
    if game == "variable":
        adams.append(adam_of(shared, games, 0.1))
        turns = [3, 2, 1, 0]
    for step in range(6):
        minibatches = vectors(step)
        turn = turns[step % len(turns)]
        x, y = concatenated(minibatches) if turn == 3 else minibatches[turn]
        share = 0.5 if fidelity == "authors" else 1 / 3
        loss = mean_loss(sum(share * head(shared(x)) for head in heads), y)
        for adam in adams:
            adam.zero_grad()
        loss.backward()
        adams[turn].step()
        assert games.update(minibatches)["loss"] == pytest.approx(loss.item(), rel=1e-9)
        ours = flat_parameters(games.featurizer, games.classifier)
        torch.testing.assert_close(ours, flat_parameters(shared, heads), rtol=1e-9, atol=1e-9)
    predicted = sum(share * head(shared(x)) for head in heads)
    torch.testing.assert_close(games.predict(x), predicted)


def test_games_on_features_without_a_layer_are_those_of_the_heads():
    games = small("IRMGames", featurizer="UnitFeatures")
    assert games.turns == [0, 1, 2]


def gradient(network, x, y):
    loss = mean_loss(network(x), y)
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(network.parameters()))])


def cosines(network, minibatches):
    g = [gradient(network, *pair) for pair in minibatches]
    return [
        ((g[i] @ g[j]) / (g[i] @ g[i]) ** 0.5 / (g[j] @ g[j]) ** 0.5).item()
        for i in range(3)
        for j in range(i + 1, 3)
    ]


def test_alignment_by_hand():
    rows = torch.tensor([[3.0, 4.0], [4.0, 3.0], [0.0, -2.0]])
    torch.testing.assert_close(aligned([rows]), torch.tensor([0.96, -0.8, -0.6]))


@pytest.mark.parametrize("fidelity", ["paper", "authors"])
def test_updates_of_gga_follow_loops(fidelity):
    """Searches at steps 1 and 2 alone; some places are taken, and others are not."""
    search = {"gga_start": 1, "gga_end": 2, "gga_searches": 12, "gga_noise": 0.03}
    gga = small("GGA", fidelity=fidelity, **search)
    gga.facts = RunFacts()
    network, draws, taken = copy.deepcopy(gga.network), copy.deepcopy(gga.draws), 0
    adam = adam_of(network, gga)
    for step in range(4):
        gga.facts.begin(step)
        minibatches = vectors(step)
        x, y = concatenated(minibatches)
        start = best = copy.deepcopy(network[0].state_dict())
        similarity, risk = min(cosines(network, minibatches)), mean_loss(network(x), y).item()
        for _ in range(12 if step in (1, 2) else 0):
            with torch.no_grad():
                for w in network[0].parameters():
                    w += 0.03 * (2 * draws.uniform(*w.shape).double() - 1)
            found, loss = min(cosines(network, minibatches)), mean_loss(network(x), y).item()
            if loss - risk < 0.1 and found > similarity:
                taken += 1
                similarity, risk, best = found, loss, copy.deepcopy(network[0].state_dict())
                network[0].load_state_dict(start)
            elif fidelity == "paper":
                network[0].load_state_dict(start)
        network[0].load_state_dict(best)
        loss = mean_loss(network(x), y)
        adam.zero_grad()
        loss.backward()
        adam.step()
        assert gga.update(minibatches)["loss"] == pytest.approx(loss.item(), rel=1e-9)
        assert_same(gga, network)
    assert 0 < taken < 24


def test_a_search_does_not_depend_on_the_layout_of_weights():
    """Runs keep kernels with their channels last."""
    plain, last = build("GGA", gga_noise=0.1), build("GGA", gga_noise=0.1)
    last.to(memory_format=torch.channels_last)
    for gga in (plain, last):
        gga.search(random_minibatches((3, 2)))
    ours, theirs = flat_parameters(last.network), flat_parameters(plain.network)
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("fidelity", ["paper", "authors"])
def test_updates_of_gga_l_follow_loops(fidelity):
    gga = small("GGA_L", fidelity=fidelity, gga_l_gamma=0.3)
    network, draws = copy.deepcopy(gga.network), copy.deepcopy(gga.draws)
    adam = adam_of(network, gga)
    for step in range(4):
        minibatches = vectors(step)
        noise = 0.3 * (1 - sum(cosines(network, minibatches)) / 3)
        along = gradient(network, *concatenated(minibatches))
        drawn = [
            draws.normal(*w.shape) if fidelity == "authors" else 2 * draws.uniform(*w.shape) - 1
            for w in network.parameters()
        ]
        drawn = torch.cat([each.flatten() for each in drawn])
        along = along + noise * drawn.double()
        start = 0
        for w in network.parameters():
            w.grad = along[start : start + w.numel()].view_as(w)
            start += w.numel()
        adam.step()
        gga.update(minibatches)
        assert_same(gga, network)
