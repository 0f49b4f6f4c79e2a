"""PCL and FACT: numbers by hand, and loops in float64 over several updates."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from helpers import build, flat_parameters, random_minibatches
from references import concatenated, mean_loss
from torch import nn

from domainbed.algorithms.pcl import proxy_loss

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
