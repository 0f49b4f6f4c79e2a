"""What is diagnosed: a finished run's network and the in-splits of its domains."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from domainbed.core.seeding import split_seed
from domainbed.datasets.domain import Minibatch
from domainbed.errors import UserError
from domainbed.training.experiment import Experiment


def network_of(experiment: Experiment) -> nn.Sequential:
    """Featurizer, then classifier, in evaluation mode; those that the algorithm predicts with.

    Raises:
        UserError: the algorithm has no such parts, or looks at more than them to predict.
    """
    if experiment.algorithm.predicts_batches:
        raise UserError(
            f"{experiment.spec.algorithm} cannot be diagnosed: its predictions depend on the other "
            "images of a batch"
        )
    try:
        parts = experiment.algorithm.predicting_parts()
    except AttributeError as error:
        raise UserError(
            f"{experiment.spec.algorithm} cannot be diagnosed ({error}): only algorithms with a "
            "featurizer and a classifier can"
        ) from error
    return nn.Sequential(*parts).eval()


def sampled(experiment: Experiment, domain: int, samples: int) -> list[int]:
    """The images of a domain's in-split to look at, at random in each trial; 0 for all."""
    inside = experiment.splits[domain].inside
    source = np.random.RandomState(split_seed(experiment.spec.trial_seed, domain))
    return [inside[i] for i in source.permutation(len(inside))[: samples or None]]


@torch.no_grad()
def features(
    experiment: Experiment, network: nn.Sequential, domain: int, indices: list[int]
) -> Minibatch:
    """(n, d) features, in double precision on the CPU, and (n,) labels of a domain's images."""
    batches = experiment.domains[domain].evaluation_batches(indices, workers=experiment.workers)
    pairs = [(network[0](x).cpu().double(), y.cpu()) for x, y in batches]
    found, labels = zip(*pairs)
    return torch.cat(found), torch.cat(labels)
