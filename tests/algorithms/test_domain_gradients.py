"""Gradients of domains, masked, spread and stepped along: ANDMask, SANDMask, IGA, MLDG, TRM, …"""

from __future__ import annotations

import copy
import logging
import math
from itertools import pairwise

import pytest
import torch
from helpers import (
    assert_same_tensors,
    build,
    flat_parameters,
    numbers,
    random_minibatches,
    resumed,
    through_a_file,
)
from test_trajectories import SMALL_MLP, VECTORS, follow
from torch import nn
from torch.nn import functional as F

from domainbed.algorithms import get_algorithm_class
from domainbed.algorithms.andmask import and_mask, domain_gradients, rescaled
from domainbed.algorithms.iga import gradient_spread
from domainbed.algorithms.mldg import cyclic_pairs, first_adam_step, split_pairs
from domainbed.algorithms.sandmask import sand_mask
from domainbed.algorithms.transfer import project, risk_gap
from domainbed.algorithms.trm import DomainHeads, cross_risks, inverse_hessian_product
from domainbed.errors import UserError
from domainbed.hparams import options
from domainbed.spec import RunSpec

NAMES = ("ANDMask", "SANDMask", "IGA", "MLDG", "TRM", "Transfer")


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def small(name, domains=2, **overrides):
    return build(name, domains, dtype=torch.float64, shape=VECTORS, **{**SMALL_MLP, **overrides})


def vectors(sizes, seed=0):
    return random_minibatches(sizes, seed, VECTORS, dtype=torch.float64)


# Gradients and masks


def test_domain_gradients_are_those_of_each_risk_alone():
    network = nn.Linear(2, 1, bias=False)
    unused = nn.Parameter(torch.ones(3))
    risks = [network(torch.tensor(x)).sum() for x in ([1.0, 2.0], [3.0, -4.0])]
    weight, other = domain_gradients(risks, [network.weight, unused])
    assert weight.tolist() == [[[1.0, 2.0]], [[3.0, -4.0]]]
    assert other.tolist() == [[0.0] * 3] * 2


@pytest.mark.parametrize("name", ["ANDMask", "IGA", "Fishr+IGA"])
def test_the_domains_have_graphs_of_their_own(name):
    """One backward pass of each domain's own images, not E passes through all of them."""
    algorithm = small(name, fishr_penalty_anneal_iters=0)
    seen = []
    layer = algorithm.featurizer.hiddens[0]
    layer.register_full_backward_hook(lambda module, inputs, outputs: seen.append(len(outputs[0])))
    algorithm.update(vectors((4, 3)))
    assert seen[:2] == [4, 3]
    assert 7 not in seen[:2]


@pytest.mark.parametrize("name", ["ANDMask", "IGA"])
def test_a_class_that_overrides_predict_is_trained_on_what_it_predicts(name):
    cls = get_algorithm_class(name)
    shifted = type(name, (cls,), {"predict": lambda self, x: self.network(x + 1)})
    twin = small(name)
    torch.manual_seed(0)
    algorithm = shifted(VECTORS, 3, 2, twin.hparams).double()
    algorithm.load_state_dict(twin.state_dict())
    minibatches = vectors((3, 4))
    moved = [(x + 1, y) for x, y in minibatches]
    assert algorithm.update(minibatches) == twin.update(moved)
    assert_same_tensors(algorithm, twin)


@pytest.mark.parametrize("name", NAMES)
def test_batch_norm_that_trains_sees_one_domain_at_a_time(name):
    """As in DomainBed: TRM's pass and the first one of Transfer are pooled."""
    algorithm = small(name, iters=0, d_steps_per_g=2)
    norm = nn.BatchNorm1d(8).double()
    seen = []
    norm.register_forward_hook(lambda module, inputs, output: seen.append(len(inputs[0])))
    algorithm.featurizer.output = nn.Sequential(algorithm.featurizer.output, norm)
    algorithm.network = nn.Sequential(algorithm.featurizer, algorithm.classifier)
    algorithm.optimizer = algorithm.new_optimizer(algorithm.network)
    metrics = algorithm.update(vectors((3, 3)))
    assert all(math.isfinite(value) for value in metrics.values())
    assert seen == {"TRM": [6], "Transfer": [6, *[3, 3] * 3]}.get(name, [3, 3])


