"""MixStyle, EFDMix, DSU and LISA: numbers by hand, loops in float64, places and pairs."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from helpers import build, flat_parameters, random_minibatches
from references import concatenated, sample_loss

from domainbed.algorithms.base import Draws
from domainbed.algorithms.mixstyle import across_domains
from domainbed.core.minibatch import Minibatch
from domainbed.errors import UserError

STYLES = ("MixStyle", "EFDMix", "DSU")
VECTORS = (6,)
MLP = {"mlp_width": 8, "mlp_depth": 3, "mlp_dropout": 0.0}


def disturbing(name, monkeypatch, weight, partners):
    """The method with λ and partners that a test chooses."""
    algorithm = build(name)
    given = torch.tensor(weight)[:, None, None, None], torch.tensor(partners)
    monkeypatch.setattr(algorithm, "draw_pairs", lambda x: given)
    return algorithm.disturbed


def test_mixed_styles_by_hand(monkeypatch):
    x = torch.tensor([[0.0, 2.0], [10.0, 30.0]]).reshape(2, 1, 1, 2)
    half = disturbing("MixStyle", monkeypatch, [0.5, 0.5], [1, 0])(x)
    expected = torch.tensor([[5.0, 16.0], [5.0, 16.0]])
    torch.testing.assert_close(half.flatten(1), expected, rtol=0, atol=2e-6)
    same = disturbing("MixStyle", monkeypatch, [1.0, 1.0], [1, 0])(x)
    torch.testing.assert_close(same, x)
    other = disturbing("MixStyle", monkeypatch, [0.0, 0.0], [1, 0])(x).flatten(1)
    torch.testing.assert_close(other.mean(1), torch.tensor([20.0, 1.0]))
    torch.testing.assert_close(other.std(1), x.flatten(1).std(1).flip(0), rtol=1e-5, atol=1e-5)


def test_values_at_the_ranks_of_others_by_hand(monkeypatch):
    x = torch.tensor([[3.0, 1.0, 2.0], [10.0, 30.0, 20.0]]).reshape(2, 1, 1, 3)
    x.requires_grad_()
    mixed = disturbing("EFDMix", monkeypatch, [0.75, 0.75], [1, 0])(x)
    expected = torch.tensor([[9.75, 3.25, 6.5], [7.75, 23.25, 15.5]])
    torch.testing.assert_close(mixed.flatten(1), expected)
    # 1 for the image itself, and 0.25 from the other image, to which it lends its values.
    (gradient,) = torch.autograd.grad(mixed[0].sum(), x)
    torch.testing.assert_close(gradient.flatten(1), torch.tensor([[1.0] * 3, [0.25] * 3]))


def test_noise_on_styles(monkeypatch):
    dsu, x = build("DSU").double(), torch.randn(5, 3, 4, 4, dtype=torch.float64)
    drawn = copy.deepcopy(dsu.draws)
    noise = [drawn.normal(5, 3, 1, 1).double() for _ in range(2)]
    mean, std = x.mean((2, 3)), (x.var((2, 3)) + 1e-6).sqrt()
    expected = torch.empty_like(x)
    for n in range(5):
        for c in range(3):
            beta = mean[n, c] + noise[0][n, c] * (mean[:, c].var() + 1e-6).sqrt()
            gamma = std[n, c] + noise[1][n, c] * (std[:, c].var() + 1e-6).sqrt()
            expected[n, c] = gamma * (x[n, c] - mean[n, c]) / std[n, c] + beta
    torch.testing.assert_close(dsu.disturbed(x), expected)
    monkeypatch.setattr(dsu.draws, "normal", lambda *shape: torch.zeros(shape))
    torch.testing.assert_close(dsu.disturbed(x), x)
    monkeypatch.setattr(dsu.draws, "normal", lambda *shape: torch.ones(shape))
    alike = x[:1].expand(5, 3, 4, 4)  # s is √1e-6
    moved = alike + 1e-3 * (alike - mean[:1, :, None, None]) / std[:1, :, None, None] + 1e-3
    torch.testing.assert_close(dsu.disturbed(alike), moved)


def test_one_place_has_no_spread():
    for name in STYLES:
        assert build(name).disturbed(torch.randn(4, 3, 1, 1)).isfinite().all()


def test_partners_of_neighbouring_domains():
    """The first halves of a domain with the second halves of the next, in both directions."""
    partners = across_domains([4, 6, 5], Draws(0)).tolist()
    halves = {0: ([0, 1], [2, 3]), 1: ([4, 5, 6], [7, 8, 9]), 2: ([10, 11], [12, 13, 14])}
    for e in range(3):
        first, second = halves[e][0], halves[(e + 1) % 3][1]
        assert {partners[n] for n in first} <= set(second)
        assert {partners[n] for n in second} <= set(first)
    assert sorted(partners[n] for n in (4, 5, 6)) == [12, 13, 14]  # no one twice while others wait
    assert across_domains([1, 1], Draws(0)).tolist() == [0, 1]


def test_styles_are_mixed_in_training_at_the_places_alone():
    x = random_minibatches((6,))[0][0]
    for name in STYLES:
        algorithm = build(name, mix_probability=1.0)
        plain = algorithm.eval().base.featurizer(x)
        assert torch.equal(algorithm.eval().predict(x), algorithm.base.predict(x))
        assert not torch.allclose(algorithm.train().base.featurizer(x), plain)
        never = build(name, mix_probability=0.0)
        assert torch.equal(never.base.featurizer(x), plain)
    places = build("MixStyle", mix_places="bn3", mix_probability=1.0).base.featurizer
    hooks = [name for name, module in places.named_modules() if module._forward_hooks]
    assert hooks == ["bn3"]
    usual = [build(name).base.featurizer for name in ("MixStyle", "DSU")]
    found = [[n for n, m in each.named_modules() if m._forward_hooks] for each in usual]
    assert found == [["bn0", "bn1", "bn2"], ["bn0", "bn1", "bn2", "bn3"]]


@pytest.mark.parametrize("backbone", ["resnet18", "timm:resnet18"])
def test_places_of_resnets(backbone):
    changes = {"backbone": backbone, "weights": "none", "resnet_dropout": 0.0, "resnet18": False}
    layers = [f"network.layer{n}" for n in range(1, 5)]
    for name, places in {
        "EFDMix": layers[:3],
        "DSU": ["network.conv1", "network.maxpool", *layers],
    }.items():
        network = build(name, shape=(3, 64, 64), **changes).base.featurizer
        hooked = [n for n, module in network.named_modules() if module._forward_hooks]
        assert hooked == places


@pytest.mark.parametrize(
    ("shape", "changes", "message"),
    [
        (VECTORS, MLP, "no 'feature maps' that styles could be mixed at; it has none: choose a Re"),
        ((2, 8, 8), {"mix_places": "layer1"}, "no 'layer1' that .* it has bn0, bn1, bn2, bn3"),
    ],
)
def test_networks_without_places(shape, changes, message):
    with pytest.raises(UserError, match=message):
        build("MixStyle", shape=shape, **changes)


def test_added_to_another_they_draw_from_their_own_source():
    """CORAL with styles that are never mixed is CORAL; mixed, it trains and resumes as it did."""
    added, plain = build("MixStyle+CORAL", mix_probability=0.0), build("CORAL")
    for step in range(2):
        minibatches = random_minibatches((4, 3), step)
        assert added.update(minibatches) == plain.update(minibatches)
    assert torch.equal(flat_parameters(added), flat_parameters(plain))
    for name in ("SAM+MixStyle+CORAL", "MixStyle+Fishr+IRM", "DSU+MIRO"):
        twins = [build(name, mix_probability=1.0) for _ in range(2)]
        losses = [twin.update(random_minibatches((4, 3)))["loss"] for twin in twins]
        assert losses[0] == losses[1]


def test_updates_of_lisa_follow_loops():
    """Of both kinds, with the weights and partners that it draws."""
    for fidelity in ("paper", "authors"):
        changes = {"weight_decay": 0.01, "fidelity": fidelity, **MLP}
        lisa = build("LISA", 2, dtype=torch.float64, shape=VECTORS, **changes)
        network, kinds = copy.deepcopy(lisa.network), set()
        adam = torch.optim.Adam(network.parameters(), lr=lisa.hparams["lr"], weight_decay=0.01)
        for step in range(6):
            minibatches = random_minibatches((5, 4), step, VECTORS, dtype=torch.float64)
            (x, y), domains = concatenated(minibatches), [0] * 5 + [1] * 4
            drawn = copy.deepcopy(lisa.draws)
            by_label = drawn.beta(1, 1) < 0.5
            scores = drawn.uniform(9, 9).tolist()
            kinds.add(by_label)
            terms = []
            for i in range(9):
                fit = [
                    j
                    for j in range(9)
                    if (
                        y[i] == y[j]
                        if fidelity == "authors"
                        else (y[i] == y[j] and domains[i] != domains[j])
                        if by_label
                        else (y[i] != y[j] and domains[i] == domains[j])
                    )
                ]
                j = max(fit, key=lambda other, row=scores[i]: row[other]) if fit else i
                weight = drawn.beta(2.0, 2.0)
                logits = network((weight * x[i] + (1 - weight) * x[j])[None])[0]
                pair = [sample_loss(logits, y[n]) for n in (i, j)]
                terms.append(weight * pair[0] + (1 - weight) * pair[1])
            loss = sum(terms) / 9
            adam.zero_grad()
            loss.backward()
            adam.step()
            assert lisa.update(minibatches)["loss"] == pytest.approx(loss.item(), rel=1e-9)
            torch.testing.assert_close(
                flat_parameters(lisa.network), flat_parameters(network), rtol=1e-9, atol=1e-9
            )
        assert kinds == {True, False}


def test_cutmix_of_lisa_follows_loops():
    """Boxes of all sizes, cut at the edges; labels count by the pixels that are left."""
    lisa, shares = build("LISA", 2, dtype=torch.float64, lisa_mix="cutmix"), set()
    for step in range(6):
        minibatches = random_minibatches((5, 4), step, dtype=torch.float64)
        x, y = concatenated(minibatches)
        before, drawn = copy.deepcopy(lisa.network), copy.deepcopy(lisa.draws)
        lisa.draws, kept = copy.deepcopy(drawn), lisa.draws
        partners = lisa.partners(torch.as_tensor(y), torch.tensor([0] * 5 + [1] * 4)).tolist()
        after, lisa.draws = lisa.draws, kept
        share = after.beta(2.0, 2.0)
        height, width = x.shape[2:]
        half = [int(size * math.sqrt(1 - share)) // 2 for size in (height, width)]
        centre = [after.integer(size) for size in (height, width)]
        mixed, left = x.clone(), 0
        for row in range(height):
            for column in range(width):
                if all(c - h <= at < c + h for c, h, at in zip(centre, half, (row, column))):
                    for i, j in enumerate(partners):
                        mixed[i, :, row, column] = x[j, :, row, column]
                else:
                    left += 1
        weight = left / (height * width)
        shares.add(weight)
        terms = [
            weight * sample_loss(z, y[i]) + (1 - weight) * sample_loss(z, y[j])
            for i, (z, j) in enumerate(zip(before(mixed), partners))
        ]
        assert lisa.update(minibatches)["loss"] == pytest.approx(sum(terms).item() / 9, rel=1e-9)
    assert len(shares) >= 3
    assert min(shares) < 1
    with pytest.raises(UserError, match="CutMix needs images"):
        build("LISA", shape=VECTORS, lisa_mix="cutmix", **MLP)


def test_an_attribute_takes_the_place_of_the_domain():
    """Two attributes within one domain: partners of one label differ in it."""
    lisa = build("LISA", 1, shape=VECTORS, lisa_p=1.0, **MLP)
    y, attribute = torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 0, 1])
    assert lisa.partners(y, attribute).tolist() == [1, 0, 3, 2]
    seen = []
    lisa.partners = lambda y, a: seen.append(a.tolist()) or torch.arange(4)
    lisa.update([Minibatch(torch.randn(4, 6), y, {"attribute": attribute})])
    assert seen == [[0, 1, 0, 1]]
