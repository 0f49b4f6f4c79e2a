"""Mixup and RSC: what is mixed, what is muted, what is drawn, and in which order."""

from __future__ import annotations

import copy

import pytest
import references
import torch
from helpers import build, flat_parameters, random_minibatches
from torch.nn import functional as F

from domainbed.algorithms.mixup import cyclic_pairs, mixed_risk
from domainbed.algorithms.pooled import ForwardPass
from domainbed.algorithms.rsc import below_quantile, kept_features
from domainbed.errors import UserError
from domainbed.spec import RunSpec

VECTORS = (6,)
MLP = {"mlp_width": 8, "mlp_depth": 2, "mlp_dropout": 0.0}


def small(name, domains=2, **overrides):
    return build(name, domains, dtype=torch.float64, shape=VECTORS, **{**MLP, **overrides})


def vectors(sizes, seed=0):
    return random_minibatches(sizes, seed, VECTORS, dtype=torch.float64)


def test_cyclic_pairs():
    """Each domain is first once and second once; both are cut to the shorter."""
    minibatches = vectors((4, 2, 3))
    pairs = cyclic_pairs(minibatches, [2, 0, 1])
    for ((x_i, y_i), (x_j, y_j)), (i, j, size) in zip(
        pairs, [(2, 0, 3), (0, 1, 2), (1, 2, 2)], strict=True
    ):
        assert torch.equal(x_i, minibatches[i][0][:size])
        assert torch.equal(x_j, minibatches[j][0][:size])
        assert torch.equal(y_i, minibatches[i][1][:size])
        assert torch.equal(y_j, minibatches[j][1][:size])


def test_mixed_risk_is_the_cross_entropy_with_mixed_labels():
    logits, first, second = (
        torch.randn(4, 3),
        torch.tensor([0, 1, 2, 0]),
        torch.tensor([0, 2, 1, 1]),
    )
    soft = 0.3 * F.one_hot(first, 3) + 0.7 * F.one_hot(second, 3)
    expected = F.cross_entropy(logits, soft)
    torch.testing.assert_close(mixed_risk(logits, first, second, 0.3), expected)
    torch.testing.assert_close(
        mixed_risk(logits, first, second, 1.0), F.cross_entropy(logits, first)
    )


def test_mixup_of_one_domain_is_erm():
    mixup, erm = small("Mixup", 1), small("ERM", 1)
    for step in range(3):
        reported = [each.update(vectors((5,), step))["loss"] for each in (mixup, erm)]
        assert reported[0] == pytest.approx(reported[1], rel=1e-12)
    torch.testing.assert_close(
        flat_parameters(mixup.network), flat_parameters(erm.network), rtol=1e-9, atol=1e-9
    )


def test_mixup_of_equal_domains_is_erm_whatever_the_order_and_the_weights():
    mixup, erm = small("Mixup", 3), small("ERM", 3)
    minibatches = vectors((5,)) * 3
    assert mixup.objective(minibatches)[0].item() == pytest.approx(
        erm.objective(minibatches)[0].item(), rel=1e-12
    )


def test_mixup_draws_the_order_first_and_a_weight_for_each_pair():
    mixup, minibatches = small("Mixup", 3, mixup_alpha=0.7), vectors((3, 3, 3))
    drawn = copy.deepcopy(mixup.draws)
    order = drawn.permutation(3).tolist()
    total = 0.0
    for i, j in zip(order, order[1:] + order[:1], strict=True):
        weight = drawn.beta(0.7, 0.7)
        (x_i, y_i), (x_j, y_j) = minibatches[i], minibatches[j]
        logits = mixup.predict(weight * x_i + (1 - weight) * x_j)
        total += weight * references.mean_loss(logits, y_i)
        total += (1 - weight) * references.mean_loss(logits, y_j)
    assert mixup.update(minibatches)["loss"] == pytest.approx((total / 3).item(), rel=1e-10)
    assert mixup.draws.beta(1, 1) == drawn.beta(1, 1)


def test_mixup_passes_pair_by_pair_where_batch_norm_trains():
    mixup, sizes = small("Mixup", 2), []
    mixup.featurizer = torch.nn.Sequential(torch.nn.BatchNorm1d(6), torch.nn.Linear(6, 8)).double()
    mixup.featurizer.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    mixup.objective(vectors((4, 3)))
    mixup.featurizer.eval()
    mixup.objective(vectors((4, 3)))
    assert sizes == [3, 3, 6]


@pytest.mark.parametrize("n", [1, 2, 3, 7, 128])
@pytest.mark.parametrize("share", [0.0, 0.25, 1 / 3, 0.5, 0.99])
def test_below_quantile_against_numpy(n, share):
    import numpy as np

    values = torch.randn(5, n, generator=torch.Generator().manual_seed(n), dtype=torch.float64)
    limits = np.percentile(values.numpy(), (1 - share) * 100, axis=1)
    assert torch.equal(below_quantile(values, 1 - share), values < torch.tensor(limits)[:, None])


