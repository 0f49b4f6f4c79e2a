"""Naive implementations of the algorithms: loops over domains, samples and parameters.

Each class takes copies of a featurizer and a classifier and has `update(minibatches)`, which
returns the loss. Nothing here is fast, and nothing here uses the package.
"""

from __future__ import annotations

import copy
import itertools

import torch
from torch import nn


def sample_loss(logits, label):
    """Minus the log-probability of `label`, for one sample's logits (C,)."""
    return torch.logsumexp(logits, dim=0) - logits[label]


def mean_loss(logits, labels):
    """Cross-entropy as the mean of a loop over samples."""
    losses = [sample_loss(row, label) for row, label in zip(logits, labels, strict=True)]
    return torch.stack(losses).mean()


def concatenated(minibatches):
    return (
        torch.cat([x for x, _ in minibatches]),
        torch.cat([y for _, y in minibatches]),
    )


def coral_distance(first, second):
    """Mean squared difference of the means, plus that of the covariances (n - 1)."""

    def moments(z):
        mean = sum(row for row in z) / len(z)
        outer = [torch.outer(row - mean, row - mean) for row in z]
        return mean, torch.stack(outer).sum(0) / (len(z) - 1)

    (mean_a, cov_a), (mean_b, cov_b) = moments(first), moments(second)
    return ((mean_a - mean_b) ** 2).mean() + ((cov_a - cov_b) ** 2).mean()


def coral_penalty(features):
    """Mean of the distance over all pairs of domains; zero for one domain."""
    pairs = list(itertools.combinations(features, 2))
    if not pairs:
        return features[0].sum() * 0
    return torch.stack([coral_distance(a, b) for a, b in pairs]).mean()


def irm_penalty(logits, labels):
    """Product of the derivatives with respect to a scale, on even and on odd positions."""

    def derivative(positions):
        scale = torch.ones((), dtype=logits.dtype, requires_grad=True)
        loss = mean_loss(logits[positions] * scale, labels[positions])
        return torch.autograd.grad(loss, scale, create_graph=True)[0]

    positions = list(range(len(logits)))
    return derivative(positions[0::2]) * derivative(positions[1::2])


def vrex_penalty(losses):
    mean = sum(losses) / len(losses)
    return sum((loss - mean) ** 2 for loss in losses) / len(losses)


def per_sample_gradients(features, labels, classifier):
    """Rows of the gradients of each sample's loss, one flat vector a sample, in graph."""
    rows = []
    parameters = list(classifier.parameters())
    for feature, label in zip(features, labels, strict=True):
        loss = sample_loss(classifier(feature[None])[0], label)
        gradients = torch.autograd.grad(loss, parameters, create_graph=True)
        rows.append(torch.cat([g.reshape(-1) for g in gradients]))
    return torch.stack(rows)


def gradient_variance(features, labels, classifier):
    """(P,): elementwise variance, divided by n, of the per-sample gradients."""
    rows = per_sample_gradients(features, labels, classifier)
    mean = rows.sum(0) / len(rows)
    return sum((row - mean) ** 2 for row in rows) / len(rows)


def fishr_penalty(variances):
    """Mean over domains of the mean over parameters of the squared distance to the mean."""
    mean = sum(variances) / len(variances)
    return sum(((v - mean) ** 2).mean() for v in variances) / len(variances)


class NaiveERM:
    compared = ("featurizer", "classifier")  # whose parameters must agree after every update

    @classmethod
    def twin(cls, algorithm, num_domains):
        """One that starts from the weights of `algorithm`."""
        parts = (algorithm.featurizer, algorithm.classifier)
        return cls(*parts, dict(algorithm.hparams), num_domains)

    def __init__(self, featurizer, classifier, hparams, num_domains):
        self.featurizer = copy.deepcopy(featurizer)
        self.classifier = copy.deepcopy(classifier)
        self.hparams = hparams
        self.num_domains = num_domains
        self.updates = 0
        self.new_optimizer()

    def parameters(self):
        return [*self.featurizer.parameters(), *self.classifier.parameters()]

    def new_optimizer(self):
        self.optimizer = torch.optim.Adam(
            self.parameters(), lr=self.hparams["lr"], weight_decay=self.hparams["weight_decay"]
        )

    def step(self, loss):
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.updates += 1
        return loss.item()

    def domain_loss(self, x, y):
        return mean_loss(self.classifier(self.featurizer(x)), y)

    def update(self, minibatches):
        return self.step(self.domain_loss(*concatenated(minibatches)))


class NaiveCORAL(NaiveERM):
    def update(self, minibatches):
        features = [self.featurizer(x) for x, _ in minibatches]
        losses = [
            mean_loss(self.classifier(z), y)
            for z, (_, y) in zip(features, minibatches, strict=True)
        ]
        risk = sum(losses) / len(losses)
        return self.step(risk + self.hparams["mmd_gamma"] * coral_penalty(features))


class NaiveAnnealed(NaiveERM):
    """Weight `before` for the first updates, then the hyper-parameter and a new Adam."""

    before, weight_name, anneal_name = 1.0, "", ""

    def penalty_weight(self):
        switch = self.hparams[self.anneal_name]
        if self.updates == switch and switch > 0:
            self.new_optimizer()
        return self.hparams[self.weight_name] if self.updates >= switch else self.before


class NaiveIRM(NaiveAnnealed):
    weight_name, anneal_name = "irm_lambda", "irm_penalty_anneal_iters"

    def update(self, minibatches):
        weight = self.penalty_weight()
        risk, penalty = 0, 0
        for x, y in minibatches:
            logits = self.classifier(self.featurizer(x))
            risk = risk + mean_loss(logits, y) / len(minibatches)
            penalty = penalty + irm_penalty(logits, y) / len(minibatches)
        return self.step(risk + weight * penalty)