def test_and_mask_by_hand():
    gradients = torch.tensor([[1.0, 1.0, -2.0, 0.0], [3.0, -1.0, -1.0, 1.0], [2.0, 5.0, -9.0, 4.0]])
    # agreements 1, 1/3, 1, 2/3
    assert and_mask(gradients, 1).tolist() == [1, 0, 1, 0]
    assert and_mask(gradients, 0.6).tolist() == [1, 0, 1, 1]
    assert and_mask(gradients, 0.2).tolist() == [1, 1, 1, 1]


@pytest.mark.parametrize("domains", [1, 2, 3, 7, 49, 97])
def test_full_agreement_of_any_number_of_domains_is_one(domains):
    assert and_mask(torch.full((domains, 2), -0.1), 1.0).tolist() == [1, 1]


def test_sand_mask_by_hand():
    gradients = torch.tensor([[1.0, 2.0], [3.0, -2.0]], dtype=torch.float64)
    first = math.tanh(0.8 * (1 - 0.25) / 2)  # the variance of 1 and 3 is 2; signs of the other: 0
    assert sand_mask(gradients, 0.25, 0.8).tolist() == pytest.approx([first, 0])


def test_sand_mask_where_variances_vanish():
    same = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    assert sand_mask(same, 0.5, 10.0).tolist() == [1, 0]
    assert sand_mask(same, 0.0, 10.0).tolist() == pytest.approx([1, 1e-17])  # 0 / 0
    assert sand_mask(same[:1], 0.5, 10.0).tolist() == [1, 0]


def test_masks_depend_on_no_order_and_the_sign_mask_on_no_scale():
    gradients, order = random(4, 30), [2, 0, 3, 1]
    for mask in (lambda g: and_mask(g, 0.5), lambda g: sand_mask(g, 0.2, 0.1)):
        torch.testing.assert_close(mask(gradients), mask(gradients[order]))
    assert torch.equal(and_mask(gradients, 0.5), and_mask(1e6 * gradients, 0.5))


def test_rescaled_makes_up_for_what_is_masked():
    gradient, mask = torch.tensor([1.0, 2.0, 3.0, 4.0]), torch.tensor([1.0, 0.0, 0.0, 1.0])
    assert rescaled(gradient, mask).tolist() == pytest.approx([2, 0, 0, 8])
    assert rescaled(gradient, torch.zeros(4)).tolist() == [0] * 4


@pytest.mark.parametrize(("tau", "k"), [(0.0, 1e-3), (0.3, 0.01), (0.9, 10.0)])
def test_sandmask_weights(tau, k):
    follow("SANDMask", (3, 4, 2), tau=tau, k=k)


@pytest.mark.parametrize("tau", [0.3, 0.5, 0.7])
def test_andmask_thresholds(tau):
    follow("ANDMask", (3, 4, 2, 3, 2), tau=tau)


def test_sandmask_says_that_it_masks_everything(caplog):
    with caplog.at_level(logging.WARNING):
        algorithm = small("SANDMask", tau=1.0)
    assert "'tau' of SANDMask is 1, which masks every gradient" in caplog.text
    before = flat_parameters(algorithm)
    algorithm.update(vectors((3, 4)))
    assert torch.equal(flat_parameters(algorithm), before)
    caplog.clear()
    small("SANDMask", tau=0.99)
    assert not caplog.text


def test_a_frozen_parameter_stays_as_it_is():
    for name in NAMES:
        algorithm = small(name, iters=0)
        algorithm.featurizer.input.weight.requires_grad_(False)
        before = algorithm.featurizer.input.weight.clone()
        bias = algorithm.featurizer.input.bias.clone()
        algorithm.update(vectors((3, 4)))
        assert torch.equal(algorithm.featurizer.input.weight, before), name
        assert not torch.equal(algorithm.featurizer.input.bias, bias), name


# IGA


