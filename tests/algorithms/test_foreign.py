"""Classes that were written for forks, adapted and run as they are."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from domainbed.algorithms import ALGORITHMS, adapt, register_algorithm
from domainbed.training.trial import trial


class Linear(nn.Module):
    """What the forks' classes below share."""

    def __init__(self, input_shape, num_classes, num_domains, hparams):
        super().__init__()
        self.hparams = hparams
        self.network = nn.Sequential(
            nn.Flatten(), nn.Linear(torch.Size(input_shape).numel(), num_classes)
        )
        self.optimizer = torch.optim.SGD(self.network.parameters(), lr=hparams["lr"])

    def descend(self, loss):
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return {"loss": loss.item()}

    def predict(self, x):
        return self.network(x)


class OfPairs(Linear):
    def update(self, minibatches, unlabeled=None):
        x, y = (torch.cat(part) for part in zip(*minibatches))
        return self.descend(F.cross_entropy(self.predict(x), y))


def test_classes_of_forks_run():
    for cls in (OfPairs,):
        register_algorithm(adapt(cls))
        try:
            assert trial(cls.__name__) == ("runs", ""), cls
        finally:
            ALGORITHMS._entries.pop(cls.__name__)
