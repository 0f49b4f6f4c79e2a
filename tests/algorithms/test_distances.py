"""Methods that compare sets of features, logits or risks: their parts, by hand and by loops."""

from __future__ import annotations

import math

import pytest
import references
import references_distances as naive
import torch
from helpers import build, flat_parameters, random_minibatches, switching_at
from references import NAIVE
from test_trajectories import SMALL_MLP, VECTORS, follow

from domainbed.algorithms.causirl import two_mixtures
from domainbed.algorithms.coral import coral_penalty
from domainbed.algorithms.eqrm import quantile_of_risks
from domainbed.algorithms.group_dro import reweighted
from domainbed.algorithms.ib import bottleneck_penalty
from domainbed.algorithms.mmd import averages, kernel_sum, mmd_penalty
from domainbed.algorithms.rdm import risk_penalties
from domainbed.algorithms.sd import logit_penalty
from domainbed.errors import UserError
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

    @pytest.mark.parametrize("size", [math.nan, 1e18, 1e25])
    def test_a_distance_that_is_no_number_is_zero(self, size):
        """Squares of covariances overflow at 1e18, at 1e25 covariances: infinite, or no number."""
        algorithm = small("CausIRL_CORAL").float()
        algorithm.draws.integer = lambda below: 2
        features = torch.tensor([[1.0], [-1.0], [3.0], [9.0]]) * size
        distance = coral_penalty(two_mixtures([features], [2]))
        penalty = algorithm.penalty_of([features]).item()
        if distance.isinf():
            assert penalty == torch.finfo(torch.float32).max
        else:
            assert distance.isnan()
            assert penalty == 0

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


class TestSwitches:
    @pytest.mark.parametrize("updates", [0, 1, 2])
    @pytest.mark.parametrize("name", ["IB_ERM", "RDM", "EQRM"])
    def test_the_only_one(self, name, updates):
        weights = {"ib_lambda": 3.0, "rdm_lambda": 4.0, "variance_weight": 0.5}
        rates = {"rdm_lr": 3e-3, "eqrm_lr": 3e-3}
        follow(name, (3, 4, 2), **weights, **rates, **switching_at(updates, name))

    @pytest.mark.parametrize(("ib", "irm"), [(0, 2), (1, 3), (3, 1), (2, 2)])
    def test_two_each_with_its_own(self, ib, irm):
        switches = {"ib_penalty_anneal_iters": ib, "irm_penalty_anneal_iters": irm}
        follow("IB_IRM", (3, 4, 2), ib_lambda=3.0, irm_lambda=20.0, **switches)

    def test_a_new_adam_with_its_own_rate(self):
        algorithm = small("RDM", rdm_lr=0.25, rdm_penalty_anneal_iters=1)
        seen = []
        for step in range(3):
            algorithm.update(random_minibatches((2, 3, 2), step, VECTORS, dtype=torch.float64))
            group = algorithm.optimizer.param_groups[0]
            state = algorithm.optimizer.state[group["params"][0]]
            seen.append((group["lr"], state["step"].item()))
        assert seen == [(1e-3, 1), (0.25, 1), (0.25, 2)]


class TestInformationBottleneck:
    def test_penalty_by_hand(self):
        """Variances 2 and 8 of two samples, and 0: means 5 and 0 over the features."""
        first = torch.tensor([[0.0, 0.0], [2.0, 4.0]])
        same = torch.ones(3, 2)
        assert bottleneck_penalty([first, same]).item() == 2.5
        assert bottleneck_penalty([first + 7]).item() == 5

    def test_metrics(self):
        algorithm = small("IB_IRM", **switching_at(0, "IB_IRM"))
        minibatches = random_minibatches((2, 3, 4), 0, VECTORS, dtype=torch.float64)
        metrics = algorithm.update(minibatches)
        assert list(metrics) == ["loss", "nll", "IB_penalty", "IRM_penalty"]
        penalties = 100 * metrics["IB_penalty"] + 100 * metrics["IRM_penalty"]
        assert metrics["loss"] == pytest.approx(metrics["nll"] + penalties)
        assert metrics["IB_penalty"] > 0


class TestRDM:
    @pytest.mark.parametrize("sizes", [(4,), (3, 3), (2, 5, 3)], ids=str)
    def test_penalties_against_loops(self, sizes):
        risks = [(r - 1).square() for r in (random(n, seed=e) for e, n in enumerate(sizes))]
        for actual, expected in zip(risk_penalties(risks), naive.rdm_penalties(risks), strict=True):
            if len(sizes) == 1 and not expected:
                assert actual.item() == expected.item() == 0
            else:
                assert_same_with_gradients(actual, expected, risks)

    def test_order_of_domains_and_samples_does_not_matter(self):
        a, b = torch.tensor([1.0, 2.0, 9.0]), torch.tensor([0.5, 3.0])
        expected = torch.stack(risk_penalties([a, b]))
        torch.testing.assert_close(torch.stack(risk_penalties([b.flip(0), a.flip(0)])), expected)
        assert expected[1].item() == pytest.approx(
            torch.cat([a, b]).var().item() + a.var().item(), rel=1e-6
        )

    def test_identical_domains_have_no_distance(self):
        a = torch.tensor([1.0, 2.0, 4.0])
        assert risk_penalties([a, a])[0].item() == pytest.approx(0, abs=1e-6)

    def test_metrics(self):
        algorithm = small("RDM", rdm_penalty_anneal_iters=1, variance_weight=0.5)
        for done in range(2):
            minibatches = random_minibatches((2, 3, 4), done, VECTORS, dtype=torch.float64)
            metrics = algorithm.update(minibatches)
        assert metrics["update_count"] == 2
        penalties = 5 * metrics["matching_penalty"] + 0.5 * metrics["variance_penalty"]
        assert metrics["total_loss"] == pytest.approx(metrics["erm_loss"] + penalties)
        assert metrics["loss"] == metrics["total_loss"] > metrics["erm_loss"]

    def test_the_worst_domain_is_left_on_the_device(self):
        """Tensors without data have no values that could be looked at; nor has autocast them."""
        risks = [torch.empty(3, device="meta"), torch.empty(2, device="meta")]
        assert [value.shape for value in risk_penalties.__wrapped__(risks)] == [(), ()]