def test_gradient_spread_by_hand_and_its_derivative():
    gradients = torch.tensor([[1.0, 2.0], [3.0, 6.0]], dtype=torch.float64, requires_grad=True)
    spread = gradient_spread([gradients])
    assert spread.item() == 2 * (1 + 4)
    full = (gradients - gradients.mean(0)).square().sum()
    torch.testing.assert_close(
        *(torch.autograd.grad(value, gradients)[0] for value in (spread, full))
    )
    assert gradient_spread([gradients[:1]]).item() == 0


def test_iga_has_no_penalty_on_identical_domains_and_is_symmetric():
    (pair,) = vectors((4,))
    assert small("IGA").update([pair, pair])["penalty"] == 0
    first, second = small("IGA"), small("IGA")
    minibatches = vectors((4, 3))
    one = numbers(first.update(minibatches))
    other = numbers(second.update(minibatches[::-1]))
    assert one == pytest.approx(other)
    assert one["loss"] == pytest.approx(one["nll"] + 1000 * one["penalty"])
    assert one["penalty"] > 0


# MLDG


def test_pairs():
    assert split_pairs([3, 0, 2, 1], 2) == [(3, 2), (0, 1)]
    assert split_pairs([4, 3, 0, 2, 1], 2) == [(4, 2), (3, 1), (0, 2)]
    assert split_pairs([3, 0, 2], 1) == [(3, 2), (0, 2)]
    assert cyclic_pairs([3, 0, 2]) == [(3, 0), (0, 2), (2, 3)]


def test_first_adam_step_by_hand():
    weight, gradient = torch.tensor([1.0, 2.0, -3.0]), torch.tensor([0.5, -1e-8, 0.0])
    (stepped,) = first_adam_step([weight], [gradient], lr=0.1, weight_decay=0.0)
    torch.testing.assert_close(stepped.detach(), torch.tensor([0.9, 2.05, -3.0]))
    (decayed,) = first_adam_step([weight], [gradient], lr=0.1, weight_decay=1.0)
    torch.testing.assert_close(decayed.detach(), torch.tensor([0.9, 1.9, -2.9]))
    assert weight.tolist() == [1, 2, -3]
    assert gradient[0] == 0.5


@pytest.mark.parametrize("pairing", ["split", "cyclic"])
def test_mldg_rounds_as_clones_with_an_adam_do(pairing):
    """To the bit in float32: Adam turns rounding of small gradients into large steps."""
    decay = {"weight_decay": 1e-3, "n_meta_test": 1, "mldg_beta": 3.0, "mldg_pairs": pairing}
    algorithm = build("MLDG", 3, shape=VECTORS, **SMALL_MLP, **decay)
    network, draws = copy.deepcopy(algorithm.network), copy.deepcopy(algorithm.draws)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3, weight_decay=1e-3)
    for step in range(3):
        minibatches = random_minibatches((4, 4, 4), step, VECTORS)
        order = draws.permutation(3).tolist()
        for parameter in network.parameters():
            parameter.grad = torch.zeros_like(parameter)
        for i, j in cyclic_pairs(order) if pairing == "cyclic" else split_pairs(order, 1):
            clone = copy.deepcopy(network)
            own = torch.optim.Adam(clone.parameters(), lr=1e-3, weight_decay=1e-3)
            F.cross_entropy(clone(minibatches[i][0]), minibatches[i][1]).backward()
            first = [p.grad.clone() for p in clone.parameters()]
            own.step()
            own.zero_grad()
            F.cross_entropy(clone(minibatches[j][0]), minibatches[j][1]).backward()
            for parameter, g_i, p in zip(network.parameters(), first, clone.parameters()):
                parameter.grad += g_i / 3
                parameter.grad += 3.0 * p.grad / 3
        optimizer.step()
        algorithm.update(minibatches)
    assert_same_tensors(algorithm.network, network)


@pytest.mark.parametrize("reading", [{}, {"fidelity": "paper"}, {"mldg_pairs": "cyclic"}], ids=str)
@pytest.mark.parametrize("held_out", [1, 2, 3])
def test_mldg_readings(reading, held_out):
    follow("MLDG", (3, 2, 4, 3), n_meta_test=held_out, mldg_beta=3.0, **reading)


