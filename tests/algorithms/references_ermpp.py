"""ERM++, naively: all weights are kept, and their mean is taken anew."""

from __future__ import annotations

import copy

import torch
from torch import nn


def mean_loss(logits, labels):
    """Cross-entropy as the mean of a loop over samples."""
    losses = [torch.logsumexp(row, 0) - row[y] for row, y in zip(logits, labels, strict=True)]
    return sum(losses) / len(losses)


class NaiveERMPlusPlus:
    compared = ("featurizer", "classifier", "network_sma")

    @classmethod
    def twin(cls, algorithm, num_domains):
        return cls(algorithm.featurizer, algorithm.classifier, dict(algorithm.hparams))

    def __init__(self, featurizer, classifier, hparams):
        self.featurizer, self.classifier = copy.deepcopy(featurizer), copy.deepcopy(classifier)
        self.network = nn.Sequential(self.featurizer, self.classifier)
        self.network_sma = copy.deepcopy(self.network)
        self.hparams = hparams
        self.history = [self.weights()]
        decay = {"weight_decay": hparams["weight_decay"]}
        self.body = torch.optim.Adam(self.network.parameters(), lr=hparams["lr"], **decay)
        head = self.classifier.parameters()
        self.head = torch.optim.Adam(head, lr=hparams["linear_lr"], **decay)

    def weights(self):
        return [p.detach().clone() for p in self.network.parameters()]

    def update(self, minibatches):
        x, y = (torch.cat(each) for each in zip(*minibatches, strict=True))
        loss = mean_loss(self.network(x), y)
        warm = len(self.history) - 1 < self.hparams["linear_steps"] + 1
        optimizer = self.head if warm else self.body
        self.network.zero_grad()
        loss.backward()
        optimizer.step()
        self.history.append(self.weights())
        start, done = self.hparams["sma_start"], len(self.history) - 1
        kept = self.history[start - 1 :] if done >= start else self.history[-1:]
        for average, *weights in zip(self.network_sma.parameters(), *kept, strict=True):
            average.data = sum(weights) / len(weights)
        return loss.item()


NAIVE = {"ERMPlusPlus": NaiveERMPlusPlus}
