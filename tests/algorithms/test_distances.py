"""Methods that compare sets of features, logits or risks: their parts, by hand and by loops."""

from __future__ import annotations

import math

import pytest
import references
import references_distances as naive
import torch
from helpers import build, flat_parameters, random_minibatches
from references import NAIVE
from test_trajectories import SMALL_MLP, VECTORS, follow

from domainbed.algorithms.causirl import two_mixtures
from domainbed.algorithms.coral import coral_penalty
from domainbed.algorithms.distances import averages, kernel_sum
from domainbed.algorithms.group_dro import reweighted
from domainbed.algorithms.mmd import mmd_penalty
from domainbed.algorithms.sd import logit_penalty
from domainbed.spec import RunSpec


def random(*shape, seed=0, dtype=torch.float64):
    numbers = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)
    return numbers.requires_grad_()


def features_of(sizes, width=3):
    return [random(n, width, seed=e) for e, n in enumerate(sizes)]


def assert_same_with_gradients(actual, expected, inputs):
    torch.testing.assert_close(actual, expected)
    found = [torch.autograd.grad(value, inputs) for value in (actual, expected)]
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs)


def small(name, **overrides):
    return build(name, 3, dtype=torch.float64, shape=VECTORS, **SMALL_MLP, **overrides)


class TestKernels:
    def test_averages(self):
        values = torch.tensor([1.0, 3.0, 5.0])
        assert averages([2, 1], values).tolist() == [[0.5, 0.5, 0.0], [0.0, 0.0, 1.0]]

    @pytest.mark.parametrize("gammas", [(1.0,), (0.5, 2.0), naive.GAMMAS])
    def test_kernel_sum_against_loops(self, gammas):
        z, weights = random(4, 2), random(4, 4, seed=1).detach()
        weights = weights + weights.T
        pairs = [(n, m) for n in range(4) for m in range(4)]
        expected = sum(weights[n, m] * naive.kernel(z[n], z[m], gammas) for n, m in pairs)
        assert_same_with_gradients(kernel_sum(z, weights, gammas), expected, [z])

    def test_its_derivative_is_that_of_its_values(self):
        weights = random(5, 5, seed=1).detach()
        weights = weights @ weights.T
        assert torch.autograd.gradcheck(lambda z: kernel_sum(z, weights, (0.3, 2.0)), random(5, 3))

    def test_far_from_the_origin_nothing_is_lost(self):
        """In float32 ‖a‖² + ‖b‖² − 2 a·b is off by one here, where the distance is 0.01."""
        z = torch.tensor([[3000.0], [3000.125]], requires_grad=True)
        value = kernel_sum(z, torch.tensor([[0.0, 0.5], [0.5, 0.0]]), (10.0,))
        assert value.item() == pytest.approx(math.exp(-10 / 64), rel=1e-6)
        value.backward()
        slope = 20 * 0.125 * math.exp(-10 / 64)
        assert z.grad.flatten().tolist() == pytest.approx([slope, -slope], rel=1e-5)


class TestMMD:
    @pytest.mark.parametrize("sizes", [(5,), (1, 1), (4, 3), (2, 5, 3), (2, 1, 3, 2, 4)], ids=str)
    def test_penalty_against_loops(self, sizes):
        features = features_of(sizes)
        expected = naive.NaiveMMD.penalty(None, features)
        if len(sizes) == 1:
            assert mmd_penalty(features).item() == expected == 0
        else:
            assert_same_with_gradients(mmd_penalty(features), expected, features)

    def test_two_points_by_hand(self):
        """One sample each, at distance 1: 7 + 7 − 2 Σ exp(−γ)."""
        expected = 14 - 2 * sum(math.exp(-gamma) for gamma in naive.GAMMAS)
        points = [torch.zeros(1, 1), torch.ones(1, 1)]
        assert mmd_penalty(points).item() == pytest.approx(expected, rel=1e-6)

    def test_identical_domains(self):
        z = random(4, 3)
        assert mmd_penalty([z, z.flip(0), z]).item() == pytest.approx(0, abs=1e-14)

    def test_order_of_domains_and_samples_and_a_common_shift_do_not_matter(self):
        a, b, c = features_of((3, 4, 2))
        expected = mmd_penalty([a, b, c])
        torch.testing.assert_close(mmd_penalty([c + 9, a.flip(0) + 9, b + 9]), expected)
        assert expected > 0.1

    def test_half_precision_features_are_compared_in_full(self):
        features = [z.detach().bfloat16() for z in features_of((4, 5))]
        expected = mmd_penalty([z.float() for z in features])
        with torch.autocast("cpu", torch.bfloat16):
            assert mmd_penalty(features).item() == expected.item()

    def test_weight(self):
        follow("MMD", (3, 4, 2), mmd_gamma=5.0)


