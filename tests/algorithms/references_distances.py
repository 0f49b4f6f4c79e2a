"""Naive implementations of the methods that compare sets of features, logits or risks."""

from __future__ import annotations

import copy
import math

import torch
from references import (
    NaiveERM,
    concatenated,
    coral_distance,
    irm_penalty,
    mean_loss,
    sample_loss,
)

GAMMAS = (0.001, 0.01, 0.1, 1, 10, 100, 1000)


def kernel(a, b, gammas=GAMMAS):
    """A sum of Gaussians of the distance of two vectors."""
    squared = ((a - b) ** 2).sum()
    return sum(torch.exp(-gamma * squared) for gamma in gammas)


def mmd_distance(first, second, gammas=GAMMAS):
    """Mean of the kernel within each set and between them, every sample with itself included."""

    def mean_kernel(one, other):
        values = [kernel(a, b, gammas) for a in one for b in other]
        return sum(values) / len(values)

    within = mean_kernel(first, first) + mean_kernel(second, second)
    return within - 2 * mean_kernel(first, second)


class NaiveMatching(NaiveERM):
    """A penalty on the features, which are those of one domain after the other."""

    def update(self, minibatches):
        features = [self.featurizer(x) for x, _ in minibatches]
        risk = 0
        for z, (_, y) in zip(features, minibatches, strict=True):
            risk = risk + mean_loss(self.classifier(z), y) / len(features)
        return self.step(risk + self.hparams["mmd_gamma"] * self.penalty(features))


class NaiveMMD(NaiveMatching):
    def penalty(self, features):
        distances = []
        for i in range(len(features)):
            for j in range(i + 1, len(features)):
                distances.append(mmd_distance(features[i], features[j]))
        return sum(distances) / len(distances) if distances else 0


class NaiveCausIRL(NaiveMatching):
    """Given a copy of the algorithm's source of random numbers."""

    @classmethod
    def twin(cls, algorithm, num_domains):
        naive = super().twin(algorithm, num_domains)
        naive.draws = copy.deepcopy(algorithm.draws)
        return naive

    def penalty(self, features):
        first, second = [], []
        for z in features:
            cut = self.draws.integer(len(z))
            for position, row in enumerate(z):
                (first if position < cut else second).append(row)
        if len(first) < 2 or len(second) < 2:
            return 0
        return self.distance(torch.stack(first), torch.stack(second))


class NaiveCausIRLCORAL(NaiveCausIRL):
    distance = staticmethod(coral_distance)


class NaiveCausIRLMMD(NaiveCausIRL):
    distance = staticmethod(mmd_distance)


class NaiveGroupDRO(NaiveERM):
    weights = None

    def update(self, minibatches):
        losses = [self.domain_loss(x, y) for x, y in minibatches]
        if self.weights is None:
            self.weights = [1.0] * len(losses)
        for e, loss in enumerate(losses):
            rate = self.hparams["groupdro_eta"]
            self.weights[e] = self.weights[e] * torch.exp(rate * loss).detach()
        total = sum(self.weights)
        self.weights = [weight / total for weight in self.weights]
        loss = sum(weight * loss for weight, loss in zip(self.weights, losses, strict=True))
        if self.hparams.get("groupdro_reduction") == "mean":
            loss = loss / len(losses)
        return self.step(loss)


class NaiveSD(NaiveERM):
    def update(self, minibatches):
        x, y = concatenated(minibatches)
        logits = self.classifier(self.featurizer(x))
        squares = [logit**2 for row in logits for logit in row]
        penalty = sum(squares) / len(squares)
        return self.step(mean_loss(logits, y) + self.hparams["sd_reg"] * penalty)


class NaiveSwitching(NaiveERM):
    """Weights by (hyper-parameter, number of updates, value before); a new Adam at each switch."""

    annealed, lr_after = (), "lr"

    def weights(self):
        found = []
        for name, updates, before in self.annealed:
            if self.updates == self.hparams[updates]:
                self.restart_optimizer()
            found.append(self.hparams[name] if self.updates >= self.hparams[updates] else before)
        return found

    def restart_optimizer(self):
        self.optimizer = torch.optim.Adam(
            self.parameters(),
            lr=self.hparams[self.lr_after],
            weight_decay=self.hparams["weight_decay"],
        )


def unbiased_variance(values):
    mean = sum(values) / len(values)
    return sum((value - mean) ** 2 for value in values) / (len(values) - 1)


