"""Naive implementations of the methods that compare sets of features, logits or risks."""

from __future__ import annotations

import copy

import torch
from references import NaiveERM, concatenated, coral_distance, mean_loss

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


NAIVE = {
    "GroupDRO": NaiveGroupDRO,
    "MMD": NaiveMMD,
    "SD": NaiveSD,
    "CausIRL_CORAL": NaiveCausIRLCORAL,
    "CausIRL_MMD": NaiveCausIRLMMD,
}
