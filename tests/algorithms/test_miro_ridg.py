"""MIRO and RIDG: numbers by hand, loops in float64, taps of each kind of network."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from helpers import build, flat_parameters, random_minibatches
from references import concatenated, mean_loss
from torch import nn

from domainbed.algorithms.miro import information_loss
from domainbed.errors import UserError
from domainbed.networks import Backbone
from domainbed.networks.stages import stages
from domainbed.spec import RunSpec

VECTORS = (6,)
MLP = {"mlp_width": 8, "mlp_depth": 3, "mlp_dropout": 0.0}
START = math.log(math.expm1(0.1 - 1e-5))


def test_the_information_loss_by_hand():
    """Half the log of 0.1 where nothing moved; and 1 / 0.1 / 2 more where all moved by 1."""
    assert pytest.approx(-2.25227355, abs=1e-8) == START
    raw = torch.full((3,), START, dtype=torch.float64)
    for shape in ((2, 3, 4, 4), (2, 5, 3), (2, 3)):
        z = torch.randn(shape, dtype=torch.float64)
        assert information_loss(z, z, raw).item() == pytest.approx(-1.15129255, abs=1e-8)
        assert information_loss(z + 1, z, raw).item() == pytest.approx(3.84870745, abs=1e-8)


def test_variances_belong_to_channels():
    raw = torch.tensor([START, 0.0], dtype=torch.float64)
    z, fixed = torch.randn(2, 3, 2, 2, 2, dtype=torch.float64)
    total = 0.0
    for n in range(3):
        for c, v in enumerate((0.1, math.log(2) + 1e-5)):
            squares = (z[n, c] - fixed[n, c]) ** 2
            total += (squares / v + math.log(v)).sum() / 2
    found = information_loss(z, fixed, raw).item()
    assert found == pytest.approx(total.item() / z.numel(), rel=1e-9)


def test_updates_of_miro_follow_loops():
    """The network by Adam, the variances by the same at ten times the rate, with decay."""
    changes = {"weight_decay": 0.01, "miro_lambda": 0.5}
    miro = build("MIRO", 2, dtype=torch.float64, shape=VECTORS, **changes, **MLP)
    network = copy.deepcopy(miro.network)
    fixed = copy.deepcopy(network[0])
    raw = torch.full((8,), START).double().requires_grad_()
    rate = miro.hparams["lr"]
    adam = torch.optim.Adam(
        [{"params": list(network.parameters())}, {"params": [raw], "lr": 10 * rate}],
        lr=rate,
        weight_decay=0.01,
    )
    for step in range(4):
        minibatches = random_minibatches((4, 3), step, VECTORS, dtype=torch.float64)
        x, y = concatenated(minibatches)
        z, z0 = network[0](x), fixed(x).detach()
        v = torch.log1p(raw.exp()) + 1e-5
        terms = [
            ((z[n, c] - z0[n, c]) ** 2 / v[c] + v[c].log()) / 2 for n in range(7) for c in range(8)
        ]
        loss = mean_loss(network[1](z), y) + 0.5 * sum(terms) / len(terms)
        adam.zero_grad()
        loss.backward()
        adam.step()
        assert miro.update(minibatches)["loss"] == pytest.approx(loss.item(), rel=1e-9)
        torch.testing.assert_close(
            flat_parameters(miro.network), flat_parameters(network), rtol=1e-9, atol=1e-9
        )
        torch.testing.assert_close(miro.raw_variances[0], raw, rtol=1e-9, atol=1e-9)
    assert torch.equal(flat_parameters(miro.pretrained), flat_parameters(fixed))
    miro.train().update(minibatches)
    assert not any(module.training for module in miro.pretrained.modules())


@pytest.mark.parametrize(
    ("name", "channels"),
    [
        ("resnet18", [64, 64, 128, 256, 512]),
        ("timm:resnet18", [64, 64, 128, 256, 512]),
        ("timm:regnety_002", [32, 24, 56, 152, 368]),
        ("vit_b_32", [768] * 5),
        ("timm:vit_tiny_patch16_224", [192] * 5),
        ("open_clip:RN50", [64, 256, 512, 1024, 2048]),
        ("open_clip:ViT-B-32", [768] * 5),
    ],
)
def test_taps(name, channels):
    hparams = {"backbone": name, "weights": "none", "resnet18": False, "resnet_dropout": 0.0}
    network = Backbone((3, 224, 224), hparams).eval()
    seen = []
    for stage in stages(network):
        stage.register_forward_hook(lambda _, x, z: seen.append(z.shape))
    with torch.no_grad():
        network(torch.zeros(1, 3, 224, 224))
    assert [shape[1 if len(shape) == 4 else -1] for shape in seen] == channels


def test_the_penalty_of_a_small_network_starts_at_its_least():
    """Four taps, each of log(0.1) / 2, and the variances fall or rise with what moves."""
    miro = build("MIRO")
    _, metrics = miro.objective(random_minibatches((4, 3)))
    assert metrics["penalty"].item() == pytest.approx(4 * -1.15129255, abs=1e-5)
    with pytest.raises(UserError, match="MIRO needs images"):
        RunSpec.create("PACS", "MIRO", [0], features="efficientnet_lite0")


def by_hand(weight, z, y, **hparams):
    ridg = build("RIDG", 1, shape=(2,), mlp_width=2, mlp_depth=2, **hparams).double()
    ridg.featurizer, ridg.num_classes = nn.Identity(), 2
    ridg.classifier = nn.Linear(2, 2, bias=False).double()
    ridg.bank, ridg.seen = torch.zeros(2, 2, 2).double(), torch.zeros(2, dtype=torch.bool)
    with torch.no_grad():
        ridg.classifier.weight.copy_(torch.tensor(weight))
    return ridg, [(torch.tensor(z, dtype=torch.float64), torch.tensor(y))]


def test_the_penalty_of_ridg_by_hand():
    case = ([[1.0, 0.0], [0.0, 2.0]], [[1.0, 1.0], [3.0, 1.0], [2.0, 2.0]], [0, 0, 1])
    ridg, minibatches = by_hand(*case)
    assert ridg.objective(minibatches)[1]["penalty"].item() == pytest.approx(0.5)
    assert ridg.bank.tolist() == [[[2, 0], [0, 2]], [[2, 0], [0, 4]]]
    ridg, minibatches = by_hand(*case, ridg_momentum=0.1)
    ridg.seen[:] = True
    assert ridg.objective(minibatches)[1]["penalty"].item() == pytest.approx(11.84)


def test_updates_of_ridg_follow_loops():
    changes = {"weight_decay": 0.01, "ridg_lambda": 0.5, "ridg_momentum": 0.3}
    ridg = build("RIDG", 2, dtype=torch.float64, shape=VECTORS, **changes, **MLP)
    network, bank = copy.deepcopy(ridg.network), {}
    adam = torch.optim.Adam(network.parameters(), lr=ridg.hparams["lr"], weight_decay=0.01)
    for step in range(5):
        minibatches = random_minibatches((2, 3), step, VECTORS, dtype=torch.float64)
        x, y = concatenated(minibatches)
        z, weight = network[0](x), network[1].weight
        penalty = 0.0
        for c in sorted(set(y.tolist())):
            rationales = [weight * z[n] for n in range(5) if y[n] == c]
            mean = sum(rationales).detach() / len(rationales)
            bank[c] = 0.7 * bank[c] + 0.3 * mean if c in bank else mean
            squares = sum(((r - bank[c]) ** 2).sum() for r in rationales)
            penalty = penalty + squares / len(rationales) / 3
        loss = mean_loss(network[1](z), y) + 0.5 * penalty
        adam.zero_grad()
        loss.backward()
        adam.step()
        assert ridg.update(minibatches)["loss"] == pytest.approx(loss.item(), rel=1e-9)
        torch.testing.assert_close(
            flat_parameters(ridg.network), flat_parameters(network), rtol=1e-9, atol=1e-9
        )
