"""The adversarial and the contrastive algorithms: their parts, both readings, what they refuse."""

from __future__ import annotations

import math

import pytest
import references
import torch
from helpers import build, flat_parameters, random_minibatches
from test_trajectories import SMALL_MLP, VECTORS, follow

from domainbed.algorithms import CAD, CDANN, CondCAD
from domainbed.algorithms.base import domain_labels
from domainbed.algorithms.cad import domain_bottleneck
from domainbed.algorithms.cdann import class_divisors
from domainbed.algorithms.dann import is_discriminator_step
from domainbed.algorithms.pairs import masked_log_softmax, others, same, similarities
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
        assert metrics["loss"] == metrics["clf_loss"]
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
            build(name, 3, shape=VECTORS, **SMALL_MLP).update(each)["bn_loss"]
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