class NaiveVREx(NaiveAnnealed):
    weight_name, anneal_name = "vrex_lambda", "vrex_penalty_anneal_iters"

    def update(self, minibatches):
        weight = self.penalty_weight()
        losses = [self.domain_loss(x, y) for x, y in minibatches]
        return self.step(sum(losses) / len(losses) + weight * vrex_penalty(losses))


class NaiveFish(NaiveERM):
    def __init__(self, featurizer, classifier, hparams, num_domains):
        super().__init__(featurizer, classifier, hparams, num_domains)
        self.adam_state = None

    def update(self, minibatches):
        clone = nn.Sequential(copy.deepcopy(self.featurizer), copy.deepcopy(self.classifier))
        inner = torch.optim.Adam(
            clone.parameters(), lr=self.hparams["lr"], weight_decay=self.hparams["weight_decay"]
        )
        if self.adam_state is not None:
            inner.load_state_dict(self.adam_state)
        for x, y in minibatches:
            loss = mean_loss(clone(x), y)
            inner.zero_grad()
            loss.backward()
            inner.step()
        self.adam_state = copy.deepcopy(inner.state_dict())
        with torch.no_grad():
            for own, moved in zip(self.parameters(), clone.parameters(), strict=True):
                own += self.hparams["meta_lr"] * (moved - own)
        return loss.item()


class NaiveFishr(NaiveAnnealed):
    before, weight_name, anneal_name = 0.0, "lambda", "penalty_anneal_iters"
    averages = None

    def update(self, minibatches):
        weight = self.penalty_weight()
        features = [self.featurizer(x) for x, _ in minibatches]
        variances = [
            gradient_variance(z, y, self.classifier)
            for z, (_, y) in zip(features, minibatches, strict=True)
        ]
        penalty = fishr_penalty([self.smoothed(e, v) for e, v in enumerate(variances)])
        self.averages = [average.detach() for average in self.averages]
        labels = torch.cat([y for _, y in minibatches])
        risk = mean_loss(self.classifier(torch.cat(features)), labels)
        return self.step(risk + weight * penalty)

    def smoothed(self, domain, variance):
        decay = self.hparams["ema"]
        if self.averages is None:
            self.averages = [torch.zeros_like(variance) for _ in range(self.num_domains)]
        self.averages[domain] = decay * self.averages[domain] + (1 - decay) * variance
        return self.averages[domain] / (1 - decay)


class NaiveDANN(NaiveERM):
    compared = ("featurizer", "classifier", "discriminator")

    @classmethod
    def twin(cls, algorithm, num_domains):
        parts = (algorithm.featurizer, algorithm.classifier)
        return cls(*parts, dict(algorithm.hparams), num_domains, algorithm.discriminator)

    def __init__(self, featurizer, classifier, hparams, num_domains, discriminator):
        self.discriminator = copy.deepcopy(discriminator)
        super().__init__(featurizer, classifier, hparams, num_domains)

    def new_optimizer(self):
        self.optimizers = {
            "d": self.adam(self.discriminator.parameters(), "d"),
            "g": self.adam(self.parameters(), "g"),
        }

    def adam(self, parameters, suffix):
        return torch.optim.Adam(
            list(parameters),
            lr=self.hparams[f"lr_{suffix}"],
            weight_decay=self.hparams[f"weight_decay_{suffix}"],
            betas=(self.hparams["beta1"], 0.9),
        )

    def discriminator_loss(self, features, domains):
        loss = mean_loss(self.discriminator(features), domains)
        norms = []
        for position in range(len(features)):
            single = features[position : position + 1]
            own = sample_loss(self.discriminator(single)[0], domains[position])
            slope = torch.autograd.grad(own, single, create_graph=True)[0]
            norms.append((slope**2).sum())
        return loss + self.hparams["grad_penalty"] * torch.stack(norms).mean()

    def update(self, minibatches):
        self.updates += 1
        x, y = concatenated(minibatches)
        domains = [e for e, (own, _) in enumerate(minibatches) for _ in own]
        features = self.featurizer(x)
        disc_loss = self.discriminator_loss(features, torch.tensor(domains))
        rounds = self.hparams["d_steps_per_g_step"]
        if self.updates % (1 + rounds) < rounds:
            return self.apply("d", disc_loss)
        risk = mean_loss(self.classifier(features), y)
        return self.apply("g", risk - self.hparams["lambda"] * disc_loss)

    def apply(self, which, loss):
        for optimizer in self.optimizers.values():
            optimizer.zero_grad()
        loss.backward()
        self.optimizers[which].step()
        return loss.item()


NAIVE = {
    "ERM": NaiveERM,
    "CORAL": NaiveCORAL,
    "IRM": NaiveIRM,
    "VREx": NaiveVREx,
    "Fish": NaiveFish,
    "Fishr": NaiveFishr,
    "DANN": NaiveDANN,
}

import references_adversaries  # noqa: E402  (they build on the classes above)
import references_distances  # noqa: E402
import references_ermpp  # noqa: E402
import references_gradients  # noqa: E402
import references_mixing  # noqa: E402

NAIVE |= references_adversaries.NAIVE
NAIVE |= references_distances.NAIVE
NAIVE |= references_ermpp.NAIVE
NAIVE |= references_gradients.NAIVE
NAIVE |= references_mixing.NAIVE
