"""SAM, ASAM, GSAM, SAGM: a quadratic by hand, loops in float64, and on top of other algorithms."""

from __future__ import annotations

import copy

import pytest
import torch
from helpers import (
    SHAPE,
    build,
    flat_parameters,
    numbers,
    random_minibatches,
    small_hparams,
    switching_at,
)
from references import concatenated, mean_loss
from torch import nn

from domainbed.algorithms import ADD_ONS, ALGORITHMS, Algorithm, get_algorithm_class
from domainbed.algorithms.add_ons import added
from domainbed.config.run_facts import HParams, RunFacts
from domainbed.errors import UserError
from domainbed.spec import RunSpec

VECTORS = (6,)
MLP = {"mlp_width": 8, "mlp_depth": 3, "mlp_dropout": 0.0}
TWO_PASS = ("SAM", "ASAM", "GSAM", "SAGM")
BASES = [
    name
    for name in ALGORITHMS
    if name not in TWO_PASS and ADD_ONS["SAM"].obstacle(ALGORITHMS[name]) is None
]


class Quadratic(Algorithm):
    """½(w₁² + 10 w₂²) from (1, 1), by gradient descent with a rate of 0.1."""

    def build(self):
        self.w = nn.Parameter(torch.ones(2, dtype=torch.float64))
        self.optimizer = torch.optim.SGD([self.w], lr=0.1)

    def objective(self, minibatches, unlabeled=None):
        return (self.w.square() * torch.tensor([1.0, 10.0])).sum() / 2, {}


def step_gradient(name, **hparams):
    cls = added(name, ADD_ONS[name], Quadratic, "Quadratic")
    algorithm = cls((1,), 2, 1, hparams)
    assert algorithm.update([])["loss"] == 5.5
    return ((1 - algorithm.base.w) / 0.1).tolist()


def test_the_gradient_of_a_step_by_hand():
    near = {"abs": 5e-9}
    assert step_gradient("SAM", sam_rho=0.05) == pytest.approx([1.00497519, 10.49751860], **near)
    assert step_gradient("ASAM", sam_rho=0.5) == pytest.approx([1.04975186, 14.97518595], **near)
    halved = [1.00198759, 10.19875930]
    sagm = {"sam_rho": 0.05, "sagm_alpha": 0.001}
    assert step_gradient("SAGM", fidelity="authors", **sagm) == pytest.approx(halved, **near)
    assert step_gradient("SAGM", **sagm) == pytest.approx([2 * g for g in halved], abs=2e-8)
    sagm["sam_rho"] = 0.5  # which the authors' code does not read
    assert step_gradient("SAGM", fidelity="authors", **sagm) == pytest.approx(halved, **near)
    # Without α: the mean of ERM's gradient and SAM's.
    mean = [(1 + 1.00497519) / 2, (10 + 10.49751860) / 2]
    sagm = {"sam_rho": 0.05, "sagm_alpha": 0.0, "fidelity": "authors"}
    assert step_gradient("SAGM", **sagm) == pytest.approx(mean, **near)


def test_gsam_by_hand():
    """The part of g across g' counts α; without α it is SAM; ρ follows the rate of a schedule."""
    near = {"abs": 5e-9}
    found = step_gradient("GSAM", sam_rho=0.05, gsam_alpha=0.1)
    assert found == pytest.approx([1.00074847, 10.49792324], **near)
    sam = [1.00497519, 10.49751860]
    assert step_gradient("GSAM", sam_rho=0.05, gsam_alpha=0.0) == pytest.approx(sam, **near)
    asam = step_gradient("GSAM", sam_rho=0.5, gsam_alpha=0.0, gsam_adaptive=True)
    assert asam == pytest.approx([1.04975186, 14.97518595], **near)
    first, second = torch.tensor([1.0, 10.0]).double(), torch.tensor([1.00497519, 10.49751860])
    gsam = build("GSAM", gsam_alpha=1.0)
    across = (second - gsam.directions([first], [second.double()])[0]).tolist()
    assert across == pytest.approx([0.04226715, -0.00404643], abs=1e-6)

    schedule = {"lr_schedule": "linear", "gsam_least_rho": 0.01, "sam_rho": 0.05}
    hparams = HParams({"gsam_alpha": 0.0, **schedule}, RunFacts(steps=100))
    gsam = added("GSAM", ADD_ONS["GSAM"], Quadratic, "Quadratic")((1,), 2, 1, hparams)
    for step, rho in ((0, 0.05), (50, 0.03), (75, 0.02)):
        gsam.facts.begin(step)
        (move,) = gsam.moves([torch.ones(2)], [torch.tensor([3.0, 4.0])])
        assert move.tolist() == pytest.approx([0.6 * rho, 0.8 * rho])