class TestEQRM:
    @pytest.mark.parametrize("implicit", [False, True])
    @pytest.mark.parametrize("quantile", [0.5, 0.75, 0.99, 0.01, -1000.0])
    @pytest.mark.parametrize("domains", [2, 3, 6])
    def test_quantile_against_a_bisection(self, domains, quantile, implicit):
        risks = random(domains).exp().detach().requires_grad_()
        expected = naive.risk_quantile(list(risks), quantile, implicit)
        actual = quantile_of_risks(risks, quantile, implicit)
        torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-9)
        gradients = [torch.autograd.grad(value, risks)[0] for value in (actual, expected)]
        torch.testing.assert_close(*gradients, rtol=1e-8, atol=1e-8)

    @pytest.mark.parametrize("quantile", [0.6, 0.9])
    def test_the_implicit_gradient_is_that_of_the_quantile(self, quantile):
        """Against differences; the bisection's own differs, and has three entries at most."""
        risks = torch.tensor([0.2, 0.7, 1.1, 2.0], dtype=torch.float64, requires_grad=True)
        implicit, bisected = (
            torch.autograd.grad(quantile_of_risks(risks, quantile, how), risks)[0]
            for how in (True, False)
        )
        step = 1e-4 * torch.eye(4, dtype=torch.float64)
        with torch.no_grad():
            differences = torch.stack(
                [
                    quantile_of_risks(risks + d, quantile) - quantile_of_risks(risks - d, quantile)
                    for d in step
                ]
            )
        torch.testing.assert_close(implicit, differences / 2e-4, rtol=1e-4, atol=1e-5)
        assert (bisected - implicit).abs().max() > 0.01
        assert implicit.sum().item() == pytest.approx(1) == bisected.sum().item()

    def test_it_is_the_quantile_and_moves_with_the_risks(self):
        risks = torch.tensor([0.3, 0.5, 1.7], dtype=torch.float64)
        found = quantile_of_risks(risks, 0.8)
        width = 1.06 * risks.std() * 3**-0.2
        assert naive.smoothed_cdf(found, risks, width).item() == pytest.approx(0.8, abs=1e-8)
        torch.testing.assert_close(quantile_of_risks(3 * risks.flip(0) + 1, 0.8), 3 * found + 1)

    @pytest.mark.parametrize("implicit", [False, True])
    def test_equal_risks(self, implicit):
        risks = torch.full((3,), 0.7, requires_grad=True)
        value = quantile_of_risks(risks, 0.75, implicit)
        (gradient,) = torch.autograd.grad(value, risks)
        assert value.item() == pytest.approx(0.7)
        assert gradient.sum().item() == pytest.approx(1)

    def test_nothing_waits_for_the_device(self):
        risks = torch.empty(3, device="meta")
        assert quantile_of_risks(risks, 0.75, implicit=True).shape == ()

    @pytest.mark.parametrize("fidelity", ["domainbed", "mended", "paper"])
    @pytest.mark.parametrize("burnin", [0, 1.5, 2])
    def test_readings(self, burnin, fidelity):
        hparams = {"eqrm_lr": 5e-3, "eqrm_quantile": 0.8, "eqrm_burnin_iters": burnin}
        follow("EQRM", (3, 4, 2), fidelity=fidelity, **hparams)

    @pytest.mark.parametrize(("fidelity", "rate"), [("domainbed", 1e-3), ("mended", 0.5)])
    def test_a_burnin_that_is_no_whole_number(self, fidelity, rate):
        algorithm = small("EQRM", fidelity=fidelity, eqrm_burnin_iters=0.5, eqrm_lr=0.5)
        for step in range(2):
            algorithm.update(random_minibatches((2, 3, 2), step, VECTORS, dtype=torch.float64))
        assert algorithm.optimizer.param_groups[0]["lr"] == rate

    def test_the_reading_is_recorded(self):
        assert RunSpec.create("PACS", "EQRM", [0]).hparams["fidelity"] == "mended"
        named = RunSpec.create("PACS", "EQRM", [0], protocol="domainbed-2024")
        assert named.hparams["fidelity"] == "domainbed"

    @pytest.mark.parametrize(("value", "message"), [(1, "below 1"), (1.5, "below 1")])
    def test_no_quantile(self, value, message):
        with pytest.raises(UserError, match=message):
            RunSpec.create("PACS", "EQRM", [0], hparams={"eqrm_quantile": value})

    def test_quantile_zero(self):
        with pytest.raises(UserError, match="'eqrm_quantile' of EQRM cannot be 0"):
            small("EQRM", eqrm_quantile=0)


def test_all_have_a_naive_twin():
    assert set(naive.NAIVE) <= set(NAIVE)
    assert references.coral_distance is naive.coral_distance
