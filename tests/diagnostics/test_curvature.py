"""Curvatures of a head: against loops over samples, finite differences, BackPACK, and by hand."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from domainbed.diagnostics import curvature
from domainbed.errors import UserError

WIDTH, CLASSES, SAMPLES = 4, 3, 9


def heads():
    return {
        "linear": lambda: nn.Linear(WIDTH, CLASSES),
        "no bias": lambda: nn.Linear(WIDTH, CLASSES, bias=False),
        "relu": lambda: nn.Sequential(nn.Linear(WIDTH, 5), nn.ReLU(), nn.Linear(5, CLASSES)),
        "tanh": lambda: nn.Sequential(nn.Linear(WIDTH, 5), nn.Tanh(), nn.Linear(5, CLASSES)),
        "layer norm": lambda: nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, CLASSES)),
    }


def build(name):
    """A head in double precision, with features and labels."""
    torch.manual_seed(2)
    head = heads()[name]().double()
    features = torch.randn(SAMPLES, WIDTH, dtype=torch.float64)
    return head, features, torch.arange(SAMPLES) % CLASSES


@pytest.fixture(params=heads())
def case(request):
    return build(request.param)


def vector(tensors):
    return torch.cat([tensor.detach().flatten() for tensor in tensors])


def sample_gradients(head, features, labels):
    """(n, P), one backward pass each."""
    rows = []
    for x, y in zip(features, labels):
        loss = F.cross_entropy(head(x.unsqueeze(0)), y.unsqueeze(0))
        rows.append(vector(torch.autograd.grad(loss, list(head.parameters()))))
    return torch.stack(rows)


def hessian_by_differences(head, features, labels, step=1e-5):
    """(P, P): central differences of the risk's gradient."""

    def gradient(weights):
        moved = copy.deepcopy(head)
        nn.utils.vector_to_parameters(weights, moved.parameters())
        risk = F.cross_entropy(moved(features), labels)
        return vector(torch.autograd.grad(risk, list(moved.parameters())))

    start = vector(head.parameters())
    moves = step * torch.eye(len(start), dtype=torch.float64)
    rows = [(gradient(start + move) - gradient(start - move)) / (2 * step) for move in moves]
    return torch.stack(rows)


def test_gradient_statistics(case):
    head, features, labels = case
    g = sample_gradients(head, features, labels)
    torch.testing.assert_close(curvature.gradient_mean(*case), g.mean(dim=0))
    torch.testing.assert_close(curvature.gradient_variance(*case), g.var(dim=0, unbiased=False))
    torch.testing.assert_close(curvature.empirical_fisher(*case), g.square().mean(dim=0))
    assert not curvature.empirical_fisher(*case).requires_grad


def test_true_fisher(case):
    head, features, _ = case
    expected = 0
    for c in range(CLASSES):
        probabilities = head(features).softmax(dim=1)[:, c].detach()
        g = sample_gradients(head, features, torch.full((SAMPLES,), c))
        expected = expected + (probabilities.unsqueeze(1) * g.square()).mean(dim=0)
    torch.testing.assert_close(curvature.true_fisher(*case), expected)


def test_hessians(case):
    expected = hessian_by_differences(*case)
    torch.testing.assert_close(curvature.full_hessian(*case), expected, rtol=1e-6, atol=1e-8)
    diagonal = curvature.hessian_diagonal(*case)
    torch.testing.assert_close(diagonal, expected.diagonal(), rtol=1e-6, atol=1e-8)
    assert expected.diagonal().abs().max() > 0.01


@pytest.mark.parametrize("name", ["linear", "no bias", "relu"])
def test_true_fisher_is_the_hessians_diagonal_where_logits_are_linear(name):
    case = build(name)
    assert curvature.is_piecewise_linear(case[0])
    torch.testing.assert_close(curvature.true_fisher(*case), curvature.hessian_diagonal(*case))


def test_true_fisher_is_not_the_hessians_diagonal_of_a_curved_head():
    case = build("tanh")
    assert not curvature.is_piecewise_linear(case[0])
    difference = curvature.true_fisher(*case) - curvature.hessian_diagonal(*case)
    assert difference.abs().max() > 0.01


@pytest.mark.parametrize("name", ["linear", "relu", "tanh"])
def test_backpack_agrees(name):
    backpack = pytest.importorskip("backpack")
    from backpack.extensions import DiagHessian

    head, features, labels = build(name)
    expected = curvature.hessian_diagonal(head, features, labels)
    extended = backpack.extend(copy.deepcopy(head))
    loss = backpack.extend(nn.CrossEntropyLoss())(extended(features.requires_grad_()), labels)
    with backpack.backpack(DiagHessian()):
        loss.backward(inputs=[features, *extended.parameters()])
    theirs = vector([parameter.diag_h for parameter in extended.parameters()])
    torch.testing.assert_close(expected, theirs)


def test_logistic_regression_by_hand():
    """Zero weights and two classes: p = 1/2, so g = ±z/2 and every curvature is E z² / 4."""
    head = nn.Linear(2, 2).double()
    nn.utils.vector_to_parameters(torch.zeros(6, dtype=torch.float64), head.parameters())
    features = torch.tensor([[1.0, 2.0], [3.0, -2.0]], dtype=torch.float64)
    case = head, features, torch.tensor([0, 1])
    expected = torch.tensor([1.25, 1, 1.25, 1, 0.25, 0.25], dtype=torch.float64)
    for name in ("empirical_fisher", "true_fisher", "hessian"):
        torch.testing.assert_close(curvature.DIAGONAL_CURVATURES[name](*case), expected)
    # class 0: g = (−1/2, −1) and (3/2, −1), the bias −1/2 and 1/2; class 1 the opposite
    mean = torch.tensor([0.5, -1, -0.5, 1, 0, 0], dtype=torch.float64)
    torch.testing.assert_close(curvature.gradient_mean(*case), mean)
    variance = torch.tensor([1, 0, 1, 0, 0.25, 0.25], dtype=torch.float64)
    torch.testing.assert_close(curvature.gradient_variance(*case), variance)
    full = curvature.full_hessian(*case)
    assert full[0, 1].item() == pytest.approx((1 * 2 - 3 * 2) / 2 / 4)
    assert full[0, 2].item() == pytest.approx(-1.25)
    assert full[0, 4].item() == pytest.approx(0.5)


@pytest.mark.parametrize("name", ["hessian", "full_hessian"])
def test_large_heads_are_refused(name, monkeypatch):
    monkeypatch.setattr(curvature, "MOST_ROWS", 60)
    function = {"hessian": curvature.hessian_diagonal, "full_hessian": curvature.full_hessian}[name]
    features, labels = torch.randn(3, 6), torch.tensor([0, 1, 2])
    small = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3))  # 53 parameters
    assert len(function(small, features, labels)) == 53
    large = nn.Sequential(nn.Linear(6, 7), nn.Tanh(), nn.Linear(7, 3))  # 73
    with pytest.raises(UserError, match=rf"{name}.* at most 60 parameters.* has 73: choose"):
        function(large, features, labels)


def test_the_diagonal_of_a_large_piecewise_linear_head_is_no_matter():
    head = nn.Sequential(nn.Linear(100, 50), nn.ReLU(), nn.Linear(50, 3))
    assert sum(p.numel() for p in head.parameters()) > curvature.MOST_ROWS
    diagonal = curvature.hessian_diagonal(head, torch.randn(5, 100), torch.arange(5) % 3)
    assert diagonal.shape == (5203,)
    assert diagonal.min() >= 0 < diagonal.max()
