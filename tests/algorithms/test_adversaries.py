"""The adversarial and the contrastive algorithms: their parts, both readings, what they refuse."""

from __future__ import annotations

import copy
import math
from functools import partial

import pytest
import references
import torch
from helpers import assert_same_tensors, build, flat_parameters, numbers, random_minibatches
from test_trajectories import SMALL_MLP, VECTORS, follow
from torch.nn import functional as F

from domainbed.algorithms import CAD, CDANN, CondCAD, get_algorithm_class
from domainbed.algorithms.adrmx import contrastive_loss, first_across
from domainbed.algorithms.base import domain_labels
from domainbed.algorithms.cad import (
    domain_bottleneck,
    masked_log_softmax,
    others,
    same,
    similarities,
)
from domainbed.algorithms.cdann import class_divisors
from domainbed.algorithms.dann import is_discriminator_step
from domainbed.algorithms.sagnet import normalised, statistics, with_mixed_style, with_other_content
from domainbed.algorithms.urm import URM, noise_loss
from domainbed.errors import UserError
from domainbed.spec import RunSpec

bottleneck = references.references_adversaries.bottleneck
BOTH = pytest.mark.parametrize("fidelity", ["domainbed", "paper"])


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_domain_labels():
    found = domain_labels([2, 1, 3], torch.device("cpu"))
    assert found.tolist() == [0, 0, 1, 2, 2, 2]
    assert found.dtype == torch.int64


def test_order_of_discriminator_steps():
    """One network step in each cycle; with d_steps 2 the order is D, network, D, D, network."""
    assert [is_discriminator_step(n, 2) for n in range(1, 7)] == [True, False, True] * 2
    assert [is_discriminator_step(n, 1) for n in range(1, 5)] == [False, True] * 2
    assert not any(is_discriminator_step(n, 0) for n in range(1, 5))


class TestCDANN:
    def test_divisors_by_hand(self):
        """Labels 0, 0, 2: counts 2 and 1; DomainBed's K is 3, the paper's 2."""
        y = torch.tensor([0, 0, 2])
        assert class_divisors(y, 5, present_only=False).tolist() == [6, 6, 3]
        assert class_divisors(y, 5, present_only=True).tolist() == [4, 4, 2]

    @BOTH
    @pytest.mark.parametrize("of", ["loss", "softmax"])
    def test_alternation_readings_and_penalty(self, fidelity, of):
        follow(
            "CDANN",
            (3, 2, 4),
            updates=6,
            d_steps_per_g_step=2,
            grad_penalty=2.0,
            **{"fidelity": fidelity, "grad_penalty_of": of, "lambda": 0.7, "lr_d": 2e-3},
        )

    def test_readings_agree_where_all_classes_occur(self):
        """With labels 0, 2 alone DomainBed's loss is two thirds of the paper's."""
        losses = {}
        for fidelity in ("domainbed", "paper"):
            for labels in ([0, 1, 2], [0, 2, 2]):
                algorithm = build("CDANN", shape=VECTORS, fidelity=fidelity, **SMALL_MLP)
                x, y = random(3, 6).float(), torch.tensor(labels)
                algorithm.update([(x, y), (x, y)])
                metrics = algorithm.update([(x, y), (x, y)])
                forward = algorithm.forward_pass([(x, y), (x, y)])
                loss = algorithm.disc_loss_of(forward.features, forward).item()
                losses[fidelity, labels[1]] = loss
                assert set(metrics) == {"disc_loss"}
        assert losses["domainbed", 1] == losses["paper", 1]
        assert losses["domainbed", 2] == pytest.approx(losses["paper", 2] * 2 / 3, rel=0.02)

    def test_all_classes_weigh_the_same(self):
        """Copies of one class's samples change nothing."""
        algorithm = build("CDANN", shape=VECTORS, **SMALL_MLP).double()
        z, y, more = random(4, 8), torch.tensor([0, 1, 0, 1]), torch.tensor([0, 1, 1, 2, 3, 3])
        losses = [
            algorithm.discriminator_loss(z[each], sizes, class_divisors(y[each], 3, False)).item()
            for each, sizes in [(torch.arange(4), [2, 2]), (more, [3, 3])]
        ]
        assert losses[0] == pytest.approx(losses[1])

    def test_a_discriminator_step_trains_the_embedding_alone_with_the_discriminator(self):
        algorithm = build("CDANN", shape=VECTORS, **SMALL_MLP)
        algorithm.update(random_minibatches((4, 3), 0, VECTORS))
        parts = {
            name: flat_parameters(getattr(algorithm, name)).clone()
            for name in ("featurizer", "classifier", "discriminator", "class_embeddings")
        }
        algorithm.update(random_minibatches((4, 3), 1, VECTORS))
        changed = {
            n for n, p in parts.items() if (flat_parameters(getattr(algorithm, n)) != p).any()
        }
        assert changed == {"discriminator", "class_embeddings"}

    def test_protocol_of_2020(self):
        spec = RunSpec.create("RotatedMNIST", "CDANN", [0], protocol="domainbed-2020")
        assert spec.hparams["grad_penalty_of"] == "softmax"
        assert spec.hparams["fidelity"] == "domainbed"