def test_a_place_that_is_whole_is_its_entry():
    """Of 7 numbers the 2/3-quantile is the fifth, which is not below it."""
    below = below_quantile(torch.tensor([3.1, 0.7, 2.2, 9.3, 5.9, 4.4, 8.6]), 1 - 1 / 3)
    assert below.tolist() == [True, True, True, False, False, True, False]


def test_masks_of_a_linear_classifier_by_hand():
    """The gradients are the rows of W; all samples but the one that loses least are muted."""
    classifier = torch.nn.Linear(3, 2, bias=False).double()
    with torch.no_grad():
        classifier.weight.copy_(torch.tensor([[1.0, 0.0, 3.0], [2.0, 5.0, 1.0]]))
    z = torch.tensor([[1.0, 1.0, 1.0], [0.1, 0.1, 0.1], [0.0, 1.0, 0.0]], dtype=torch.float64)
    kept = kept_features(z, torch.tensor([0, 1, 0]), classifier, 0.5, 0.5)
    # What p[y] loses: of the first sample, whose features 0 and 2 are muted, it is
    # σ(4 - 8) - σ(0 - 5) = 0.011; of the second, without 0 and 1, σ(0.8 - 0.4) - σ(0.1 - 0.3) =
    # 0.148; of the third 0. Their median is 0.011, and only 0 is below it.
    assert kept.tolist() == [[0, 1, 0], [0, 0, 1], [1, 1, 1]]


@pytest.mark.parametrize("nonlinear", [False, True])
def test_the_masks_of_rsc_are_constants(nonlinear):
    """Its gradient is that of the muted loss with the masks held."""
    rsc = small("RSC", nonlinear_classifier=nonlinear)
    loss, _ = rsc.objective(vectors((4, 3)))
    x, y = references.concatenated(vectors((4, 3)))
    kept = kept_features(rsc.featurizer(x), y, rsc.classifier, 1 / 3, 1 / 3)
    held = F.cross_entropy(rsc.classifier(rsc.featurizer(x) * kept), y)
    parameters = list(rsc.network.parameters())
    for own, expected in zip(
        torch.autograd.grad(loss, parameters), torch.autograd.grad(held, parameters), strict=True
    ):
        torch.testing.assert_close(own, expected)
    assert not kept.requires_grad
    assert 0 < (~kept).sum() < kept.numel() / 2


def test_rsc_ignores_the_order_of_domains_and_samples():
    rsc, minibatches = small("RSC", 3), vectors((4, 3, 2))
    shuffled = [(x.flip(0), y.flip(0)) for x, y in reversed(minibatches)]
    ours, theirs = (rsc.objective(each)[0].item() for each in (minibatches, shuffled))
    assert ours == pytest.approx(theirs, rel=1e-12)


def test_rsc_passes_the_featurizer_once():
    rsc, calls = small("RSC"), []
    rsc.featurizer.register_forward_hook(lambda *_: calls.append("forward"))
    rsc.update(vectors((4, 3)))
    assert calls == ["forward"]


@pytest.mark.parametrize("name", ["Mixup", "RSC"])
def test_fishr_sees_the_images_as_they_are(name):
    """Its penalty is that of the unmixed, unmuted minibatches, and the loss is the method's."""
    added = small(f"Fishr+{name}", fishr_penalty_anneal_iters=0)
    alone, minibatches = copy.deepcopy(added.base), vectors((4, 3))
    loss, metrics = added.objective(minibatches)
    torch.testing.assert_close(metrics["loss"], alone.objective(minibatches)[0])
    forward = ForwardPass(minibatches, alone.featurizer, alone.classifier)
    variances = [
        references.gradient_variance(z, y, alone.classifier)
        for z, y in zip(forward.by_domain(forward.features), forward.by_domain(forward.y))
    ]
    torch.testing.assert_close(metrics["fishr_penalty"], references.fishr_penalty(variances))
    torch.testing.assert_close(loss, metrics["loss"] + 1000 * metrics["fishr_penalty"])


@pytest.mark.parametrize(
    ("algorithm", "name", "value"),
    [
        ("Mixup", "mixup_alpha", 0.0),
        ("RSC", "rsc_f_drop_factor", 1.0),
        ("RSC", "rsc_b_drop_factor", -0.1),
    ],
)
def test_values_out_of_bounds(algorithm, name, value):
    with pytest.raises(UserError, match=rf"{name!r}.* cannot be {value}"):
        RunSpec.create("ColoredDigits", algorithm, [0], hparams={name: value})
