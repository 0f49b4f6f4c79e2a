"""The seam: an objective, a descent, and what a class that overrides either of them gets."""

from __future__ import annotations

import pytest
import torch
from helpers import build, flat_parameters, random_minibatches, small_hparams
from references import concatenated
from torch import nn
from torch.nn import functional as F

from domainbed.algorithms import CORAL, DANN, ERM, Algorithm
from domainbed.errors import UserError

VECTORS, SIZES = (6,), (3, 5)
SMALL_MLP = {"mlp_width": 4, "mlp_depth": 2, "mlp_dropout": 0.0}


def construct(cls, **overrides):
    torch.manual_seed(0)
    return cls(VECTORS, 3, 2, {**small_hparams("DANN"), **SMALL_MLP, **overrides})


class Line(Algorithm):
    """(weight − 3)², by plain gradient descent."""

    def __init__(self, input_shape, num_classes, num_domains, hparams):
        super().__init__(input_shape, num_classes, num_domains, hparams)
        self.weight = nn.Parameter(torch.tensor(1.0))
        self.optimizer = torch.optim.SGD([self.weight], lr=0.25)

    def objective(self, minibatches, unlabeled=None):
        loss = (self.weight - 3).square()
        return loss, {"distance": 3 - self.weight, "unlabeled": len(unlabeled)}


def test_update_descends_on_the_objective_and_reports_it():
    line = Line(VECTORS, 3, 2, {})
    unlabeled = [torch.zeros(1, 6)]
    assert line.update([], unlabeled) == {"loss": 4.0, "distance": 2.0, "unlabeled": 1.0}
    assert line.weight.item() == 2.0  # 1 + 0.25 · 2 · (3 − 1)
    assert line.update([], unlabeled)["loss"] == 1.0


def test_a_metric_may_stand_in_for_the_loss():
    class Doubled(Line):
        def objective(self, minibatches, unlabeled=None):
            loss, _ = super().objective(minibatches, [])
            return 2 * loss, {"loss": loss}

    line = Doubled(VECTORS, 3, 2, {})
    assert line.update([]) == {"loss": 4.0}
    assert line.weight.item() == 3.0


def test_a_given_objective_takes_the_place_of_the_own():
    line = Line(VECTORS, 3, 2, {})
    metrics = line.update_on(lambda minibatches, unlabeled: (line.weight * 4, {}), [], None)
    assert metrics == {"loss": 4.0}
    assert line.weight.item() == 0.0


@pytest.mark.parametrize("name", ["ERM", "CORAL", "IRM", "VREx", "Fishr"])
def test_the_objective_is_the_loss_that_is_reported(name):
    algorithm, twin = build(name), build(name)
    loss, metrics = algorithm.objective(random_minibatches(SIZES))
    reported = twin.update(random_minibatches(SIZES))
    own = {"loss": loss, **metrics}
    assert {key: value.item() for key, value in own.items()} == reported


class Shifted(ERM):
    """As DomainBed's ARM: inherits ERM's update, and predicts in a way of its own."""

    def predict(self, x):
        return self.network(x + 1)


def test_a_class_that_overrides_predict_is_trained_on_what_it_predicts():
    algorithm, twin = construct(Shifted), construct(ERM)
    minibatches = random_minibatches(SIZES, 0, VECTORS)
    shifted = [(x + 1, y) for x, y in minibatches]
    assert algorithm.update(minibatches) == twin.update(shifted)
    assert torch.equal(flat_parameters(algorithm), flat_parameters(twin))


def test_features_of_a_class_that_overrides_predict():
    shifted = type("ShiftedCORAL", (CORAL,), {"predict": Shifted.predict})
    with pytest.raises(UserError, match=r"overrides 'predict'.*: override 'forward_pass' as well"):
        construct(shifted, mmd_gamma=1.0).update(random_minibatches(SIZES, 0, VECTORS))


@pytest.mark.parametrize("of", ["loss", "softmax"])
def test_gradient_penalty_of_dann_against_loops(of):
    """Over all pairs of a sample and the domain of a sample, or each sample's own loss."""
    algorithm = construct(DANN, grad_penalty=2.0, grad_penalty_of=of, mlp_depth=3).double()
    z = torch.randn(sum(SIZES), 4, generator=torch.Generator().manual_seed(1)).double()
    domains = [domain for domain, size in enumerate(SIZES) for _ in range(size)]
    z = z.requires_grad_()
    total = torch.zeros((), dtype=torch.float64)
    for n, own in enumerate(domains):
        scores = algorithm.discriminator(z[n : n + 1])[0]
        if of == "loss":
            total = total - torch.log_softmax(scores, 0)[own]
            continue
        for label in domains:
            total = total + torch.softmax(scores, 0)[label]
    slopes = torch.autograd.grad(total, z, create_graph=True)[0]
    penalty = sum((slope**2).sum() for slope in slopes) / len(slopes)
    expected = F.cross_entropy(algorithm.discriminator(z), torch.tensor(domains)) + 2 * penalty
    actual = algorithm.discriminator_loss(z, SIZES)
    torch.testing.assert_close(actual, expected)
    parameters = list(algorithm.discriminator.parameters())
    for ours, theirs in zip(*(torch.autograd.grad(v, parameters) for v in (actual, expected))):
        torch.testing.assert_close(ours, theirs)
    assert penalty > 0


def test_the_default_gradient_penalty_is_that_of_the_loss():
    minibatches = random_minibatches(SIZES, 0, VECTORS)
    changes = [{}, {"grad_penalty_of": "loss"}, {"grad_penalty_of": "softmax"}]
    metrics = [construct(DANN, grad_penalty=2.0, **c).update(minibatches) for c in changes]
    assert metrics[0] == metrics[1] != metrics[2]


def test_a_forward_pass_keeps_the_domains_apart():
    minibatches = random_minibatches(SIZES, 0, VECTORS)
    algorithm = construct(ERM)
    forward = algorithm.forward_pass(minibatches)
    x, y = concatenated(minibatches)
    assert torch.equal(forward.x, x)
    assert torch.equal(forward.y, y)
    assert [len(part) for part in forward.by_domain(forward.features)] == list(SIZES)
    assert forward.domain_risks().shape == (2,)
    assert torch.equal(forward.logits, algorithm.predict(x))
