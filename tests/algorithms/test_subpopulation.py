"""Groups of label and attribute: values by hand, loops in float64, a dataset with an attribute."""

from __future__ import annotations

import copy
import math
from types import SimpleNamespace

import pytest
import torch
from helpers import CLASSES, build, flat_parameters, random_minibatches, small_hparams
from references import concatenated, sample_loss

from domainbed.algorithms import get_algorithm_class
from domainbed.config.run_facts import HParams, RunFacts
from domainbed.core.minibatch import Minibatch
from domainbed.datasets import DATASETS, ColoredDigits
from domainbed.spec import RunSpec
from domainbed.training import build as build_experiment

VECTORS = (6,)
MLP = {"mlp_width": 8, "mlp_depth": 3, "mlp_dropout": 0.0}
SIZES = (40, 3, 0, 7, 10, 20)  # of three classes with two attributes
OF_ATTRIBUTES = RunFacts(group_sizes=SIZES, group_names=tuple("abcdef"), attribute_names=("x", "y"))
OF_CLASSES = RunFacts(class_sizes=(43, 7, 30), group_sizes=(50, 30))


def grouped(name, facts=OF_ATTRIBUTES, **changes):
    torch.manual_seed(0)
    hparams = {**small_hparams(name), "weight_decay": 0.01, **MLP, **changes}
    return get_algorithm_class(name)(VECTORS, CLASSES, 2, HParams(hparams, facts)).double()


def loss_of(name, logits, y, facts, **changes):
    """Of given logits, the groups being the labels."""
    algorithm = grouped(name, facts, **changes)
    forward = SimpleNamespace(
        logits=torch.tensor(logits, dtype=torch.float64), y=torch.tensor(y), extras=None
    )
    return algorithm.objective_of(forward)[0].item()


def test_losses_by_hand(monkeypatch):
    facts = RunFacts(class_sizes=(5, 100, 1))
    cvar = grouped("CVaRDRO", cvar_alpha=0.375)
    monkeypatch.setattr(cvar, "losses", lambda forward: torch.tensor([2.0, 4.0, 1.0, 3.0]))
    assert cvar.objective_of(None)[0].item() == pytest.approx(3.66666667)
    # p of the label is a quarter.
    quarter = [[0.0, math.log(3), -1e9]]
    assert loss_of("Focal", quarter, [0], facts) == pytest.approx(1.03972077)
    logits = [[-1e9, 1.0, 1.0]]
    assert loss_of("BSoftmax", logits, [2], facts) == pytest.approx(4.61512052)
    # Margins of 100^-¼ and 1, in the scale of one half.
    ldam = loss_of("LDAM", logits, [1], facts)
    assert ldam == pytest.approx(math.log1p(math.exp(30 * 0.15811388)), rel=1e-6)
    absent = RunFacts(class_sizes=(0, 100, 1))  # whose margin would be the largest
    assert loss_of("LDAM", logits, [1], absent) == pytest.approx(ldam)
    ldam = loss_of("LDAM", logits, [2], facts, ldam_scale=10.0)
    assert ldam == pytest.approx(math.log1p(math.exp(10 * 0.5)), rel=1e-6)


def test_weights_by_hand():
    """Of sizes 1, 4 and none; an absent group has no weight, and the others sum to three."""
    facts, logits = RunFacts(class_sizes=(1, 4, 0)), [[0.0, 0.0, 0.0]] * 2
    for name, ratio in {
        "ReWeight": 4.0,
        "SqrtReWeight": 2.0,
        "CB": (1 - 0.5**4) / (1 - 0.5),
    }.items():
        changes = {"cb_rest": 0.5} if name == "CB" else {}
        first, second = (
            loss_of(name, logits, [c, c], facts, **changes) / math.log(3) for c in (0, 1)
        )
        assert first + second == pytest.approx(3)
        assert first / second == pytest.approx(ratio)
        assert loss_of(name, logits, [2, 2], facts, **changes) == 0
    # β^n that is too small for any type leaves the weight 1 − β.
    large = RunFacts(class_sizes=(10**9, 1, 1))
    assert loss_of("CB", logits, [0, 0], large) > 0


def with_groups(sizes, step):
    """Minibatches whose samples have an attribute; and the groups, in order."""
    pairs = random_minibatches(sizes, step, VECTORS, dtype=torch.float64)
    generator = torch.Generator().manual_seed(step)
    attributes = [torch.randint(2, (len(y),), generator=generator) for _, y in pairs]
    batches = [
        Minibatch(x, y, {"attribute": a, "group": 2 * y + a})
        for (x, y), a in zip(pairs, attributes)
    ]
    return batches, torch.cat([b.extras["group"] for b in batches]).tolist()


