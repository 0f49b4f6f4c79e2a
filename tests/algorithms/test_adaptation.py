"""Test-time adaptation: losses by hand, streams in loops, what is trained, and what comes back."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from helpers import CLASSES, build, flat_parameters, random_minibatches
from torch import nn
from torch.nn import functional as F

from domainbed.algorithms import adaptation
from domainbed.algorithms.adaptation import METHODS, Adapted, settings_of
from domainbed.algorithms.t3a import Templates
from domainbed.errors import UserError

SETTING = {"adapt_lr": 0.01, "adapt_steps": 1}


def trained(seed=0):
    """A network with batch norm, whose running statistics are not those of a batch."""
    torch.manual_seed(seed)
    layers = [nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU()]
    featurizer, head = nn.Sequential(*layers), nn.Linear(8, CLASSES)
    featurizer.train()(torch.randn(50, 6) + 1)
    return featurizer.double().eval(), head.double().eval()


def batches(sizes, seed=0):
    return [x for x, _ in random_minibatches(sizes, seed, (6,), dtype=torch.float64)]


def test_losses_by_hand():
    p = [[0.25, 0.75], [0.96, 0.04], [0.5, 0.5]]
    logits = torch.tensor(p, dtype=torch.float64).log()
    entropy = -sum(v * math.log(v) for row in p for v in row) / 3
    means = [(0.25 + 0.96 + 0.5) / 3, (0.75 + 0.04 + 0.5) / 3]
    information = entropy + sum(m * math.log(m + 1e-5) for m in means)
    label = -math.log(0.96)  # of the only one above 0.9
    expected = {
        "Tent": entropy,
        "PseudoLabel": label,
        "SHOT_IM": information,
        "SHOT": information + 0.1 * label,
        "UniDG": entropy,
    }
    for name, value in expected.items():
        assert METHODS[name][1](logits).item() == pytest.approx(value), name
    # (1² − 0.1 + 0) / 2: 0.2² is below 0.1
    assert adaptation.margin(logits + torch.tensor([1.0, 0.2]), logits).item() == pytest.approx(
        0.9 / 2
    )
    unsure = torch.zeros(2, 2, requires_grad=True)
    loss = METHODS["PseudoLabel"][1](unsure)
    assert loss.item() == 0
    assert torch.autograd.grad(loss, unsure)[0].tolist() == [[0, 0], [0, 0]]


def naive(name, featurizer, head, stream, lr, steps):
    """Logits of each batch in the last pass, before the last step, from the facts."""
    featurizer, head = copy.deepcopy(featurizer), copy.deepcopy(head)
    first = copy.deepcopy(featurizer)
    norm = featurizer[1]
    part = {
        "Tent": list(norm.parameters()),
        "SHOT_IM": list(featurizer.parameters()),
        "SHOT": list(featurizer.parameters()),
    }.get(name, [*featurizer.parameters(), *head.parameters()])
    optimizer, found = torch.optim.Adam(part, lr=lr, weight_decay=0.1), []
    bank = Templates(head, 5)

    def features(x):
        if name not in ("Tent", "BatchNorm"):
            return featurizer(x)
        z = featurizer[0](x)
        z = (z - z.mean(0)) / (z.var(0, unbiased=False) + norm.eps).sqrt()
        return F.relu(z * norm.weight + norm.bias)

    for x in stream:
        for number in range(steps):
            z = features(x)
            logits = head(z)
            if number == steps - 1:
                found.append(bank(z) if name == "UniDG" else logits.detach())
            if name == "BatchNorm":
                continue
            p = logits.softmax(1)
            entropy = -(p * p.log()).sum(1).mean()
            mean = p.mean(0)
            information = entropy + (mean * (mean + 1e-5).log()).sum()
            sure = p.amax(1) > 0.9
            label = F.cross_entropy(logits[sure], p.argmax(1)[sure]) if sure.any() else 0 * p.sum()
            loss = {
                "Tent": entropy,
                "PseudoLabel": label,
                "SHOT_IM": information,
                "SHOT": information + 0.1 * label,
                "UniDG": entropy + 0.5 * ((z - first(x)) ** 2 - 0.1).clamp(min=0).mean(),
            }[name]
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return found


@pytest.mark.parametrize("name", [name for name in METHODS if name != "T3A"])
def test_a_stream_is_that_of_loops(name):
    for steps in (1,) if name == "UniDG" else (1, 3):
        featurizer, head = trained()
        head.weight.data *= 4  # sure of some
        setting = {"adapt_lr": 0.02, "adapt_steps": steps, "weight_decay": 0.1}
        if name == "UniDG":
            setting |= {"t3a_supports": 5, "unidg_lambda": 0.5}
        adapted = Adapted(featurizer, head, name, setting).eval()
        before, stream = flat_parameters(adapted), batches((9, 7, 4))
        with torch.no_grad():
            first, again = adapted.predictor(), adapted.predictor()
            found = [first(x) for x in stream]
        expected = naive(name, featurizer, head, stream, 0.02, steps)
        for ours, theirs in zip(found, expected, strict=True):
            torch.testing.assert_close(ours.double(), theirs.double(), rtol=1e-6, atol=1e-6)
        # The trained network stays, and the next split starts from it.
        assert torch.equal(flat_parameters(adapted), before)
        with torch.no_grad():
            assert torch.equal(again(stream[0]), found[0])
            if name != "BatchNorm":
                assert not torch.allclose(again(stream[0]).double(), found[0].double(), atol=1e-4)


def test_a_batch_of_one_uses_running_statistics():
    adapted = Adapted(*trained(), "Tent", SETTING).eval()
    predict, (x,) = adapted.predictor(), batches((1,))
    with torch.no_grad():
        torch.testing.assert_close(predict(x), adapted.network(x))


def test_what_is_tried_and_what_is_refused():
    assert settings_of("T3A", [5], 0.1) == [{"t3a_supports": 5}]
    assert settings_of("BatchNorm", None, 0.1) == [{}]
    tried = settings_of("Tent", None, 0.1)
    assert [(round(s["adapt_lr"], 6), s["adapt_steps"]) for s in tried] == [
        *((0.01, 1), (0.1, 1), (1.0, 1), (0.01, 3), (0.1, 3), (1.0, 3))
    ]
    tried = settings_of("UniDG", [5, 0], 0.1)
    assert [tuple(round(value, 6) for value in s.values()) for s in tried] == [
        *((0.01, 1.0, 5), (0.01, 1.0, 0), (0.01, 0.1, 5), (0.01, 0.1, 0)),
        *((0.1, 1.0, 5), (0.1, 1.0, 0), (0.1, 0.1, 5), (0.1, 0.1, 0)),
    ]
    for name in ("SHOT_IM", "SHOT"):
        with pytest.raises(UserError, match=f"{name} trains the featurizer, and it has no weights"):
            Adapted(nn.Flatten(), nn.Linear(6, CLASSES), name, SETTING)
    parts = build("ERM").predicting_parts()
    for name in ("Tent", "BatchNorm"):
        with pytest.raises(UserError, match=f"{name} needs batch norm layers"):
            Adapted(*parts, name, SETTING)
