"""Heads, modes and losses that a method must not get silently wrong."""

from __future__ import annotations

import pytest
import torch
from helpers import CLASSES, build, random_minibatches
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import prune

from domainbed.errors import UserError
from domainbed.gradients import METHODS, gradient_variances

SIZES, WIDTH = [3, 2], 6


class Attention(nn.Module):
    """Three tokens of two features, through fused attention."""

    def __init__(self):
        super().__init__()
        self.project, self.last = nn.Linear(2, 6), nn.Linear(6, CLASSES)

    def forward(self, x):
        query, key, value = self.project(x.view(-1, 1, 3, 2)).chunk(3, dim=-1)
        return self.last(F.scaled_dot_product_attention(query, key, value).flatten(1))


class Hardened(nn.Module):
    def __init__(self, sigmoid):
        super().__init__()
        self.first, self.last, self.sigmoid = nn.Linear(WIDTH, 4), nn.Linear(4, CLASSES), sigmoid

    def forward(self, x):
        return self.last(self.sigmoid(self.first(x)))


def hooked(where):
    head = nn.Sequential(nn.Linear(WIDTH, 5), nn.Tanh(), nn.Linear(5, CLASSES))
    (head if where == "sequence" else head[0]).register_forward_hook(lambda m, i, o: 2 * o)
    return head


def pruned():
    head = nn.Linear(WIDTH, CLASSES)
    prune.l1_unstructured(head, "weight", amount=0.5)
    return head


HEADS = {
    "attention": Attention,
    "hooked sequence": lambda: hooked("sequence"),
    "hooked layer": lambda: hooked("layer"),
    "pruned": pruned,
    "old weight norm": lambda: nn.utils.weight_norm(nn.Linear(WIDTH, CLASSES)),
    "spectral norm": lambda: nn.Sequential(
        nn.Flatten(), nn.utils.spectral_norm(nn.Linear(WIDTH, CLASSES)).eval()
    ),
    "half frozen": lambda: nn.Sequential(
        nn.Flatten(), nn.Linear(WIDTH, 4).requires_grad_(False), nn.Linear(4, CLASSES)
    ),
}


def make(head):
    torch.manual_seed(0)
    return head().double(), torch.randn(5, WIDTH).double(), torch.tensor([0, 1, 2, 1, 0])


def naive(head, features, labels, loss=F.cross_entropy):
    parameters = [p for p in head.parameters() if p.requires_grad]
    rows = []
    for x, y in zip(features, labels, strict=True):
        value = loss(head(x[None]), y[None])
        gradients = torch.autograd.grad(value, parameters, create_graph=True)
        rows.append(torch.cat([g.flatten() for g in gradients]))
    return torch.stack([g.var(0, unbiased=False) for g in torch.stack(rows).split(SIZES)])


@pytest.mark.filterwarnings("ignore:.*weight_norm.*")
@pytest.mark.parametrize("name", list(HEADS))
def test_values_and_derivatives(name):
    head, features, labels = make(HEADS[name])
    chosen = [n for n, p in head.named_parameters() if p.requires_grad]
    actual = gradient_variances(head, features, labels, SIZES, parameters=chosen)
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        expected = naive(head, features, labels)
        theirs = torch.autograd.grad(expected.sum(), list(head.parameters())[-1:])
    torch.testing.assert_close(actual, expected)
    mine = torch.autograd.grad(actual.sum(), list(head.parameters())[-1:])
    torch.testing.assert_close(mine, theirs)
    assert gradient_variances(head, features, labels, SIZES).isfinite().all()  # frozen ones too


@pytest.mark.parametrize("method", ["func", "loop"])
def test_hardsigmoid(method):
    """PyTorch cannot differentiate it twice."""
    head, features, labels = make(lambda: Hardened(F.hardsigmoid))
    head.sigmoid = lambda z: (z / 6 + 0.5).clamp(0, 1)
    expected = naive(head, features, labels)
    theirs = torch.autograd.grad(expected.sum(), list(head.parameters()))
    head.sigmoid = F.hardsigmoid
    actual = gradient_variances(head, features, labels, SIZES, method=method)
    torch.testing.assert_close(actual, expected)
    torch.testing.assert_close(torch.autograd.grad(actual.sum(), list(head.parameters())), theirs)


def test_tokens_through_a_linear_layer():
    torch.manual_seed(0)
    head, tokens = nn.Linear(WIDTH, CLASSES).double(), torch.randn(5, 4, WIDTH).double()
    labels = torch.tensor([0, 1, 2, 1, 0])

    def mean_over_tokens(logits, y):
        return F.cross_entropy(logits.mean(1), y, reduction="none")

    expected = naive(head, tokens, labels, lambda o, y: mean_over_tokens(o, y).squeeze())
    torch.testing.assert_close(
        gradient_variances(head, tokens, labels, SIZES, mean_over_tokens), expected
    )


@pytest.mark.parametrize("method", METHODS)
def test_a_loss_that_is_not_per_sample(method):
    head = nn.Sequential(nn.Linear(WIDTH, CLASSES))
    _, features, labels = make(lambda: nn.Linear(1, 1))
    with pytest.raises(ValueError, match="must give one number a sample"):
        gradient_variances(
            head, features.float(), labels, SIZES, nn.CrossEntropyLoss(), method=method
        )


@pytest.mark.parametrize("method", ["auto", "backpack", "func"])
def test_inference_mode(method):
    head, features, labels = make(lambda: nn.Linear(WIDTH, CLASSES))
    expected = gradient_variances(head, features, labels, SIZES).detach()
    with torch.inference_mode():
        actual = gradient_variances(head, features * 1, labels * 1, SIZES, method=method)
    torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize(
    ("head", "message"),
    [
        (nn.Identity(), "has no parameters, or none were chosen"),
        (nn.Linear(WIDTH, CLASSES).bfloat16(), "'weight' is torch.bfloat16: .*need float32"),
        (nn.Sequential(nn.Linear(WIDTH, 3), nn.BatchNorm1d(3)), "batch norm in training mode"),
    ],
)
def test_heads_that_are_refused(head, message):
    _, features, labels = make(lambda: nn.Linear(1, 1))
    with pytest.raises(ValueError, match=message):
        gradient_variances(head, features.float(), labels, SIZES)


def test_a_single_name():
    head, features, labels = make(lambda: nn.Linear(WIDTH, CLASSES))
    both = gradient_variances(head, features, labels, SIZES)
    bias = gradient_variances(head, features, labels, SIZES, parameters="bias")
    assert torch.equal(bias, both[:, -CLASSES:])


class TestFishr:
    RESNET = {"backbone": "resnet18", "weights": "none"}

    def test_layers_of_a_resnet(self):
        algorithm = build(
            "Fishr", shape=(3, 32, 32), penalty_anneal_iters=0, featurizer="Backbone",
            fishr_parameters="featurizer.network.layer4.1.bn2,classifier", **self.RESNET,
        )  # fmt: skip
        metrics = algorithm.update(random_minibatches((2, 2), shape=(3, 32, 32)))
        assert metrics["penalty"] > 0
        assert algorithm.matching.variance_ema.shape == (2, 2 * 512 + 513 * CLASSES)

    def test_batch_norm_that_trains_is_refused_at_once(self):
        with pytest.raises(UserError, match="'fishr_parameters' is 'all', but batch norm"):
            build(
                "Fishr", shape=(3, 32, 32), fishr_parameters="all", freeze_bn=False,
                featurizer="Backbone", **self.RESNET,
            )  # fmt: skip
