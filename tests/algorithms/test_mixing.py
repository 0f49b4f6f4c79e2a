"""What is mixed, muted or kept of a domain, what is drawn and in which order, and both readings."""

from __future__ import annotations

import copy

import pytest
import references
import torch
from helpers import CLASSES, build, flat_parameters, numbers, random_minibatches
from test_trajectories import follow
from torch.nn import functional as F

from domainbed.algorithms.arm import group_sizes, with_context
from domainbed.algorithms.erm import ForwardPass
from domainbed.algorithms.mixup import cyclic_pairs, mixed_risk
from domainbed.algorithms.rsc import below_quantile, kept_features
from domainbed.algorithms.selfreg import dissimilarity, partners_in_class
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
        reported = [numbers(each.update(vectors((5,), step)))["loss"] for each in (mixup, erm)]
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
        ("MTL", "mtl_ema", 1.5),
        ("RSC", "rsc_f_drop_factor", 1.0),
        ("RSC", "rsc_b_drop_factor", -0.1),
    ],
)
def test_values_out_of_bounds(algorithm, name, value):
    with pytest.raises(UserError, match=rf"{name!r}.* cannot be {value}"):
        RunSpec.create("ColoredDigits", algorithm, [0], hparams={name: value})


IMAGES = (1, 4, 4)


def images(sizes, seed=0):
    return random_minibatches(sizes, seed, IMAGES, dtype=torch.float64)


@pytest.mark.parametrize("name", ["MTL", "ARM", "SelfReg"])
def test_the_papers_reading_follows_the_naive_one(name):
    follow(name, (4, 3, 2), fidelity="paper")


@pytest.mark.parametrize("ema", [0.0, 0.5, 1.0])
def test_the_average_of_mtl(ema):
    follow("MTL", (3, 2), mtl_ema=ema, fidelity="paper", nonlinear_classifier=True)


@pytest.mark.parametrize("fidelity", ["domainbed", "paper"])
def test_the_embeddings_are_moving_averages_of_the_mean_features(fidelity):
    """In DomainBed's reading too, where nothing reads them."""
    mtl, expected = small("MTL", mtl_ema=0.9, fidelity=fidelity), [0.0, 0.0]
    for step in range(2):
        minibatches = vectors((4, 3), step)
        for domain, (x, _) in enumerate(minibatches):
            mean = mtl.featurizer(x).detach().mean(0)
            expected[domain] = 0.9 * mean + 0.1 * expected[domain]
        mtl.update(minibatches)
    torch.testing.assert_close(mtl.embeddings, torch.stack(expected))
    assert not mtl.embeddings.requires_grad


def test_the_gradient_of_mtl_goes_through_the_new_mean_alone():
    """At ema 0 the embedding is the stored one, a constant; at 1 all of it is in the graph."""
    for ema, depends in ((0.0, False), (1.0, True)):
        mtl = small("MTL", mtl_ema=ema, fidelity="paper")
        z = mtl.featurizer(vectors((4, 3))[0][0])
        assert mtl.embedding(z, 0).requires_grad
        (gradient,) = torch.autograd.grad(mtl.embedding(z, 1).sum(), z)
        assert (gradient != 0).any() == depends


def test_mtl_predicts_with_the_mean_of_its_batch():
    mtl = small("MTL", fidelity="paper").eval()
    x = vectors((5,))[0][0]
    z = mtl.featurizer(x)
    rows = torch.stack([mtl.classifier(torch.cat([row, sum(z) / 5])) for row in z])
    torch.testing.assert_close(mtl.predict(x), rows)
    torch.testing.assert_close(mtl.predict(x.flip(0)), rows.flip(0))
    assert not torch.allclose(mtl.predict(x[:2]), rows[:2], atol=1e-3)


def test_the_noise_of_mtl():
    """One number from N(0, 1) for each feature of each sample, in domain order."""
    mtl, minibatches = small("MTL"), vectors((4, 3))
    drawn = copy.deepcopy(mtl.draws)
    features = mtl.forward_pass(minibatches).features
    noise = torch.cat([drawn.normal(4, 8), drawn.normal(3, 8)])
    assert torch.equal(features[:, 8:], noise.double())
    torch.testing.assert_close(
        features[:, :8], mtl.featurizer(references.concatenated(minibatches)[0])
    )