def naive_loss(name, network, state, x, y, groups):
    """From the facts, sample by sample; `state` is what is kept between updates."""
    logits, number = network(x), len(y)
    losses = [sample_loss(row, label) for row, label in zip(logits, y)]
    classes = [sum(SIZES[2 * k : 2 * k + 2]) for k in range(CLASSES)]
    if name in ("ReWeight", "SqrtReWeight", "CB"):
        rule = {
            "ReWeight": lambda n: 1 / n,
            "SqrtReWeight": lambda n: n**-0.5,
            "CB": lambda n: 1e-4 / (1 - (1 - 1e-4) ** n),
        }[name]
        raw = [rule(n) if n else 0.0 for n in SIZES]
        return sum(6 * raw[g] / sum(raw) * loss for g, loss in zip(groups, losses)) / number
    if name == "Focal":
        return sum((1 - torch.exp(-loss)) * loss for loss in losses) / number
    if name == "LDAM":
        margins = [n**-0.25 for n in classes]
        margins = [0.5 * m / max(margins) for m in margins]
        total = 0
        for row, label in zip(logits, y):
            moved = [z - margins[label] * (k == label) for k, z in enumerate(row)]
            total = total + sample_loss(30 * torch.stack(moved), label)
        return total / number
    if name == "BSoftmax":
        shift = torch.tensor([math.log(n) for n in classes], dtype=torch.float64)
        return sum(sample_loss(row + shift, label) for row, label in zip(logits, y)) / number
    if name == "CVaRDRO":
        share, total = 0.1 * number, 0
        whole = math.floor(share)
        ordered = sorted(losses, key=torch.Tensor.item, reverse=True)
        weights = [1 / share] * whole + [1 - whole / share]
        for weight, loss in zip(weights, ordered):
            total = total + weight * loss
        return total
    if name == "GroupDROAttributes":
        q = state.setdefault("q", [1.0] * 6)
        present = {g: [own for h, own in zip(groups, losses) if h == g] for g in set(groups)}
        means = {g: sum(values) / len(values) for g, values in present.items()}
        for g, mean in means.items():
            q[g] *= math.exp(0.01 * mean.item())
        state["q"] = q = [value / sum(q) for value in q]
        return sum(q[g] * mean for g, mean in means.items())
    assert name == "LfF"
    rows = state["biased"](x)
    biased = [sample_loss(row, label) for row, label in zip(rows, y)]
    amplified = sum(torch.exp(-b).item() ** 0.7 * 0.7 * b for b in biased) / number
    fails = [(b / (b + own + 1e-8)).item() for b, own in zip(biased, losses)]
    return sum(f * own for f, own in zip(fails, losses)) / number + amplified


NAMES = (
    *("ReWeight", "SqrtReWeight", "CB", "Focal", "LDAM", "BSoftmax", "CVaRDRO"),
    *("GroupDROAttributes", "LfF"),
)


@pytest.mark.parametrize("name", NAMES)
def test_updates_follow_loops(name):
    algorithm, state = grouped(name), {}
    network = copy.deepcopy(algorithm.network)
    trained = list(network.parameters())
    if name == "LfF":
        state["biased"] = copy.deepcopy(algorithm.biased)
        trained += state["biased"].parameters()
        start = flat_parameters(algorithm.biased)
        assert not torch.equal(start, flat_parameters(algorithm.network))
    adam = torch.optim.Adam(trained, lr=algorithm.hparams["lr"], weight_decay=0.01)
    for step in range(4):
        minibatches, groups = with_groups((7, 6), step)
        x, y = concatenated(minibatches)
        loss = naive_loss(name, network, state, x, y, groups)
        adam.zero_grad()
        loss.backward()
        adam.step()
        near = {"rel": 1e-6} if name == "GroupDROAttributes" else {"rel": 1e-7}
        assert algorithm.update(minibatches)["loss"] == pytest.approx(loss.item(), **near)
        torch.testing.assert_close(
            flat_parameters(algorithm.network), flat_parameters(network), rtol=1e-6, atol=1e-6
        )
    if name == "LfF":
        assert not torch.equal(flat_parameters(algorithm.biased), start)


