"""Variances of per-sample gradients, against a loop over samples and against BackPACK."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from domainbed.gradients import gradient_variances
from domainbed.gradients.methods import backpack_suits, is_linear_stack

SIZES, WIDTH, CLASSES = [4, 3, 5], 6, 3


class Reshape(nn.Module):
    def forward(self, x):
        return x.reshape(len(x), 2, -1)


def heads():
    return {
        "linear": lambda: nn.Linear(WIDTH, CLASSES),
        "no bias": lambda: nn.Linear(WIDTH, CLASSES, bias=False),
        "nonlinear": lambda: nn.Sequential(
            nn.Linear(WIDTH, 5), nn.ReLU(), nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, CLASSES)
        ),
        "partly without bias": lambda: nn.Sequential(
            nn.Linear(WIDTH, 5, bias=False), nn.GELU(), nn.Linear(5, CLASSES)
        ),
        "in-place relu": lambda: nn.Sequential(
            nn.Linear(WIDTH, 5), nn.ReLU(inplace=True), nn.Linear(5, CLASSES)
        ),
        "layer norm": lambda: nn.Sequential(
            nn.Linear(WIDTH, 5), nn.LayerNorm(5), nn.ReLU(), nn.Linear(5, CLASSES)
        ),
        "convolution": lambda: nn.Sequential(
            Reshape(), nn.Conv1d(2, 3, 2), nn.Flatten(), nn.Linear(6, CLASSES)
        ),
        "weight norm": lambda: nn.utils.parametrizations.weight_norm(nn.Linear(WIDTH, CLASSES)),
        "shared layer": shared_layer,
        "nested": lambda: nn.Sequential(
            nn.Sequential(nn.Linear(WIDTH, 5), nn.ReLU()), nn.Linear(5, CLASSES)
        ),
    }


def shared_layer():
    layer = nn.Linear(WIDTH, WIDTH)
    return nn.Sequential(layer, nn.Tanh(), layer, nn.Linear(WIDTH, CLASSES))


def make(name, dtype=torch.float64):
    torch.manual_seed(1)
    head = heads()[name]().to(dtype)
    features = torch.randn(sum(SIZES), WIDTH, dtype=dtype).relu().requires_grad_()
    return head, features, torch.arange(sum(SIZES)) % CLASSES


def naive_variances(head, features, labels, sizes):
    """A loop over samples, (E, P), in the graph."""
    rows = []
    for feature, label in zip(features, labels, strict=True):
        loss = nn.functional.cross_entropy(head(feature[None]), label[None])
        gradients = torch.autograd.grad(loss, list(head.parameters()), create_graph=True)
        rows.append(torch.cat([g.flatten() for g in gradients]))
    variances = []
    for domain in torch.stack(rows).split(sizes):
        variances.append((domain - domain.mean(0)).square().mean(0))
    return torch.stack(variances)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", list(heads()))
def test_values(name, dtype):
    head, features, labels = make(name, dtype)
    expected = naive_variances(head, features, labels, SIZES)
    actual = gradient_variances(head, features, labels, SIZES)
    assert actual.shape == (3, sum(p.numel() for p in head.parameters()))
    assert actual.dtype == dtype
    tolerance = 1e-5 if dtype == torch.float32 else 1e-11
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance / 10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", list(heads()))
def test_second_derivatives(name, dtype):
    head, features, labels = make(name, dtype)
    targets = [features, *head.parameters()]
    results = []
    for variances in (naive_variances, gradient_variances):
        total = variances(head, features, labels, SIZES).square().sum()
        results.append(torch.autograd.grad(total, targets, allow_unused=True))
    for expected, actual in zip(*results, strict=True):
        expected = torch.zeros(()) if expected is None else expected
        actual = torch.zeros(()) if actual is None else actual
        scale = expected.abs().max().clamp_min(1e-12)
        assert (actual - expected).abs().max() / scale < 1e-5


@pytest.mark.parametrize("bias", [True, False])
def test_backpack_agrees(bias):
    backpack = pytest.importorskip("backpack", reason="the benchmark extra is not installed")
    from backpack.extensions import BatchGrad

    torch.manual_seed(0)
    head = nn.Linear(WIDTH, CLASSES, bias=bias)
    features, labels = torch.randn(12, WIDTH, requires_grad=True), torch.arange(12) % CLASSES
    actual = gradient_variances(head, features, labels, SIZES)
    extended = backpack.extend(copy.deepcopy(head))
    loss = backpack.extend(nn.CrossEntropyLoss(reduction="sum"))(extended(features), labels)
    with backpack.backpack(BatchGrad()):
        loss.backward(inputs=[*extended.parameters(), features], retain_graph=True)
    rows = torch.cat([p.grad_batch.flatten(1) for p in extended.parameters()], dim=1)
    expected = torch.stack([r.var(0, unbiased=False) for r in rows.split(SIZES)])
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", ["linear", "nonlinear", "layer norm"])
def test_without_grad_mode(name):
    head, features, labels = make(name)
    expected = gradient_variances(head, features, labels, SIZES)
    with torch.no_grad():
        actual = gradient_variances(head, features, labels, SIZES)
    assert not actual.requires_grad
    assert torch.equal(actual, expected.detach())


@pytest.mark.parametrize("name", ["linear", "nonlinear", "layer norm"])
def test_full_precision_under_autocast(name):
    head, features, labels = make(name, torch.float32)
    expected = gradient_variances(head, features, labels, SIZES)
    with torch.autocast("cpu", torch.bfloat16):
        actual = gradient_variances(head, features, labels, SIZES)
    assert torch.equal(actual, expected)


def test_reduced_precision_features_under_autocast():
    head, features, labels = make("linear", torch.float32)
    rounded = features.detach().bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        actual = gradient_variances(head, rounded, labels, SIZES)
    expected = naive_variances(head, rounded.float(), labels, SIZES)
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["linear", "nonlinear", "layer norm"])
def test_one_sample_has_no_variance(name):
    head, features, labels = make(name, torch.float32)
    variances = gradient_variances(head, features[:2], labels[:2], [1, 1])
    assert variances.abs().max() < 1e-7
    gradient = torch.autograd.grad(variances.square().sum(), features)[0]
    assert gradient.isfinite().all()


def test_nearly_equal_samples_keep_their_variance():
    """A large common gradient must not swallow a small variance."""
    torch.manual_seed(0)
    head = nn.Linear(WIDTH, CLASSES)
    features = 5 + 1e-2 * torch.randn(8, WIDTH)
    labels = torch.zeros(8, dtype=torch.long)
    exact = naive_variances(copy.deepcopy(head).double(), features.double(), labels, [8])
    actual = gradient_variances(head, features, labels, [8]).double()
    assert (actual - exact).abs().max() / exact.max() < 1e-3


def test_the_callers_features_are_left_alone():
    head, _, labels = make("linear", torch.float32)
    features = torch.randn(12, WIDTH)
    gradient_variances(head, features, labels, SIZES)
    assert not features.requires_grad


def test_dropout_in_the_head():
    head = nn.Sequential(nn.Dropout(0.5), nn.Linear(WIDTH, CLASSES))
    _, features, labels = make("linear", torch.float32)
    variances = gradient_variances(head, features, labels, SIZES)
    assert variances.isfinite().all()
    assert variances.sum() > 0


def test_another_loss():
    """Squared error of one output: g_n = 2 (w a_n − y_n) a_n, by hand."""
    head = nn.Linear(1, 1, bias=False)
    nn.init.ones_(head.weight)
    features, labels = torch.tensor([[1.0], [2.0]]), torch.tensor([0.0, 1.0])
    variances = gradient_variances(
        head, features, labels, [2], loss=lambda out, y: (out.squeeze(1) - y).square()
    )
    assert variances.tolist() == [[1.0]]  # gradients 2 and 4


def test_domain_sizes_must_cover_the_batch():
    head, features, labels = make("linear")
    with pytest.raises(ValueError, match=r"\[4, 3\] sum to 7.*12 samples"):
        gradient_variances(head, features, labels, [4, 3])


def test_which_heads_have_the_closed_form():
    closed = {name for name, new in heads().items() if is_linear_stack(new())}
    assert closed == {"linear", "no bias", "nonlinear", "partly without bias", "nested"}


def test_which_heads_go_to_backpack():
    suited = {
        name
        for name, new in heads().items()
        if backpack_suits(head := new(), [n for n, _ in head.named_parameters()])
    }
    assert {"convolution", "nonlinear"} <= suited
    assert not suited & {"layer norm", "weight norm", "shared layer", "in-place relu"}


def test_a_sequence_with_a_forward_of_its_own_is_not_taken_apart():
    class Doubled(nn.Sequential):
        def forward(self, x):
            return super().forward(2 * x)

    _, features, labels = make("linear")
    head = Doubled(nn.Linear(WIDTH, CLASSES)).double()
    expected = naive_variances(head, features, labels, SIZES)
    torch.testing.assert_close(gradient_variances(head, features, labels, SIZES), expected)