def test_predictions_of_mtl_draw_from_a_source_of_their_own():
    first, second = small("MTL").eval(), small("MTL").eval()
    x = vectors((5,))[0][0]
    reported = [first.update(vectors((4, 3), step)) for step in range(3)]
    for step in range(3):
        second.eval().predict(x)
        assert second.train().update(vectors((4, 3), step)) == reported[step]
    assert torch.equal(first.predict(x), second.predict(x))
    other = small("MTL", seed=1)
    other.load_state_dict(first.state_dict())
    assert not torch.allclose(other.eval().predict(x), first.predict(x), atol=1e-3)


def test_mtl_passes_domain_by_domain_where_batch_norm_trains():
    mtl, sizes = small("MTL", fidelity="paper"), []
    mtl.featurizer = torch.nn.Sequential(torch.nn.BatchNorm1d(6), torch.nn.Linear(6, 8)).double()
    mtl.featurizer.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    mtl.objective(vectors((4, 3)))
    mtl.featurizer.eval()
    mtl.objective(vectors((4, 3)))
    assert sizes == [4, 3, 7]


def test_fishr_on_mtl_is_of_the_classifiers_inputs():
    added = small("Fishr+MTL", fishr_penalty_anneal_iters=0, fidelity="paper")
    alone, minibatches = copy.deepcopy(added.base), vectors((4, 3))
    _, metrics = added.objective(minibatches)
    forward = alone.forward_pass(minibatches)
    assert forward.features.shape == (7, 16)
    variances = [
        references.gradient_variance(z, y, alone.classifier)
        for z, y in zip(forward.by_domain(forward.features), forward.by_domain(forward.y))
    ]
    torch.testing.assert_close(metrics["fishr_penalty"], references.fishr_penalty(variances))


def test_with_context_by_hand():
    x = torch.arange(12.0).reshape(3, 2, 1, 2)
    maps = torch.tensor([[1.0, 2.0], [3.0, 6.0], [10.0, 20.0]]).reshape(3, 1, 1, 2)
    adapted = with_context(x, maps, [2, 1])
    assert torch.equal(adapted[:, :2], x)
    assert adapted[:, 2, 0].tolist() == [[2.0, 4.0], [2.0, 4.0], [10.0, 20.0]]


def test_group_sizes():
    assert group_sizes(64, 8) == [8] * 8
    assert group_sizes(64, 64) == [64]
    assert group_sizes(36, 8) == [36]
    assert group_sizes(5, 64) == [5]


@pytest.mark.parametrize("fidelity", ["domainbed", "paper"])
def test_groups_of_arm_in_training(fidelity):
    """Minibatches of batch_size images are groups in both readings."""
    follow("ARM", (2, 2, 2), updates=2, batch_size=2, fidelity=fidelity)


def test_who_trains_the_contextual_network():
    for fidelity, trained in (("domainbed", False), ("paper", True)):
        arm = build("ARM", shape=IMAGES, dtype=torch.float64, fidelity=fidelity)
        before = flat_parameters(arm.context_net)
        arm.update(images((3, 2)))
        assert (flat_parameters(arm.context_net) != before).any() == trained
        assert arm.context_net.context_net[1].num_batches_tracked == 1


def test_arm_predicts_groups_of_batch_size_alone():
    """Of a batch that batch_size divides each group has its own context; else all have one."""
    arm = build("ARM", shape=IMAGES, dtype=torch.float64, batch_size=3).eval()
    x = images((6,))[0][0]
    together = arm.predict(x)
    torch.testing.assert_close(together, torch.cat([arm.predict(x[:3]), arm.predict(x[3:])]))
    torch.testing.assert_close(arm.predict(x[:5].flip(0)), arm.predict(x[:5]).flip(0))
    assert not torch.allclose(arm.predict(x[:5])[:3], together[:3], atol=1e-5)


def test_the_featurizer_of_arm_takes_one_channel_more():
    arm = build("ARM", shape=(3, 8, 8))
    assert arm.featurizer.conv1.in_channels == 4
    pretrained = build("ARM", shape=(3, 32, 32), resnet18=True, weights="none")
    first = pretrained.featurizer.network.conv1.weight
    assert torch.equal(first[:, 3], first[:, 0])


def test_arm_needs_images():
    with pytest.raises(UserError, match=r"ARM needs images.*have the shape \(6,\)"):
        small("ARM")