def test_mldg_leaves_a_domain_to_train_on():
    """DomainBed's default holds out two of two, and so learns nothing."""
    for fidelity in ("domainbed", "paper"):
        follow("MLDG", (3, 2), n_meta_test=2, fidelity=fidelity)


def test_the_readings_of_mldg_differ():
    losses = {
        str(reading): small("MLDG", 4, lr=0.05, **reading).update(vectors((3, 3, 4, 2)))["loss"]
        for reading in ({}, {"fidelity": "paper"}, {"mldg_pairs": "cyclic"})
    }
    assert len(set(losses.values())) == 3


def test_mldg_needs_two_domains():
    with pytest.raises(UserError, match="MLDG needs at least 2 training domains"):
        small("MLDG", 1)


@pytest.mark.parametrize(("fidelity", "passes"), [("domainbed", 0), ("paper", 1)])
def test_mldg_gathers_statistics_of_batch_norm_at_the_weights_by_the_paper(fidelity, passes):
    """DomainBed runs clones alone, so that its network's statistics stay as they were."""
    algorithm = small("MLDG", 2, n_meta_test=1, fidelity=fidelity)
    norm = nn.BatchNorm1d(8).double()
    algorithm.featurizer.output = nn.Sequential(algorithm.featurizer.output, norm)
    algorithm.network = nn.Sequential(algorithm.featurizer, algorithm.classifier)
    algorithm.optimizer = algorithm.new_optimizer(algorithm.network)
    algorithm.update(vectors((3, 3)))
    assert norm.num_batches_tracked == passes
    assert bool(norm.running_mean.abs().min() > 0) == bool(passes)


# TRM

TRANSFER = {"iters": 0, "cos_lambda": 0.5, "groupdro_eta": 0.3}


@pytest.mark.parametrize("fidelity", ["domainbed", "paper"])
@pytest.mark.parametrize("sizes", [(5, 4), (3, 5, 2)], ids=str)
def test_trm_readings(fidelity, sizes):
    follow("TRM", sizes, updates=3, fidelity=fidelity, **TRANSFER)


@pytest.mark.parametrize("changes", [{"iters": 2}, {"class_balanced": True}, {"cos_lambda": 0.0}])
def test_trm_switches(changes):
    follow("TRM", (3, 4), **{**TRANSFER, **changes})


def test_trm_follows_where_the_series_grows():
    """Long features: the sum is cut after the first term with an entry above 10."""
    from references import NAIVE

    for fidelity in ("domainbed", "paper"):
        algorithm = small("TRM", 2, fidelity=fidelity, **TRANSFER)
        naive = NAIVE["TRM"].twin(algorithm, 2)
        minibatches = [(40 * x, y) for x, y in vectors((6, 5))]
        assert algorithm.update(minibatches)["loss"] == pytest.approx(naive.update(minibatches))


def heads_of(sizes, seed=0):
    z = [random(n, 4, seed=seed + i) for i, n in enumerate(sizes)]
    y = [torch.arange(n) % 3 for n in sizes]
    weights, biases = random(len(sizes), 3, 4, seed=9), random(len(sizes), 3, seed=8)
    return DomainHeads(weights.requires_grad_(), biases.requires_grad_(), z, y), z, y


def test_risks_of_heads_do_not_see_the_padding():
    heads, z, y = heads_of((5, 2, 3))
    own = [
        F.cross_entropy(F.linear(z_e, w, b), y_e)
        for z_e, y_e, w, b in zip(z, y, heads.weights, heads.biases)
    ]
    torch.testing.assert_close(heads.risks(), torch.stack(own))
    crossed = cross_risks(heads, z, y)
    torch.testing.assert_close(crossed.diagonal(), heads.risks())
    other = F.cross_entropy(F.linear(z[2], heads.weights[0], heads.biases[0]), y[2])
    torch.testing.assert_close(crossed[0, 2], other)