def naive_update(name, network, optimizer, minibatches, hparams):
    """From the facts, with loops over samples and a copy of the weights."""
    x, y = concatenated(minibatches)
    weights = list(network.parameters())
    loss = mean_loss(network(x), y)
    g = torch.autograd.grad(loss, weights)
    before = [w.detach().clone() for w in weights]
    if name == "ASAM":
        length = sum(((w.abs() * h) ** 2).sum() for w, h in zip(before, g)) ** 0.5
        moves = [hparams["sam_rho"] * w**2 * h / (length + 1e-12) for w, h in zip(before, g)]
    else:
        length = sum((h**2).sum() for h in g) ** 0.5 + 1e-12
        factor = (
            hparams["sam_rho"] / length
            if name in ("SAM", "GSAM")
            else hparams["sam_rho"] / length - hparams["sagm_alpha"]
        )
        moves = [factor * h for h in g]
    with torch.no_grad():
        for w, move in zip(weights, moves):
            w.add_(move)
    h = torch.autograd.grad(mean_loss(network(x), y), weights)
    with torch.no_grad():
        for w, own in zip(weights, before):
            w.copy_(own)
    cos = sum((a * b).sum() for a, b in zip(g, h)) / length / sum((b**2).sum() for b in h) ** 0.5
    for w, first, second in zip(weights, g, h):
        w.grad = first + second if name == "SAGM" else second
        if name == "GSAM":
            unit = second / sum((b**2).sum() for b in h) ** 0.5
            w.grad = second - hparams["gsam_alpha"] * (first - cos * length * unit)
    optimizer.step()
    return loss.item()


@pytest.mark.parametrize("name", TWO_PASS)
def test_updates_follow_loops(name):
    algorithm = build(name, 3, dtype=torch.float64, shape=VECTORS, weight_decay=0.01, **MLP)
    network = copy.deepcopy(nn.Sequential(algorithm.featurizer, algorithm.classifier))
    hparams = {**small_hparams(name), "weight_decay": 0.01}
    optimizer = torch.optim.Adam(network.parameters(), lr=hparams["lr"], weight_decay=0.01)
    for step in range(4):
        minibatches = random_minibatches((2, 5, 3), step, VECTORS, dtype=torch.float64)
        expected = naive_update(name, network, optimizer, minibatches, hparams)
        assert algorithm.update(minibatches)["loss"] == pytest.approx(expected, rel=1e-10)
        own = flat_parameters(algorithm.featurizer, algorithm.classifier)
        torch.testing.assert_close(own, flat_parameters(network), rtol=1e-9, atol=1e-9)


def test_without_a_move_every_algorithm_is_what_it_is():
    """Bit for bit, over switches: draws, averages, counts and optimizers are those of one pass."""
    assert {"CORAL", "DANN", "GroupDRO", "Mixup", "MTL", "IRM", "ERMPlusPlus", "ARM"} <= {*BASES}
    for name in [*BASES, "Fishr+CORAL"]:
        changes = switching_at(1, name)
        if not get_algorithm_class(name).needs_images:
            changes |= {"shape": VECTORS, **MLP}
        shape = changes.get("shape", SHAPE)
        plain, two = build(name, **changes), build(f"SAM+{name}", sam_rho=0.0, **changes)
        for step in range(3):
            minibatches = random_minibatches((4, 3), step, shape)
            assert numbers(two.update(minibatches)) == numbers(plain.update(minibatches)), name
        ours, own = two.base.state_dict(), plain.state_dict()
        assert [key for key in own if not torch.equal(own[key], ours[key])] == [], name
        assert torch.equal(two.base.draws.uniform(3), plain.draws.uniform(3))


