"""All methods, statistics and losses against one loop over samples that is written here."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from domainbed import gradients
from domainbed.gradients import (
    gradient_covariances,
    gradient_means,
    gradient_second_moments,
    gradient_variances,
)

SIZES, WIDTH, CLASSES = [4, 3, 5], 6, 3
STATISTICS = {
    gradient_variances: lambda g: (g - g.mean(0)).square().mean(0),
    gradient_means: lambda g: g.mean(0),
    gradient_second_moments: lambda g: g.square().mean(0),
    gradient_covariances: lambda g: (g - g.mean(0)).T @ (g - g.mean(0)) / len(g),
}


def linear():
    return nn.Linear(WIDTH, CLASSES)


def nonlinear():
    return nn.Sequential(
        nn.Linear(WIDTH, 5), nn.ReLU(), nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, CLASSES)
    )


def convolution():
    return nn.Sequential(
        nn.Unflatten(1, (2, 3)), nn.Conv1d(2, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(6, CLASSES)
    )


def normalised():
    return nn.Sequential(
        nn.Linear(WIDTH, 4),
        nn.LayerNorm(4),
        nn.GELU(),
        nn.GroupNorm(2, 4),
        nn.BatchNorm1d(4).eval(),
        nn.Linear(4, CLASSES),
    )


CASES = [
    *[(linear, method) for method in gradients.METHODS],
    *[(nonlinear, method) for method in gradients.METHODS],
    *[(convolution, method) for method in ("auto", "backpack", "func", "loop")],
    *[(normalised, method) for method in ("auto", "func", "loop")],
]


def make(new, dtype=torch.float64, seed=0):
    torch.manual_seed(seed)
    head = new().to(dtype)
    for module in head.modules():
        if isinstance(module, nn.BatchNorm1d):
            module.running_mean.uniform_(-1, 1)
            module.running_var.uniform_(0.5, 2)
    features = torch.randn(sum(SIZES), WIDTH, dtype=dtype, requires_grad=True)
    return head, features, torch.randint(CLASSES, (sum(SIZES),))


def naive(statistic, head, features, labels, loss=F.cross_entropy, parameters=None):
    """Plain autograd, a sample at a time."""
    chosen = [p for n, p in head.named_parameters() if parameters is None or n in parameters]
    rows = []
    for x, y in zip(features, labels, strict=True):
        sample = torch.autograd.grad(loss(head(x[None]), y[None]), chosen, create_graph=True)
        rows.append(torch.cat([g.flatten() for g in sample]))
    return torch.stack([STATISTICS[statistic](g) for g in torch.stack(rows).split(SIZES)])


def derivatives(value, targets):
    weights = torch.linspace(-1, 2, value.numel(), dtype=value.dtype).view_as(value)
    found = torch.autograd.grad((weights * value.square()).sum(), targets, allow_unused=True)
    return [torch.zeros_like(t) if g is None else g for g, t in zip(found, targets, strict=True)]


def assert_same(actual, expected):
    """To 1e-5 of the largest entry, and entry by entry where they are not tiny."""
    assert actual.shape == expected.shape
    torch.testing.assert_close(
        actual, expected, rtol=1e-5, atol=1e-7 * expected.detach().abs().max().item() + 1e-30
    )


@pytest.mark.parametrize("statistic", list(STATISTICS), ids=lambda s: s.__name__)
@pytest.mark.parametrize(("new", "method"), CASES, ids=lambda c: getattr(c, "__name__", c))
def test_values_and_second_derivatives(new, method, statistic):
    head, features, labels = make(new)
    targets = [features, *head.parameters()]
    expected = naive(statistic, head, features, labels)
    actual = statistic(head, features, labels, SIZES, method=method)
    assert_same(actual, expected)
    for mine, theirs in zip(
        derivatives(actual, targets), derivatives(expected, targets), strict=True
    ):
        assert_same(mine, theirs)
    assert not any(hasattr(p, "grad_batch") or p.grad is not None for p in head.parameters())
    assert not any(m._forward_hooks or m._backward_hooks for m in head.modules())


@pytest.mark.parametrize("new", [linear, nonlinear])
def test_third_derivatives_of_the_closed_form(new):
    """Its backward pass is written by hand, and must itself have the right derivative."""
    head, features, labels = make(new)

    def penalty(z):
        return gradient_variances(head, z, labels, SIZES).square().sum(1)

    assert torch.autograd.gradgradcheck(penalty, features)


@pytest.mark.parametrize("method", ["auto", "backpack", "func", "loop"])
@pytest.mark.parametrize("chosen", [["0.bias"], ["2.weight", "2.bias"], ["4.weight", "0.weight"]])
def test_chosen_parameters(method, chosen):
    head, features, labels = make(nonlinear)
    expected = naive(gradient_variances, head, features, labels, parameters=chosen)
    actual = gradient_variances(head, features, labels, SIZES, method=method, parameters=chosen)
    assert_same(actual, expected)
    for mine, theirs in zip(
        derivatives(actual, [features, *head.parameters()]),
        derivatives(expected, [features, *head.parameters()]),
        strict=True,
    ):
        assert_same(mine, theirs)


@pytest.mark.parametrize("method", gradients.METHODS)
@pytest.mark.parametrize(("outputs", "label_shape"), [(1, ()), (1, (1,)), (3, (3,))])
def test_binary_cross_entropy(method, outputs, label_shape):
    torch.manual_seed(1)
    head = nn.Linear(WIDTH, outputs).double()
    features = torch.randn(12, WIDTH, dtype=torch.float64)
    labels = torch.randint(2, (12, *label_shape))

    def loss(logits, y):
        return F.binary_cross_entropy_with_logits(logits, y.double().view_as(logits))

    expected = naive(gradient_variances, head, features, labels, loss)
    assert_same(
        gradient_variances(head, features, labels, SIZES, "bce_with_logits", method=method),
        expected,
    )


@pytest.mark.parametrize("method", gradients.METHODS)
def test_a_loss_of_the_users(method):
    head, features, labels = make(nonlinear)

    def smoothed(logits, y):
        return F.cross_entropy(logits, y, reduction="none", label_smoothing=0.2)

    expected = naive(
        gradient_variances, head, features, labels, lambda o, y: smoothed(o, y).squeeze()
    )
    actual = gradient_variances(head, features, labels, SIZES, smoothed, method=method)
    assert_same(actual, expected)


def test_a_whole_network():
    """Images through convolutions, group norm, pooling and the classifier."""
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(1, 2, 3), nn.ReLU(), nn.GroupNorm(1, 2), nn.Flatten(), nn.Linear(8, 2)
    ).double()
    images = torch.randn(12, 1, 4, 4, dtype=torch.float64)
    labels = torch.arange(12) % 2
    expected = naive(gradient_variances, network, images, labels)
    assert_same(gradient_variances(network, images, labels, SIZES), expected)


def test_a_layer_that_vmap_does_not_know_goes_through_the_loop():
    class Signed(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(WIDTH, CLASSES)

        def forward(self, x):
            return self.linear(x if x.sum().item() > 0 else -x)

    head, features, labels = make(Signed)
    expected = naive(gradient_variances, head, features, labels)
    with pytest.warns(UserWarning, match="in a loop, because vmap fails"):
        actual = gradient_variances(head, features, labels, SIZES)
    assert_same(actual, expected)


def test_backpack_refuses_what_it_would_get_wrong():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.square, self.last = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, CLASSES)

        def forward(self, x):
            return self.last(self.square(self.square(x)))

    head, features, labels = make(Twice)
    with pytest.raises(ValueError, match="BackPACK cannot do this head"):
        gradient_variances(head, features, labels, SIZES, method="backpack")
    expected = naive(gradient_variances, head, features, labels)
    assert_same(gradient_variances(head, features, labels, SIZES), expected)
    with pytest.raises(ValueError, match="BackPACK cannot do this head"):
        gradient_variances(*make(normalised), SIZES, method="backpack")
    tied = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh(), nn.Linear(WIDTH, WIDTH))
    tied[2].weight = tied[0].weight
    with pytest.raises(ValueError, match="share a parameter"):
        gradient_variances(tied.double(), features, labels, SIZES, method="backpack")
    expected = naive(gradient_variances, tied, features, labels)
    assert_same(gradient_variances(tied, features, labels, SIZES), expected)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "magic"}, "method is 'magic': expected one of auto, closed_form"),
        ({"loss": "hinge"}, "loss is 'hinge': expected cross_entropy, bce_with_logits"),
        ({"parameters": ["bia"]}, "no parameter 'bia' in the head, which has weight, bias"),
        ({"domain_sizes": [12, 0]}, "each domain needs one or more"),
        ({"loss": lambda logits, y: F.cross_entropy(logits, y)}, "must give one number a sample"),
    ],
)
def test_errors(changes, message):
    head, features, labels = make(linear)
    arguments = {"domain_sizes": SIZES} | changes
    with pytest.raises(ValueError, match=message):
        gradient_variances(head, features, labels, **arguments)


def test_full_covariances_have_a_limit():
    head = nn.Linear(2048, 7)
    with pytest.raises(ValueError, match=r"14,343 parameters would have 205,721,649 entries"):
        gradient_covariances(head, torch.rand(2, 2048), torch.tensor([0, 1]), [2])
    with pytest.raises(ValueError, match=r"'closed_form' needs .* a sequence of different linear"):
        gradient_variances(*make(normalised), SIZES, method="closed_form")