def test_the_neumann_series_inverts_a_small_hessian():
    """Where H is near 1 few terms suffice: here H v = v / 2 by construction."""
    heads, _, _ = heads_of((4, 3))

    class Halving(DomainHeads):
        def risk_gradients(self):
            return self.weights / 2

    halving = Halving(heads.weights, heads.biases, [random(2, 4)] * 2, [torch.arange(2)] * 2)
    vectors = random(2, 3, 4)
    solved = inverse_hessian_product(vectors, halving)
    torch.testing.assert_close(solved, vectors * sum(0.5**n for n in range(11)))
    overwritten = inverse_hessian_product(vectors, halving, by_paper=False)
    torch.testing.assert_close(overwritten, vectors * (0.5 + sum(0.5**n for n in range(1, 11))))


def test_trm_keeps_its_weights_of_domains_and_heads_in_the_state():
    algorithm = small("TRM", 3, **TRANSFER)
    for step in range(2):
        algorithm.update(vectors((3, 4, 2), step))
    alpha = algorithm.alpha
    assert alpha.diagonal().tolist() == [0, 0, 0]
    assert (alpha.sum(1) > 1).all()
    fresh = small("TRM", 3, seed=5, **TRANSFER)
    fresh.load_state_dict(through_a_file(algorithm.state_dict()))
    assert_same_tensors(fresh, algorithm)
    again = resumed(algorithm, small("TRM", 3, seed=7, **TRANSFER))
    minibatches = vectors((3, 4, 2), 5)
    assert again.update(minibatches) == algorithm.update(minibatches)
    assert_same_tensors(again, algorithm)


def test_trm_under_autocast_is_near_full_precision():
    found = []
    for enabled in (False, True):
        algorithm = build("TRM", 2, shape=VECTORS, **{**SMALL_MLP, **TRANSFER})
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled, cache_enabled=False):
            found.append(numbers(algorithm.update(random_minibatches((16, 16), 0, VECTORS))))
    assert found[1]["trm_loss"] == pytest.approx(found[0]["trm_loss"], rel=0.05)


def test_trm_needs_two_domains_and_is_linear():
    with pytest.raises(UserError, match="TRM needs at least 2 training domains"):
        small("TRM", 1)
    assert isinstance(small("TRM", nonlinear_classifier=True).classifier, nn.Linear)


# Transfer


def test_risk_gap_by_hand():
    assert risk_gap(torch.tensor([1.0, 4.0, 2.5])).item() == 3
    assert risk_gap(torch.tensor([2.0])).item() == 0


@pytest.mark.parametrize(
    ("radius", "expected"), [(10.0, (3.0, 4.0)), (2.5, (1.5, 2.0)), (0.0, (0, 0))]
)
def test_project(radius, expected):
    head, centre = nn.Linear(1, 1), nn.Linear(1, 1)
    with torch.no_grad():
        centre.weight.fill_(1.0), centre.bias.fill_(-1.0)
        head.weight.fill_(4.0), head.bias.fill_(3.0)
    project(head, centre, radius)  # at distance 5
    moved = head.weight.item() - 1, head.bias.item() + 1
    assert moved == pytest.approx(expected)
    project(centre, centre, radius)
    assert centre.weight.item() == 1


@pytest.mark.parametrize("delta", [0.01, 3.0])
@pytest.mark.parametrize("steps", [1, 5])
def test_transfer_ascent_and_projection(delta, steps):
    follow("Transfer", (3, 2, 4), updates=3, delta=delta, d_steps_per_g=steps, lr_d=0.1)


def test_transfer_trains_whatever_gda_says_unless_domainbed_is_asked_for():
    follow("Transfer", (3, 2), gda=True)
    algorithm, before = small("Transfer", gda=True, fidelity="domainbed"), None
    for step in range(2):
        algorithm.update(vectors((3, 2), step))
        before = before if before is not None else flat_parameters(algorithm.network)
    assert torch.equal(flat_parameters(algorithm.network), before)
    follow("Transfer", (3, 2), gda=False, fidelity="domainbed")