class NaiveIBERM(NaiveSwitching):
    annealed = (("ib_lambda", "ib_penalty_anneal_iters", 0.0),)

    def update(self, minibatches):
        weights, loss = self.weights(), 0
        for x, y in minibatches:
            z = self.featurizer(x)
            variances = [unbiased_variance(z[:, k]) for k in range(z.shape[1])]
            parts = [sum(variances) / len(variances), irm_penalty(self.classifier(z), y)]
            loss = loss + mean_loss(self.classifier(z), y) / len(minibatches)
            for weight, part in zip(weights, parts, strict=False):
                loss = loss + weight * part / len(minibatches)
        return self.step(loss)


class NaiveIBIRM(NaiveIBERM):
    annealed = (*NaiveIBERM.annealed, ("irm_lambda", "irm_penalty_anneal_iters", 1.0))


def rdm_penalties(risks):
    """Of lists of samples' risks: the kernel distance and the sum of variances."""
    every = [risk for own in risks for risk in own]
    worst = max(risks, key=lambda own: sum(own) / len(own))
    gammas = (0.0001, *GAMMAS)
    matching = mmd_distance([r[None] for r in worst], [r[None] for r in every], gammas)
    return matching, unbiased_variance(every) + unbiased_variance(worst)


class NaiveRDM(NaiveSwitching):
    annealed = (
        ("rdm_lambda", "rdm_penalty_anneal_iters", 0.0),
        ("variance_weight", "rdm_penalty_anneal_iters", 0.0),
    )
    lr_after = "rdm_lr"

    def update(self, minibatches):
        matching_weight, variance_weight = self.weights()
        risks = []
        for x, y in minibatches:
            logits = self.classifier(self.featurizer(x))
            risks.append([sample_loss(row, label) for row, label in zip(logits, y, strict=True)])
        risk = sum(sum(own) / len(own) for own in risks) / len(risks)
        matching, variance = rdm_penalties(risks)
        return self.step(risk + matching_weight * matching + variance_weight * variance)


def smoothed_cdf(point, risks, width):
    return sum(0.5 * (1 + torch.erf((point - r) / (width * math.sqrt(2)))) for r in risks) / len(
        risks
    )


def risk_quantile(risks, alpha, implicit=False):
    """By bisection, halving by halving; its derivative, or that of the equation it solves."""
    width = 1.06 * torch.sqrt(unbiased_variance(risks)) * len(risks) ** -0.2
    if alpha < 0:
        return sum(risk + width * math.sqrt(-2 * alpha) for risk in risks) / len(risks)
    shift = width * math.sqrt(2) * torch.erfinv(torch.tensor(2 * alpha - 1, dtype=width.dtype))
    low, high = min(risks) + shift, max(risks) + shift
    for _ in range(32):
        middle = (low + high) / 2
        if smoothed_cdf(middle, risks, width) > alpha:
            high = middle
        else:
            low = middle
    found = (low + high) / 2
    if not implicit:
        return found
    found = found.detach()
    kernels = [torch.exp(-0.5 * ((found - risk) / width) ** 2).detach() for risk in risks]
    change = 0
    for kernel_at, risk in zip(kernels, risks, strict=True):
        slope = ((found - risk) / width).detach()
        change = change + kernel_at * (risk - risk.detach() + slope * (width - width.detach()))
    return found + change / sum(kernels)


class NaiveEQRM(NaiveSwitching):
    lr_after = "eqrm_lr"

    def update(self, minibatches):
        burnin = self.hparams["eqrm_burnin_iters"]
        reading = self.hparams.get("fidelity", "mended")
        losses = [self.domain_loss(x, y) for x, y in minibatches]
        loss = sum(losses) / len(losses)
        if self.updates >= burnin:
            loss = risk_quantile(losses, self.hparams["eqrm_quantile"], reading == "paper")
        first = self.updates >= burnin > self.updates - 1
        if self.updates == burnin or (first and reading != "domainbed"):
            self.restart_optimizer()
        return self.step(loss)


NAIVE = {
    "GroupDRO": NaiveGroupDRO,
    "MMD": NaiveMMD,
    "SD": NaiveSD,
    "IB_ERM": NaiveIBERM,
    "IB_IRM": NaiveIBIRM,
    "CausIRL_CORAL": NaiveCausIRLCORAL,
    "CausIRL_MMD": NaiveCausIRLMMD,
    "EQRM": NaiveEQRM,
    "RDM": NaiveRDM,
}