def test_masked_log_softmax():
    scores, support = random(4, 4), others(4, torch.device("cpu"))
    found = masked_log_softmax(scores, support)
    assert torch.allclose(
        found.masked_fill(~support, -math.inf).exp().sum(1), torch.ones(4).double()
    )
    shifted = masked_log_softmax(scores + random(4, 1, seed=1), support)
    torch.testing.assert_close(found[support], shifted[support])
    nothing = scores.requires_grad_()
    masked_log_softmax(nothing, torch.zeros(4, 4, dtype=torch.bool)).sum().backward()
    assert nothing.grad.abs().max() == 0


class TestBottleneck:
    Y, DOMAINS = [0, 0, 1, 1, 0, 2, 1], [0, 0, 0, 1, 1, 1, 2]

    @pytest.mark.parametrize("flipped", [True, False])
    @pytest.mark.parametrize("drops", [True, False])
    @pytest.mark.parametrize("conditional", [True, False])
    def test_against_loops(self, conditional, drops, flipped):
        z, y, domains = random(7, 3), torch.tensor(self.Y), torch.tensor(self.DOMAINS)
        support = others(7, z.device) & (same(y) | (not conditional))
        event = support & (same(domains) ^ flipped)
        if drops and not conditional:
            event &= (others(7, z.device) & same(y)).any(1, keepdim=True)
        found = domain_bottleneck(similarities(z, 0.5), support, event, 0.5, flipped)
        expected = bottleneck(
            z / math.sqrt(0.5), self.Y, self.DOMAINS, conditional, flipped, drops
        ) * (0.5 / 0.07)
        torch.testing.assert_close(found, expected)

    def test_closed_form(self):
        """Equal features, domains of 2 and 3: other domains hold 3/4 and 2/4 of the others."""
        domains = torch.tensor([0, 0, 1, 1, 1])
        support = others(5, domains.device)
        scores = similarities(torch.ones(5, 2), 0.1)
        found = domain_bottleneck(scores, support, support & ~same(domains), 0.1)
        expected = -(0.1 / 0.07) * (2 * math.log(3 / 4) + 3 * math.log(2 / 4)) / 5
        assert found.item() == pytest.approx(expected)

    @pytest.mark.parametrize("name", ["CAD", "CondCAD"])
    @pytest.mark.parametrize("sizes", [(4,), (1,), (1, 1)], ids=str)
    def test_zero_where_no_pair_counts(self, name, sizes):
        """One domain; or two samples of different classes, each alone in its class."""
        minibatches = random_minibatches(sizes, 0, VECTORS)
        minibatches = [(x, y * 0 + e) for e, (x, y) in enumerate(minibatches)]
        algorithm = build(name, len(sizes), shape=VECTORS, **SMALL_MLP)
        metrics = algorithm.update(minibatches)
        assert metrics["bn_loss"] == 0
        assert metrics["loss"] == metrics["total_loss"] == metrics["clf_loss"]
        assert flat_parameters(algorithm).isfinite().all()

    def test_the_paper_looks_at_no_label(self):
        losses = {}
        for fidelity in ("domainbed", "paper"):
            for labels in ([0, 0, 0], [0, 1, 2]):
                algorithm = build("CAD", shape=VECTORS, fidelity=fidelity, **SMALL_MLP)
                y = torch.tensor(labels)
                batch = [(random(3, 6).float(), y), (random(2, 6, seed=1).float(), y[:2])]
                losses[fidelity, labels[1]] = algorithm.update(batch)["bn_loss"]
        assert losses["paper", 0] == losses["paper", 1] == losses["domainbed", 0]
        assert losses["domainbed", 1] != losses["domainbed", 0]

    @pytest.mark.parametrize("name", ["CAD", "CondCAD"])
    def test_order_of_domains_and_samples(self, name):
        minibatches = random_minibatches((4, 3, 5), 0, VECTORS)
        turned = [(x.flip(0), y.flip(0)) for x, y in reversed(minibatches)]
        found = [
            numbers(build(name, 3, shape=VECTORS, **SMALL_MLP).update(each))["bn_loss"]
            for each in (minibatches, turned)
        ]
        assert found[0] == pytest.approx(found[1], rel=1e-5)
        assert found[0] != 0

    @pytest.mark.parametrize("name", ["CAD", "CondCAD"])
    @pytest.mark.parametrize(
        "settings",
        [{"is_flipped": False}, {"is_project": True, "is_normalized": True}, {"temperature": 0.5}],
        ids=str,
    )
    def test_switches(self, name, settings):
        follow(name, (4, 3, 5), updates=3, lmbda=0.5, **settings)

    def test_fidelity(self):
        follow("CAD", (4, 3, 5), updates=2, lmbda=0.5, fidelity="paper")
        assert "fidelity" in CAD.options
        assert "fidelity" not in CondCAD.options
        assert {"fidelity", "grad_penalty_of"} == set(CDANN.options)