@pytest.mark.parametrize(("dropout", "passes"), [(0.0, 3), (0.5, 6)])
def test_transfer_draws_dropout_for_each_step_of_the_other_classifier(dropout, passes):
    algorithm = small("Transfer", mlp_dropout=dropout, d_steps_per_g=4)
    seen = []
    algorithm.featurizer.register_forward_hook(lambda module, x, z: seen.append(z.detach()))
    algorithm.update(vectors((3, 4)))
    assert len(seen) == passes
    assert not any(torch.equal(one, other) for one, other in pairwise(seen[2:]))


def test_transfer_moves_statistics_of_batch_norm_with_each_pass():
    """As in DomainBed, whose predictions depend on them: one pooled pass, then by domain."""
    algorithm = small("Transfer", d_steps_per_g=4)
    norm = nn.BatchNorm1d(6).double()
    algorithm.featurizer = nn.Sequential(norm, algorithm.featurizer)
    minibatches = vectors((3, 4))
    means = [x.mean(0) for x, _ in minibatches]
    algorithm.update(minibatches)
    expected = 0.1 * torch.cat([x for x, _ in minibatches]).mean(0)  # from 0, momentum 0.1
    for mean in means * 5:
        expected = 0.9 * expected + 0.1 * mean
    torch.testing.assert_close(norm.running_mean, expected)


def test_transfer_of_identical_domains_has_no_gap():
    (pair,) = vectors((4,))
    assert small("Transfer").update([pair, pair])["gap"] == 0
    assert small("Transfer", t_lambda=3.0).update(vectors((3, 4)))["gap"] > 0


# All of them


@pytest.mark.parametrize(
    ("name", "default"), [("MLDG", "domainbed"), ("TRM", "paper"), ("Transfer", "paper")]
)
def test_two_readings(name, default):
    assert options(name)["fidelity"].default == default


@pytest.mark.parametrize("name", NAMES)
def test_an_absent_class_and_identical_labels(name):
    algorithm = small(name, 2, iters=0)
    minibatches = [(x, torch.full_like(y, e)) for e, (x, y) in enumerate(vectors((3, 4)))]
    for _ in range(2):
        assert all(math.isfinite(value) for value in algorithm.update(minibatches).values())
    assert flat_parameters(algorithm).isfinite().all()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ANDMask", {"tau": -0.1}),
        ("SANDMask", {"k": 0.0}),
        ("MLDG", {"n_meta_test": 0}),
        ("MLDG", {"mldg_pairs": "random"}),
        ("TRM", {"iters": -1}),
        ("Transfer", {"delta": -1.0}),
        ("Transfer", {"d_steps_per_g": 0}),
    ],
)
def test_what_cannot_be_is_refused(name, value):
    from domainbed.spec import RunSpec

    (key,) = value
    with pytest.raises(UserError, match=f"hyper-parameter '{key}' of {name} cannot be"):
        RunSpec.create("ColoredDigits", name, [0], hparams=value)


@pytest.mark.parametrize("name", ["ANDMask", "SANDMask", "MLDG", "Transfer"])
def test_fishr_is_refused_where_gradients_are_no_loss(name):
    with pytest.raises(UserError, match=f"Fishr cannot be added to {name}, whose own 'update'"):
        get_algorithm_class(f"Fishr+{name}")


@pytest.mark.parametrize(
    ("name", "hparams", "revision"),
    [
        ("TRM", {"fidelity": "domainbed"}, 2),
        ("Fishr+TRM", {"fidelity": "domainbed"}, 2),
        ("TRM", {}, None),
        ("MLDG", {"freeze_bn": False}, 2),
        ("MLDG", {}, None),
        ("MLDG", {"freeze_bn": False, "fidelity": "paper"}, None),
        ("ERM", {}, None),
    ],
)
def test_runs_of_a_corrected_update_are_others_than_those_before(name, hparams, revision):
    spec = RunSpec.create("PACS", name, [0], hparams=hparams)
    assert spec.identity().get("revision") == spec.as_json().get("revision") == revision
    before = spec.model_copy(update={"revision": 1})
    assert (spec.run_id == before.run_id) == (revision is None)