class TestCausIRL:
    def test_mixtures(self):
        a, b = torch.arange(3.0).unsqueeze(1), torch.arange(10.0, 12.0).unsqueeze(1)
        first, rest = two_mixtures([a, b], [2, 0])
        assert first.flatten().tolist() == [0, 1]
        assert rest.flatten().tolist() == [2, 10, 11]

    @pytest.mark.parametrize("name", ["CausIRL_CORAL", "CausIRL_MMD"])
    @pytest.mark.parametrize(
        ("cuts", "zero"), [((1, 0), True), ((2, 0), False), ((2, 2), True), ((2, 1), False)]
    )
    def test_zero_where_a_mixture_has_fewer_than_two_samples(self, name, cuts, zero):
        """Of sizes 3 and 2; a cut is always below the size."""
        algorithm, left = small(name), list(cuts)
        algorithm.draws.integer = lambda below: left.pop(0)
        features = features_of((3, 2))
        penalty = algorithm.penalty_of(features).item()
        if zero:
            assert penalty == 0
        else:
            distance = {"CausIRL_CORAL": coral_penalty, "CausIRL_MMD": mmd_penalty}[name]
            assert penalty == distance(two_mixtures(features, cuts)).item() > 0
        assert left == []

    def test_cuts_are_uniform_below_the_size(self):
        algorithm, seen = small("CausIRL_MMD"), []
        draw = algorithm.draws.integer
        algorithm.draws.integer = lambda below: seen.append(draw(below)) or 0
        features = [torch.zeros(5, 1)]
        for _ in range(200):
            algorithm.penalty_of(features)
        assert set(seen) == {0, 1, 2, 3, 4}
        assert all(20 < seen.count(cut) < 60 for cut in range(5))

    @pytest.mark.parametrize("name", ["CausIRL_CORAL", "CausIRL_MMD"])
    def test_many_updates_draw_anew(self, name):
        follow(name, (4, 5), updates=5, mmd_gamma=3.0)


class TestGroupDRO:
    def test_weights_by_hand(self):
        """1 · e^(ln 2) and 1 · e^(ln 6), divided by 8; again from there."""
        risks = torch.tensor([math.log(2), math.log(6)])
        q = reweighted(torch.ones(2), risks, 1.0)
        assert q.tolist() == pytest.approx([0.25, 0.75])
        assert reweighted(q, risks, 1.0).tolist() == pytest.approx([0.1, 0.9])

    def test_large_risks_do_not_overflow(self):
        q = reweighted(torch.tensor([0.5, 0.5, 0.0]), torch.tensor([2000.0, 1000.0, 1.0]), 1.0)
        assert q.tolist() == [1, 0, 0]

    @pytest.mark.parametrize("reduction", ["sum", "mean"])
    def test_large_rate(self, reduction):
        follow("GroupDRO", (3, 4, 2), groupdro_eta=3.0, groupdro_reduction=reduction)

    def test_with_one_domain_it_is_erm(self):
        one, erm = (build(name, 1, shape=VECTORS, **SMALL_MLP) for name in ("GroupDRO", "ERM"))
        minibatches = random_minibatches((4,), 0, VECTORS)
        assert one.update(minibatches)["loss"] == pytest.approx(erm.update(minibatches)["loss"])
        torch.testing.assert_close(flat_parameters(one), flat_parameters(erm))

    def test_the_weights_follow_the_domain_that_is_worst(self):
        algorithm = small("GroupDRO", groupdro_eta=1.0, lr=1e-6)
        for _ in range(20):
            algorithm.update(random_minibatches((8, 8, 8), 1, VECTORS, dtype=torch.float64))
        forward = algorithm.forward_pass(
            random_minibatches((8, 8, 8), 1, VECTORS, dtype=torch.float64)
        )
        assert algorithm.q.argmax() == forward.domain_risks().argmax()
        assert algorithm.q.sum().item() == pytest.approx(1)

    def test_protocols_set_the_reduction(self):
        found = [
            RunSpec.create("RotatedMNIST", "GroupDRO", [0], protocol=name).hparams
            for name in ("default", "domainbed-2020", "domainbed-2024")
        ]
        assert [hparams.get("groupdro_reduction") for hparams in found] == [None, "mean", "sum"]


class TestSD:
    def test_penalty_by_hand(self):
        assert logit_penalty(torch.tensor([[1.0, -2.0], [3.0, 0.0]])).item() == 14 / 4
        half = torch.full((1, 1), 1.00390625, dtype=torch.bfloat16)
        assert logit_penalty(half).item() == half.float().item() ** 2

    def test_weight(self):
        follow("SD", (3, 4), sd_reg=2.0)

    def test_metrics(self):
        metrics = small("SD", sd_reg=0.5).update(
            random_minibatches((2, 3, 4), 0, VECTORS, dtype=torch.float64)
        )
        assert metrics["loss"] == pytest.approx(metrics["nll"] + 0.5 * metrics["penalty"])
        assert list(metrics) == ["loss", "nll", "penalty"]


def test_all_have_a_naive_twin():
    assert set(naive.NAIVE) <= set(NAIVE)
    assert references.coral_distance is naive.coral_distance