def changed_by(algorithm, names, act):
    """Those of the modules `names` whose parameters `act()` changes."""
    before = {name: flat_parameters(getattr(algorithm, name)).clone() for name in names}
    act()
    return {n for n in names if (flat_parameters(getattr(algorithm, n)) != before[n]).any()}


@pytest.mark.parametrize("name", ["SagNet", "URM", "ADRMX"])
def test_several_optimizers_take_no_added_penalty(name):
    with pytest.raises(UserError, match=f"Fishr cannot be added to {name}, whose own 'update'"):
        get_algorithm_class(f"Fishr+{name}")


class TestSagNet:
    def test_style_by_hand(self):
        """(0, 2) has mean 1 and variance 2, (10, 10) mean 10 and 0: halfway 5.5 and 1."""
        z = torch.tensor([[0.0, 2.0], [10.0, 10.0]]).double()
        mixed = with_mixed_style(z, torch.tensor([1, 0]), torch.full((2, 1), 0.5).double())
        half = math.sqrt(0.5)
        expected = torch.tensor([[5.5 - half, 5.5 + half], [5.5, 5.5]]).double()
        torch.testing.assert_close(mixed, expected, atol=1e-4, rtol=0)

    def test_own_style_and_own_content_change_nothing(self):
        z = random(4, 5)
        same_order, turned = torch.arange(4), torch.tensor([2, 3, 1, 0])
        torch.testing.assert_close(with_mixed_style(z, turned, torch.ones(4, 1).double()), z)
        torch.testing.assert_close(with_other_content(z, same_order), z)

    def test_content_keeps_the_style_and_is_constant(self):
        z, other = random(4, 5).requires_grad_(), torch.tensor([2, 3, 1, 0])
        mixed = with_other_content(z, other)
        for own, expected in zip(statistics(mixed), statistics(z), strict=True):
            torch.testing.assert_close(own, expected, atol=1e-4, rtol=0)
        mean, var = statistics(z)
        content = normalised(z, mean, var)[other].detach()
        found = normalised(mixed, *statistics(mixed))
        torch.testing.assert_close(found, content, atol=1e-4, rtol=0)
        expected = torch.autograd.grad((content * (var + 1e-5).sqrt() + mean)[0].sin().sum(), z)[0]
        torch.testing.assert_close(torch.autograd.grad(mixed[0].sin().sum(), z)[0], expected)

    def test_equal_features_are_finite(self):
        z = torch.ones(3, 4, requires_grad=True)
        mixed = with_mixed_style(z, torch.tensor([1, 2, 0]), torch.full((3, 1), 0.3))
        (gradient,) = torch.autograd.grad(mixed.square().sum(), z)
        assert gradient.isfinite().all()

    def test_which_network_each_step_moves(self):
        """With a rate for one optimizer alone, one network moves."""
        names = ("featurizer", "classifier", "style_classifier")
        minibatches = random_minibatches((4, 3), 0, VECTORS)
        moved = {}
        for which in ("optimizer_f", "optimizer_c", "optimizer_s"):
            algorithm = build("SagNet", shape=VECTORS, **SMALL_MLP)
            for name in ("optimizer_f", "optimizer_c", "optimizer_s"):
                for group in getattr(algorithm, name).param_groups:
                    group["lr"] = 0.1 * (name == which)
            moved[which] = changed_by(algorithm, names, partial(algorithm.update, minibatches))
        assert moved == dict(zip(moved, [{name} for name in names], strict=True))

    def test_an_adversary_without_weight_does_nothing(self):
        found = {}
        for weight in (0.0, 1.0):
            algorithm = build("SagNet", shape=VECTORS, sag_w_adv=weight, **SMALL_MLP)
            found[weight] = algorithm.update(random_minibatches((4, 3), 0, VECTORS))
        assert found[0.0]["loss_adv"] == 0
        assert found[1.0]["loss_adv"] >= math.log(3)  # the entropy of three equal classes
        assert found[0.0]["loss_c"] == found[1.0]["loss_c"]

    def test_rounding(self):
        """To the bit in float32: Adam turns rounding of small gradients into large steps."""
        algorithm = build("SagNet", shape=VECTORS, **SMALL_MLP)
        f, c, s, draws = (
            copy.deepcopy(getattr(algorithm, name))
            for name in ("featurizer", "classifier", "style_classifier", "draws")
        )
        of_f, of_c, of_s = (torch.optim.Adam(net.parameters(), lr=1e-3) for net in (f, c, s))

        def mixed(x, style):
            z = f(x)
            share, other = draws.uniform(len(z), 1), draws.permutation(len(z))
            mean, var = z.mean(-1, keepdim=True), z.var(-1, keepdim=True)
            z = (z - mean) / (var + 1e-5).sqrt()
            if style:
                mean = share * mean + (1 - share) * mean[other]
                var = share * var + (1 - share) * var[other]
            return (z if style else z[other].detach()) * (var + 1e-5).sqrt() + mean

        for step in range(3):
            minibatches = random_minibatches((4, 3), step, VECTORS)
            x, y = (torch.cat(part) for part in zip(*minibatches))
            for kind, optimizers in (("c", (of_f, of_c)), ("s", (of_s,)), ("adv", (of_f,))):
                f.zero_grad(), c.zero_grad(), s.zero_grad()
                z = mixed(x, kind == "c")
                if kind == "adv":
                    loss = -F.log_softmax(s(z), 1).mean(1).mean() * 0.1
                else:
                    loss = F.cross_entropy((c if kind == "c" else s)(z), y)
                loss.backward()
                for optimizer in optimizers:
                    optimizer.step()
            algorithm.update(minibatches)
        for name, net in (("featurizer", f), ("classifier", c), ("style_classifier", s)):
            assert_same_tensors(getattr(algorithm, name), net)

    def test_one_feature_is_refused(self):
        with pytest.raises(UserError, match=r"SagNet needs at least 2 features, .* has 1"):
            build("SagNet", shape=VECTORS, mlp_width=1, mlp_depth=2, mlp_dropout=0.0)

    @pytest.mark.parametrize("weight", [0.0, 3.0])
    def test_weight(self, weight):
        follow("SagNet", (3, 4), sag_w_adv=weight)


