"""PCL and FACT: numbers by hand, and loops in float64 over several updates."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from helpers import CLASSES, build, flat_parameters, random_minibatches, small_hparams
from references import concatenated, mean_loss
from torch import nn

from domainbed.algorithms import get_algorithm_class
from domainbed.algorithms.base import Draws
from domainbed.algorithms.erm import ForwardPass
from domainbed.algorithms.fact import amplitude_mix, random_pairs
from domainbed.algorithms.pcl import proxy_loss
from domainbed.config.run_facts import RunFacts
from domainbed.datasets.images.transforms import normalised
from domainbed.errors import UserError
from domainbed.networks.pretrained import scale_and_offset
from domainbed.spec import RunSpec

VECTORS = (6,)
MLP = {"mlp_width": 8, "mlp_depth": 3, "mlp_dropout": 0.0}


def test_the_proxy_loss_by_hand():
    """The authors' order of positives, and the same samples in the order of their classes."""
    z = torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 1.0]], dtype=torch.float64)
    p, y = torch.tensor([[0.0, 1.0], [1.0, 0.0]], dtype=torch.float64), torch.tensor([1, 0, 1])
    for order, expected in (([0, 1, 2], 3.07881459), ([1, 0, 2], 3.20447406)):
        rows, labels = z[order], y[order]
        others = labels[:, None] != labels
        assert proxy_loss(rows, p, labels, others, True).item() == pytest.approx(expected)
    # With all proxies there are more to tell apart; and nothing depends on the order.
    found = [
        proxy_loss(z[o], p, y[o], y[o][:, None] != y[o]).item() for o in ([0, 1, 2], [1, 0, 2])
    ]
    assert found[0] == pytest.approx(found[1])
    assert found[0] > 3.20447406


def naive_proxy_loss(z, proxies, y, domains, fidelity):
    def cosine(a, b):
        return 12 * (a * b).sum() / (a * a).sum() ** 0.5 / (b * b).sum() ** 0.5

    rows, terms = range(len(y)), []
    by_class = [i for k in range(len(proxies)) for i in rows if y[i] == k]
    for i in rows:
        if fidelity == "authors":
            positive = cosine(z[by_class[i]], proxies[y[by_class[i]]])
            products = [cosine(z[i], z[j]) for j in rows if y[j] != y[i]]
            candidates = [positive, *(each for each in products if each >= 12e-6)]
        else:
            positive = cosine(z[i], proxies[y[i]])
            near = [j for j in rows if y[j] != y[i] and domains[j] == domains[i]]
            candidates = [cosine(z[i], p) for p in proxies] + [cosine(z[i], z[j]) for j in near]
        terms.append(-torch.log(positive.exp() / sum(each.exp() for each in candidates)))
    return sum(terms) / len(terms)


@pytest.mark.parametrize("fidelity", ["paper", "authors"])
def test_updates_of_pcl_follow_loops(fidelity):
    """By SGD: Adam would enlarge the rounding of biases before batch norm, which have no effect."""
    changes = {"weight_decay": 0.01, "fidelity": fidelity, "pcl_blocks": 2, "pcl_projection": 2}
    changes |= {"optimizer": "sgd", "lr": 0.05, **MLP}
    pcl = build("PCL", 2, dtype=torch.float64, shape=VECTORS, **changes)
    twin = copy.deepcopy(pcl)
    settings = {"lr": 0.05, "momentum": 0.9, "weight_decay": 0.01}
    sgd = torch.optim.SGD(twin.parameters(), **settings)
    for step in range(4):
        minibatches = random_minibatches((3, 4), step, VECTORS, dtype=torch.float64)
        x, y = concatenated(minibatches)
        h, weight = twin.featurizer(x), twin.classifier.weight
        z = twin.projection(h)
        risk = mean_loss(h @ weight.T, y)
        proxies = weight @ twin.proxy_map.weight.T
        loss = risk + naive_proxy_loss(z, proxies, y, [0] * 3 + [1] * 4, fidelity)
        sgd.zero_grad()
        loss.backward()
        sgd.step()
        assert pcl.update(minibatches)["loss"] == pytest.approx(loss.item(), rel=1e-9)
        torch.testing.assert_close(
            flat_parameters(pcl), flat_parameters(twin), rtol=1e-9, atol=1e-9
        )


def test_what_pcl_starts_with():
    """Small weights in the encoder, uniform ones in classifier and map; one width throughout."""
    pcl = build("PCL", pcl_width=64)
    layers = [layer for layer in pcl.featurizer[1] if isinstance(layer, nn.Linear)]
    assert [(m.in_features, m.out_features) for m in layers] == [(128, 512), (512, 64)]
    for layer in layers:
        assert layer.weight.std().item() == pytest.approx(0.01, rel=0.05)
        assert layer.bias.abs().max() == 0
    for drawn in (pcl.classifier, pcl.proxy_map):  # √(6 / (1 + 5)) / √rows, as a = √5
        bound = 1 / math.sqrt(drawn.out_features)
        assert 0.9 * bound < drawn.weight.abs().max() <= bound


def naive_mix(own, other, share):
    """By NumPy's complex spectrum of one image (C, H, W) of levels, in float64."""
    spectrum, theirs = np.fft.fft2(own), np.fft.fft2(other)
    amplitude = (1 - share) * np.abs(spectrum) + share * np.abs(theirs)
    return np.fft.ifft2(amplitude * np.exp(1j * np.angle(spectrum))).real