def test_just_train_twice_follows_loops():
    """Two updates of the first network, then four of the second, which has a start of its own."""
    facts = RunFacts(steps=6, class_sizes=(43, 7, 30))
    for reading in ("authors", "subpopbench"):
        algorithm = grouped("JTT", facts, jtt_first=0.4, jtt_lambda=5.0, fidelity=reading)
        networks = [copy.deepcopy(each) for each in (algorithm.biased, algorithm.network)]
        adams = [
            torch.optim.Adam(each.parameters(), lr=algorithm.hparams["lr"], weight_decay=0.01)
            for each in networks
        ]
        for step in range(6):
            facts.begin(step)
            minibatches, _ = with_groups((7, 6), step)
            x, y = concatenated(minibatches)
            second = step >= 2
            losses = [sample_loss(row, label) for row, label in zip(networks[second](x), y)]
            weights = [1.0] * len(y)
            if second:
                errs = [row.argmax() != label for row, label in zip(networks[0](x), y)]
                assert any(errs)
                assert not all(errs)
                weights = [
                    (1 + 5.0 if reading == "authors" else 5.0) if wrong else 1.0 for wrong in errs
                ]
            whole = len(y) if reading == "subpopbench" else sum(weights)
            loss = sum(w * own for w, own in zip(weights, losses)) / whole
            adams[second].zero_grad()
            loss.backward()
            adams[second].step()
            assert algorithm.update(minibatches)["loss"] == pytest.approx(loss.item(), rel=1e-7)
            for own, theirs in zip((algorithm.biased, algorithm.network), networks):
                torch.testing.assert_close(
                    flat_parameters(own), flat_parameters(theirs), rtol=1e-6, atol=1e-6
                )


def test_without_an_attribute_groups_are_classes():
    """And outside a run all are of one size, so that weights do nothing."""
    minibatches = random_minibatches((5, 4), 0, VECTORS, dtype=torch.float64)
    assert grouped("ReWeight", OF_CLASSES).group_sizes.tolist() == [43, 7, 30]
    assert grouped("GroupDROAttributes", OF_CLASSES).q.tolist() == pytest.approx([1 / 3] * 3)
    erm = build("ERM", dtype=torch.float64, shape=VECTORS, **MLP).objective(minibatches)[0]
    for name in ("ReWeight", "SqrtReWeight", "CB"):
        own = build(name, dtype=torch.float64, shape=VECTORS, **MLP).objective(minibatches)[0]
        assert own.item() == pytest.approx(erm.item(), rel=1e-6)


class Tinted(ColoredDigits):
    """The digits, where the attribute is whether the red channel is empty."""

    attribute_names = ("red", "green")

    def __init__(self, root, test_envs, hparams):
        super().__init__(root, test_envs, hparams)
        self.attributes = [
            (domain.tensors[0][:, 0].flatten(1).sum(1) == 0).long() for domain in self.datasets
        ]


def test_a_run_on_an_attribute(monkeypatch):
    monkeypatch.setitem(DATASETS._entries, "Tinted", Tinted)

    def drawn(name):
        spec = RunSpec.create("Tinted", name, [2], steps=60, hparams={"batch_size": 32})
        experiment = build_experiment(spec)
        extras = [b.extras for pairs in experiment.minibatches(range(60)) for b in pairs]
        return experiment, torch.cat([each["group"] for each in extras]).bincount(minlength=4)

    experiment, counts = drawn("ReWeight")
    sizes = experiment.algorithm.group_sizes
    assert sizes.tolist() == list(experiment.facts.group_sizes)
    assert sizes.max() > 3 * sizes.min()
    shares = sizes / sizes.sum()
    assert (counts / counts.sum() - shares).abs().max() < 0.03
    for pairs in experiment.minibatches(range(2)):
        assert math.isfinite(experiment.algorithm.update(pairs)["loss"])
    _, counts = drawn("ReSample")
    assert (counts / counts.sum() - 0.25).abs().max() < 0.03


def test_without_an_attribute_classes_are_balanced():
    specs = [
        RunSpec.create("ColoredDigits", "ReSample", [2]),
        RunSpec.create("ColoredDigits", "ERM", [2], hparams={"class_balanced": True}),
    ]
    ours, theirs = map(build_experiment, specs)
    inside = ours.splits[0].inside
    weights = ours._draws(0, inside, ours.algorithm.balances_groups)._weights
    assert torch.equal(weights, theirs._draws(0, inside, True)._weights)
    assert len(weights) == len(inside)