@pytest.mark.parametrize("name", ["CAD", "CondCAD"])
def test_bottlenecks_round_as_plain_softmaxes(name):
    """To the bit in float32: Adam turns rounding of small gradients into large steps."""
    algorithm = build(name, shape=VECTORS, lmbda=1.0, temperature=0.05, **SMALL_MLP)
    network = copy.deepcopy(algorithm.network)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    for step in range(3):
        minibatches = random_minibatches((7, 6), step, VECTORS)
        x, y = (torch.cat(part) for part in zip(*minibatches))
        z = network[0](x)
        distinct = ~torch.eye(13, dtype=torch.bool)
        partners = (y == y[:, None]) & distinct
        support = partners if name == "CondCAD" else distinct
        domains = domain_labels((7, 6), y.device)
        event = support & (domains != domains[:, None])
        scores = z @ z.T / 0.05 * distinct
        scores = scores - scores.amax(1, keepdim=True).detach()
        logarithms = scores - (scores + support.float().log()).logsumexp(1, keepdim=True)
        kept = (partners & event if name == "CondCAD" else partners).any(1)
        rows = -(0.05 / 0.07) * (logarithms + event.float().log())[kept].logsumexp(1)
        penalty = rows.mean()
        optimizer.zero_grad()
        (F.cross_entropy(network[1](z), y) + penalty).backward()
        optimizer.step()
        algorithm.update(minibatches)
    assert_same_tensors(algorithm.network, network)


