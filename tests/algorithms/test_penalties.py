"""The penalties as pure functions, against the naive ones and against closed forms."""

from __future__ import annotations

import pytest
import references
import torch

from domainbed.algorithms import DANN
from domainbed.algorithms.coral import coral_distance, coral_penalty
from domainbed.algorithms.dann import gradient_penalty
from domainbed.algorithms.fishr import fishr_penalty
from domainbed.algorithms.irm import irm_penalty, scale_gradient
from domainbed.algorithms.vrex import vrex_penalty


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("sizes", [(5,), (4, 3), (2, 6, 3), (2, 2, 2, 2, 2)], ids=str)
def test_coral_penalty(sizes):
    features = [random(n, 6, seed=i) for i, n in enumerate(sizes)]
    torch.testing.assert_close(coral_penalty(features), references.coral_penalty(features))


def test_coral_distance_closed_form():
    """Two points each: covariance of {-a, a} in one dimension is 2a²; the means differ by 1."""
    first = torch.tensor([[-1.0], [1.0]])
    second = torch.tensor([[-1.0], [3.0]])
    # means 0 and 1; covariances 2 and 8
    assert coral_distance(first, second).item() == 1 + 36


def test_coral_ignores_a_common_shift():
    a, b = random(4, 5), random(6, 5, seed=1)
    torch.testing.assert_close(coral_distance(a + 3, b + 3), coral_distance(a, b))


@pytest.mark.parametrize("n", [2, 3, 7])
def test_irm_penalty_and_its_gradient(n):
    labels = torch.arange(n) % 3
    logits = random(n, 3).requires_grad_()
    expected = references.irm_penalty(logits, labels)
    actual = irm_penalty(logits, labels)
    torch.testing.assert_close(actual, expected)
    gradients = [torch.autograd.grad(value, logits)[0] for value in (actual, expected)]
    torch.testing.assert_close(*gradients)


def test_scale_gradient_closed_form():
    """Equal logits l: softmax is uniform, so the derivative is l - l = 0; for (l, 0), l(p - 1)."""
    labels = torch.tensor([0])
    assert scale_gradient(torch.tensor([[2.0, 2.0]]), labels).item() == 0
    probability = torch.sigmoid(torch.tensor(1.5)).item()
    actual = scale_gradient(torch.tensor([[1.5, 0.0]]), labels).item()
    assert actual == pytest.approx(1.5 * (probability - 1), rel=1e-6)


def test_vrex_penalty():
    risks = torch.tensor([1.0, 2.0, 6.0])
    assert vrex_penalty(risks).item() == pytest.approx((4 + 1 + 9) / 3)
    assert vrex_penalty(risks[:1]).item() == 0


@pytest.mark.parametrize("domains", [1, 2, 3, 5])
def test_fishr_penalty(domains):
    variances = random(domains, 7).square()
    expected = references.fishr_penalty(list(variances))
    torch.testing.assert_close(fishr_penalty(variances), expected)


def test_fishr_penalty_closed_form():
    """Two domains, two parameters: ((1² + 1²) + (2² + 2²)) / 4."""
    assert fishr_penalty(torch.tensor([[1.0, 5.0], [3.0, 1.0]])).item() == 2.5


def test_gradient_penalty_of_a_linear_loss_is_the_squared_norm():
    weights, features = random(4), random(3, 4, seed=1).requires_grad_()
    actual = gradient_penalty((features @ weights).sum(), features)
    torch.testing.assert_close(actual, weights.square().sum())


def test_dann_loss_of_uniform_discriminator_is_log_of_domains():
    hparams = {
        **{"mlp_width": 4, "mlp_depth": 3, "mlp_dropout": 0.0, "nonlinear_classifier": False},
        **{"lr_d": 1e-3, "lr_g": 1e-3, "weight_decay_d": 0.0, "weight_decay_g": 0.0},
        **{"beta1": 0.5, "grad_penalty": 3.0, "lambda": 1.0, "d_steps_per_g_step": 1},
    }
    algorithm = DANN((1, 8, 8), 2, 3, hparams)
    torch.nn.init.zeros_(algorithm.discriminator.output.weight)
    torch.nn.init.zeros_(algorithm.discriminator.output.bias)
    loss = algorithm.discriminator_loss(torch.randn(6, 128), [1, 2, 3])
    assert loss.item() == pytest.approx(torch.log(torch.tensor(3.0)).item(), rel=1e-6)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_fishr_penalty_has_the_derivatives_of_its_formula(reduction):
    torch.manual_seed(0)
    values = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)

    def penalty(values):
        return fishr_penalty(values, reduction)

    assert torch.autograd.gradcheck(penalty, values)
    assert torch.autograd.gradgradcheck(penalty, values)
    same = torch.ones(2, 5, requires_grad=True)
    (gradient,) = torch.autograd.grad(penalty(same), same)
    assert gradient.tolist() == [[0.0] * 5] * 2
