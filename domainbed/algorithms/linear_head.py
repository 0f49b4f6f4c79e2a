"""Algorithms that predict by a linear classifier on features, and by nothing else."""

from __future__ import annotations

import torch
from torch import nn

from domainbed.algorithms.base import Algorithm
from domainbed.errors import UserError


@torch.no_grad()
def linear_head(algorithm: Algorithm, x: torch.Tensor) -> tuple[nn.Module, nn.Linear]:
    """The featurizer and the linear classifier that an algorithm predicts with.

    Args:
        algorithm: in evaluation mode.
        x: (B, *input_shape), for which the two must predict as the algorithm does.

    Raises:
        UserError: it predicts in another way; the reason has the algorithm's name.
    """
    name = type(algorithm).__name__
    try:
        featurizer, classifier = algorithm.predicting_parts()
    except AttributeError as error:
        raise UserError(f"{name} has no classifier on features") from error
    if not isinstance(classifier, nn.Linear):
        raise UserError(f"the classifier of {name} is not one linear layer")
    try:
        logits = classifier(featurizer(x))
    except RuntimeError as error:  # its featurizer or classifier wants more than the inputs
        raise UserError(f"{name} predicts by more than a classifier on its features") from error
    if algorithm.predicts_batches or not torch.allclose(logits, algorithm.predict(x), atol=1e-4):
        raise UserError(f"{name} predicts by more than a classifier on its features")
    return featurizer, classifier