class TestURM:
    def test_noise_loss_by_hand(self):
        """-log σ(0) and -log (1 - σ(log 3)): log 2 and log 4."""
        logits = torch.tensor([[0.0], [math.log(3.0)]])
        loss = noise_loss(logits, torch.tensor([1, 0]))
        assert loss.item() == pytest.approx((math.log(2) + math.log(4)) / 2)

    @pytest.mark.parametrize("output", ["tanh", "relu", "sigmoid"])
    def test_features_are_in_the_range_of_the_noise(self, output):
        algorithm = build("URM", shape=VECTORS, urm_generator_output=output, **SMALL_MLP)
        z = algorithm.featurizer(5 * random(50, 6).float())
        low, high = algorithm.interval
        assert low == (-1 if output == "tanh" else 0)
        assert z.min() >= low
        assert output == "relu" or z.max() <= high
        assert torch.equal(algorithm.predict(z[:, :6]), algorithm.network(z[:, :6]))

    @pytest.mark.parametrize(
        "settings",
        [
            {"urm_generator_output": "relu", "urm_discriminator_hidden_layers": 3},
            {"urm_adv_lambda": 0.0, "urm_discriminator_hidden_layers": 0},
            {"urm_discriminator_label_smoothing": 0.3, "urm_adv_lambda": 2.0},
            {"urm_discriminator_optimizer": "sgd", "urm_discriminator_lr": 0.1},
        ],
        ids=str,
    )
    def test_switches(self, settings):
        follow("URM", (3, 4), updates=3, **settings)

    def test_each_step_moves_its_own_network(self):
        names = ("featurizer", "classifier", "discriminator")
        algorithm = build("URM", shape=VECTORS, urm_discriminator_lr=0.0, **SMALL_MLP)
        minibatches = random_minibatches((4, 3), 0, VECTORS)
        moved = changed_by(algorithm, names, lambda: algorithm.update(minibatches))
        assert moved == {"featurizer", "classifier"}
        algorithm = build("URM", shape=VECTORS, lr=0.0, **SMALL_MLP)
        moved = changed_by(algorithm, names, lambda: algorithm.update(minibatches))
        assert moved == {"discriminator"}

    def test_any_featurizer(self):
        """DomainBed's takes four classes; here is one more."""
        algorithm = build("URM", shape=(3, 32, 32), backbone="resnet18", weights="none")
        assert algorithm.predict(torch.zeros(2, 3, 32, 32)).shape == (2, 3)
        assert isinstance(algorithm, URM)


