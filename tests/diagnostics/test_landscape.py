"""Risks along a line and on a plane, against networks that are built at each point."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from domainbed.diagnostics.landscape import (
    filter_normalised_direction,
    risks_along,
    risks_on_plane,
)


def parameters(module):
    return {name: p.detach().clone() for name, p in module.named_parameters()}


def risk_at(module, weights, x, y):
    moved = copy.deepcopy(module)
    moved.load_state_dict(weights)
    return F.cross_entropy(moved(x), y).item()


@pytest.fixture
def case():
    """Two sets of weights of a small network, and data."""
    torch.manual_seed(0)
    first = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    second = copy.deepcopy(first)
    for parameter in second.parameters():
        parameter.data += torch.randn_like(parameter)
    return first, second, torch.randn(10, 3, dtype=torch.float64), torch.arange(10) % 2


def test_line(case):
    first, second, x, y = case
    a, b, positions = parameters(first), parameters(second), [-0.5, 0.0, 0.3, 1.0, 1.5]
    batches = [(x[:7], y[:7]), (x[7:], y[7:])]  # of different sizes
    found = risks_along(first, a, b, positions, iter(batches))
    points = [{name: (1 - t) * a[name] + t * b[name] for name in a} for t in positions]
    assert found == pytest.approx([risk_at(first, point, x, y) for point in points])
    assert found[1] == pytest.approx(risk_at(first, a, x, y))
    assert found[3] == pytest.approx(risk_at(first, b, x, y))
    assert all(torch.equal(p, a[name]) for name, p in first.named_parameters())


def test_plane(case):
    first, second, x, y = case
    origin, along_x = parameters(first), parameters(second)
    along_y = filter_normalised_direction(along_x, seed=0)
    xs, ys = [-1.0, 0.0, 2.0], [0.0, 0.5]
    found = risks_on_plane(first, origin, along_x, along_y, xs, ys, x, y)
    for row, b in zip(found, ys, strict=True):
        for risk, a in zip(row, xs, strict=True):
            point = {n: origin[n] + a * along_x[n] + b * along_y[n] for n in origin}
            assert risk == pytest.approx(risk_at(first, point, x, y))


def test_filter_normalised_direction(case):
    weights = parameters(case[0])
    direction = filter_normalised_direction(weights, seed=3)
    for name in ("0.weight", "2.weight"):
        torch.testing.assert_close(direction[name].norm(dim=1), weights[name].norm(dim=1))
        assert (direction[name] - weights[name]).abs().max() > 0.1
    assert direction["0.bias"].tolist() == [0] * 4
    again = filter_normalised_direction(weights, seed=3)
    other = filter_normalised_direction(weights, seed=4)
    assert torch.equal(direction["0.weight"], again["0.weight"])
    assert not torch.equal(direction["0.weight"], other["0.weight"])