def test_the_second_pass_is_elsewhere_with_the_same_draws():
    """Mixup's weights are drawn once a step, and the gradient is that at the moved weights."""
    two, plain = build("SAM+Mixup", dtype=torch.float64), build("Mixup", dtype=torch.float64)
    minibatches = random_minibatches((4, 3), dtype=torch.float64)
    moved = copy.deepcopy(plain)
    loss, _ = plain.objective(minibatches)
    gradients = torch.autograd.grad(loss, list(plain.network.parameters()))
    length = torch.cat([g.flatten() for g in gradients]).norm()
    with torch.no_grad():
        for w, g in zip(moved.network.parameters(), gradients):
            w += 0.05 * g / length
    expected = torch.autograd.grad(
        moved.objective(minibatches)[0], list(moved.network.parameters())
    )
    along, metrics = two.objective(minibatches)
    assert metrics["loss"].item() == pytest.approx(loss.item())
    found = torch.autograd.grad(along, list(two.base.network.parameters()))
    for ours, theirs in zip(found, expected):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


def test_running_statistics_are_those_of_the_first_pass():
    two, plain = build("SAM", sam_rho=10.0), build("ERM")
    for algorithm in (two.base, plain):
        torch.manual_seed(1)
        algorithm.featurizer.bn0 = nn.BatchNorm2d(64)
    minibatches = random_minibatches((4, 3))
    two.update(minibatches)
    plain.update(minibatches)
    ours, own = two.featurizer.bn0, plain.featurizer.bn0
    assert torch.equal(ours.running_mean, own.running_mean)
    assert ours.num_batches_tracked == 1


def test_what_has_no_gradient_stays_and_a_flat_place_gives_no_nan():
    two = build("SAM")
    with torch.no_grad():
        two.classifier.weight.zero_()
        two.classifier.bias.copy_(torch.tensor([60.0, 0, 0]))
    x, _ = random_minibatches((4,))[0]
    two.update([(x, torch.zeros(4, dtype=torch.long))] * 2)
    assert flat_parameters(two).isfinite().all()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("SAM+Fish", "no algorithm 'SAM.Fish': SAM cannot be added to Fish, whose own 'update'"),
        ("SAM+SAGM+CORAL", "SAM cannot be added to SAGM.CORAL, whose two passes must draw the"),
        ("MixStyle+SAM+CORAL", "MixStyle cannot be added to SAM.CORAL, whose two .* in front of"),
        ("ASAM+KNN", "ASAM cannot be added to KNN, whose own 'update'"),
        ("SAM+CORALL", "unknown algorithm 'CORALL'. Did you mean 'CORAL'"),
    ],
)
def test_what_it_cannot_be_added_to(name, message):
    with pytest.raises(UserError, match=message):
        get_algorithm_class(name)


def test_protocols_of_domainbed_mean_the_authors_reading():
    def fidelity(algorithm, protocol):
        spec = RunSpec.create("ColoredDigits", algorithm, [0], protocol=protocol)
        return spec.hparams["fidelity"]

    for protocol in ("domainbed-2020", "fishr-2022", "domainbed-2024", "swad-2021"):
        assert fidelity("SAGM", protocol) == "authors"
        assert fidelity("SAGM+TRM", protocol) == fidelity("TRM", protocol) == "domainbed"
    assert fidelity("SAGM", "default") == "paper"
    base = get_algorithm_class("SAGM+TRM")
    assert issubclass(base, ADD_ONS["SAGM"])