class TestADRMX:
    def test_contrastive_loss_against_loops(self):
        z, labels = random(7, 4).requires_grad_(), [0, 0, 1, 1, 0, 2, 1]
        found = contrastive_loss(z, torch.tensor(labels))
        expected = references.references_adversaries.contrastive(z, labels)
        torch.testing.assert_close(found, expected)
        gradients = [torch.autograd.grad(value, z)[0] for value in (found, expected)]
        torch.testing.assert_close(*gradients)

    def test_contrastive_loss_by_hand(self):
        """Two equal samples of a class and one opposite of another: each p is nearly one."""
        z, y = torch.tensor([[1.0, 0], [2, 0], [-1, 0]]).double(), torch.tensor([0, 0, 1])
        a, b = math.exp(1 / 0.07), math.exp(-1 / 0.07)
        expected = -2 * math.log(0.5 * a / (0.5 * (a + b) + 1e-5) + 1e-5) / 3
        assert contrastive_loss(z, y).item() == pytest.approx(expected, rel=1e-6)

    def test_contrastive_loss_is_finite_and_keeps_its_symmetries(self):
        z, y = random(6, 4), torch.tensor([0, 1, 0, 1, 2, 0])
        order = torch.tensor([3, 5, 0, 1, 4, 2])
        loss = contrastive_loss(z, y)
        torch.testing.assert_close(contrastive_loss(z[order], y[order]), loss)
        torch.testing.assert_close(contrastive_loss(7 * z, y), loss)
        assert contrastive_loss(z, torch.arange(6)) == 0
        assert contrastive_loss(z[:1], y[:1]) == 0
        nothing = torch.zeros(3, 4, requires_grad=True)
        contrastive_loss(nothing, y[:3]).backward()
        assert nothing.grad.tolist() == [[0.0] * 4] * 3

    def test_first_across(self):
        domains = torch.tensor([0, 0, 1, 1])
        assert first_across(torch.tensor([1, 0, 3, 2]), domains).tolist() == [1, 3]
        assert first_across(torch.tensor([2, 3]), domains).tolist() == [2]

    @BOTH
    def test_pairs(self, fidelity):
        """The paper's are of one class and two domains; DomainBed's are the first samples."""
        algorithm = build("ADRMX", 2, shape=VECTORS, fidelity=fidelity, **SMALL_MLP)
        y, domains = torch.tensor([0, 1, 1, 2, 1, 1, 0, 2]), [0, 0, 0, 0, 1, 1, 1, 1]
        seen = set()
        for _ in range(30):
            pairs = algorithm.remix_pairs(y, [4, 4]).tolist()
            assert len(pairs) == 3
            seen |= set(map(tuple, pairs))
        if fidelity == "paper":
            assert all(y[p] == y[q] and domains[p] != domains[q] for p, q in seen)
            assert {(1, 4), (5, 2), (0, 6), (6, 0)} <= seen
        else:  # counted within classes of 2 and 4 samples
            assert {p for pair in seen for p in pair} == {0, 1, 2, 3}

    @pytest.mark.parametrize(("fidelity", "pairs"), [("domainbed", 1), ("paper", 0)])
    def test_classes_without_a_pair(self, fidelity, pairs):
        """Two samples of class 0 in one domain; no class has two: DomainBed would raise."""
        algorithm = build("ADRMX", 2, shape=VECTORS, fidelity=fidelity, **SMALL_MLP)
        assert len(algorithm.remix_pairs(torch.tensor([0, 0, 1]), [2, 1])) == pairs
        assert len(algorithm.remix_pairs(torch.tensor([0, 2, 1]), [2, 1])) == 0
        batch = [
            (random(2, 6).float(), torch.tensor([0, 2])),
            (random(1, 6).float(), torch.ones(1).long()),
        ]
        metrics = [algorithm.update(batch) for _ in range(2)][-1]
        assert metrics["loss_remixed"] == 0
        assert all(math.isfinite(value) for value in metrics.values())

    @BOTH
    @pytest.mark.parametrize("rounds", [0, 1])
    def test_alternation_and_readings(self, fidelity, rounds):
        weights = {"cnt_lambda": 0.5, "dclf_lambda": 2.0, "rmxd_lambda": 3.0, "disc_lambda": 0.7}
        follow(
            "ADRMX",
            (4, 3, 5),
            updates=3,
            **weights,
            **{"fidelity": fidelity, "d_steps_per_g_step": rounds, "lr": 1e-3, "beta1": 0.3},
        )

    def test_steps_and_what_they_move(self):
        names = ("featurizer", "domain_featurizer", "discriminator")
        algorithm = build("ADRMX", shape=VECTORS, **SMALL_MLP)
        minibatches = random_minibatches((4, 3), 0, VECTORS)
        moved, seen = [], []
        for _ in range(3):
            moved.append(
                changed_by(algorithm, names, lambda: seen.append(algorithm.update(minibatches)))
            )
        assert moved == [{"discriminator"}, {"featurizer", "domain_featurizer"}, {"discriminator"}]
        assert list(seen[0]) == ["loss_disc"]
        expected = "loss_total loss_cnt_int loss_cnt_final loss_clf_int loss_clf_fin loss_dmn"
        assert list(seen[1]) == [*expected.split(), "loss_disc", "loss_remixed"]