def test_amplitudes_are_mixed_and_phases_kept():
    """Up to a grey level, where rounding decides; an image mixed with itself is itself."""
    levels = torch.randint(256, (3, 2, 6, 5), generator=torch.Generator().manual_seed(0)).double()
    partners, shares = torch.tensor([1, 0, 2]), torch.tensor([0.3, 0.9, 0.7]).double()
    found = amplitude_mix(levels, partners, shares)
    for n, image in enumerate(levels):
        raw = naive_mix(image.numpy(), levels[partners[n]].numpy(), shares[n].item())
        raw = torch.from_numpy(raw).clamp(0, 255)
        assert ((raw - found[n] >= -1e-9) & (raw - found[n] < 1 + 1e-9)).all()
    assert (found == found.floor()).all()
    assert (found[2] - levels[2]).abs().max() <= 1
    assert (found[0] - levels[0]).abs().max() > 5


def test_pairs_are_mutual_and_share_their_weight():
    for size in (1, 2, 7, 8):
        partners, weights = random_pairs(size, Draws(3), 0.5)
        assert partners[partners].tolist() == list(range(size))
        assert torch.equal(weights, weights[partners])
        alone = (partners == torch.arange(size)).nonzero()
        assert len(alone) == size % 2
        assert (weights[alone] == 0).all()
        assert weights.max() < 0.5


def test_consistency_by_hand_and_its_weight_over_a_run():
    """KL of softmax((10, 0) / 10) to softmax((0, 10) / 10), both ways; and the authors' epochs."""
    fact = build("FACT")
    first, second = torch.tensor([[10.0, 0, -1e9]]), torch.tensor([[0.0, 10, -1e9]])
    answers = {"own": torch.cat([first, second]), "taught": torch.cat([first, second])}
    fact.forward_pass = lambda minibatches: FixedLogits(minibatches, answers["own"])
    fact.teacher = nn.Flatten()
    fact.teacher.forward = lambda x: answers["taught"]
    minibatches = [random_minibatches((1,))[0]]
    forward = FixedLogits(minibatches, answers["own"])
    loss, metrics = fact.objective_of(forward)
    assert metrics["consistency"].item() == pytest.approx(2 * 0.46211716, rel=1e-6)
    weights = []
    fact.facts = RunFacts(steps=50)
    for epoch in range(7):
        fact.facts.begin(epoch)
        loss, metrics = fact.objective_of(forward)
        weights.append(((loss - metrics["nll"]) / metrics["consistency"]).item())
    assert weights == pytest.approx([0.0135, 0.0815, 0.3306, 0.8987, 1.6375, 2, 2], abs=5e-5)


class FixedLogits(ForwardPass):
    def __init__(self, minibatches, logits):
        super().__init__(minibatches, None, lambda x: logits)


def test_updates_of_fact_follow_loops():
    changes = {"weight_decay": 0.01, "fact_warmup": 0.25, "fact_momentum": 0.6}
    fact = build("FACT", 2, dtype=torch.float64, **changes)
    fact.facts = RunFacts(steps=8)
    network, draws = copy.deepcopy(fact.network), copy.deepcopy(fact.draws)
    teacher = copy.deepcopy(network)
    adam = torch.optim.Adam(network.parameters(), lr=fact.hparams["lr"], weight_decay=0.01)
    for step in range(4):
        fact.facts.begin(step)
        minibatches = random_minibatches((2, 3), step, dtype=torch.float64)
        minibatches = [(x.sigmoid(), y) for x, y in minibatches]
        x, y = concatenated(minibatches)
        partners, shares = random_pairs(5, draws, 1.0)
        levels = (255 * x).numpy()
        mixed = [
            np.floor(
                naive_mix(levels[n], levels[partners[n]], shares[n].double().item()).clip(0, 255)
            )
            for n in range(5)
        ]
        version = torch.from_numpy(np.stack(mixed)) / 255
        loss = (mean_loss(network(x), y) + mean_loss(network(version), y)) / 2
        weight = 2 * math.exp(-5 * (1 - min(step / 2, 1)) ** 2)
        for seen, shown in ((x, version), (version, x)):
            q = torch.softmax(teacher(seen).detach() / 10, dim=1)
            p = torch.softmax(network(shown) / 10, dim=1)
            loss = loss + weight * (q * (q.log() - p.log())).sum(dim=1).mean()
        adam.zero_grad()
        loss.backward()
        adam.step()
        keep = min(1 - 1 / (step + 2), 0.6)
        with torch.no_grad():
            for own, weight in zip(teacher.parameters(), network.parameters()):
                own.copy_(keep * own + (1 - keep) * weight)
        assert fact.update(minibatches)["loss"] == pytest.approx(loss.item(), rel=1e-9)
        for ours, expected in ((fact.network, network), (fact.teacher, teacher)):
            torch.testing.assert_close(
                flat_parameters(ours), flat_parameters(expected), rtol=1e-8, atol=1e-8
            )


def test_what_fact_looks_at():
    """Images of three channels come normalised; what has no spectrum is refused."""
    torch.manual_seed(0)
    hparams = small_hparams("FACT", backbone="resnet18", weights="none", fact_alpha=0.0)
    fact = get_algorithm_class("FACT")((3, 32, 32), CLASSES, 1, hparams)
    seen = []
    fact.featurizer.register_forward_pre_hook(lambda _, x: seen.append(x[0].detach()))
    levels = torch.randint(256, (2, 3, 32, 32)).float()
    x = normalised(levels.clone())
    fact.objective([(x, torch.zeros(2, dtype=torch.long))])
    own, mixed = seen[0].chunk(2)  # without a share of the partner, up to a grey level
    assert torch.equal(own, x)
    scale, _ = scale_and_offset(x.device)
    assert ((own - mixed) / scale).abs().max() <= 1.01
    with pytest.raises(UserError, match="FACT needs images"):
        RunSpec.create("PACS", "FACT", [0], features="efficientnet_lite0")