def test_partners_are_permutations_within_the_class():
    labels = torch.tensor([2, 0, 2, 2, 0, 5])
    for row in partners_in_class(labels, small("SelfReg").draws):
        assert sorted(row.tolist()) == list(range(6))
        assert torch.equal(labels[row], labels)


def test_partners_are_drawn_class_by_class():
    draws = small("SelfReg").draws
    drawn = copy.deepcopy(draws)
    found = partners_in_class(torch.tensor([1, 0, 1, 1, 0]), draws)
    for label in ([1, 4], [0, 2, 3]):
        for row in found:
            assert row[label].tolist() == [label[i] for i in drawn.permutation(len(label))]


def test_dissimilarity_by_hand():
    """Two samples, one number each, partners of each other: squares 4; mixed with λ 0.25: 4."""
    own, others = torch.tensor([[0.0], [2.0]]), torch.tensor([[0.0], [2.0]])
    swapped, same = torch.tensor([[1, 0], [1, 0]]), torch.tensor([[1, 0], [0, 1]])
    assert dissimilarity(own, others, swapped, 0.25).item() == 4.0
    # The second partner is the sample itself: λ · own' + (1 - λ) · own is λ · 2 away.
    assert dissimilarity(own, others, same, 0.25).item() == 0.25 * 4 + 0.75 * 0.25
    assert dissimilarity(own, others, torch.tensor([[0, 1], [0, 1]]), 0.25).item() == 0.0


def test_selfreg_scales_its_penalty_by_the_risk_up_to_one():
    """The factor is a constant: the gradient of the risk is not scaled by the penalty."""
    for scale in (0.01, 3.0):
        selfreg = small("SelfReg")
        with torch.no_grad():
            selfreg.classifier.weight *= scale
        loss, metrics = selfreg.objective(vectors((6, 6)))
        factor = min(metrics["nll"].item(), 1.0)
        assert loss.item() == pytest.approx(
            (metrics["nll"] + factor * metrics["penalty"]).item(), rel=1e-12
        )
        parameters = list(selfreg.network.parameters())
        held = metrics["nll"] + factor * metrics["penalty"]
        for own, expected in zip(
            torch.autograd.grad(loss, parameters, retain_graph=True),
            torch.autograd.grad(held, parameters, retain_graph=True),
            strict=True,
        ):
            torch.testing.assert_close(own, expected)


def test_selfreg_sees_no_domains():
    """The same samples in one domain or in two have the same loss."""
    ((x, y),) = vectors((6,))
    together, _ = small("SelfReg").objective([(x, y)])
    apart, _ = small("SelfReg").objective([(x[:4], y[:4]), (x[4:], y[4:])])
    assert together.item() == pytest.approx(apart.item(), rel=1e-12)


def test_a_domain_may_give_selfreg_a_single_sample():
    """Its batch norm sees all domains at once."""
    follow("SelfReg", (1, 3), updates=2)


def test_who_trains_the_projection():
    for fidelity, trained in (("domainbed", False), ("paper", True)):
        selfreg = small("SelfReg", fidelity=fidelity)
        before = flat_parameters(selfreg.cdpl)
        selfreg.update(vectors((4, 3)))
        assert (flat_parameters(selfreg.cdpl) != before).any() == trained


@pytest.mark.parametrize("name", ["MTL", "ARM", "SelfReg"])
def test_records_say_which_reading_was_used(name):
    spec = RunSpec.create("ColoredDigits", name, [0])
    assert spec.hparams["fidelity"] == "domainbed"
    chosen = RunSpec.create("ColoredDigits", name, [0], hparams={"fidelity": "paper"})
    assert chosen.hparams["fidelity"] == "paper"
    assert chosen.run_id != spec.run_id
    with pytest.raises(UserError, match=r"'fidelity' of .* cannot be 'both'"):
        RunSpec.create("ColoredDigits", name, [0], hparams={"fidelity": "both"})


@pytest.mark.parametrize("name", ["Mixup", "RSC", "MTL", "SelfReg"])
def test_a_class_may_be_absent_or_alone(name):
    algorithm = small(name, 2)
    for labels in ([0, 0, 0], [CLASSES - 1] * 3, [1, 2, 1]):
        minibatches = [(x, torch.tensor(labels)) for x, _ in vectors((3, 3))]
        assert torch.tensor(list(algorithm.update(minibatches).values())).isfinite().all()
