"""Classifiers that training starts with, where they are not random."""

from __future__ import annotations

import torch
from torch import nn

from domainbed.algorithms import LinearProbe
from domainbed.algorithms.fitted import logistic_regression
from domainbed.config.dimensions import with_defaults
from domainbed.datasets.features import open_text_head
from domainbed.errors import UserError
from domainbed.networks import HEAD_OPTIONS
from domainbed.training.experiment import Experiment

PROBE_L2 = float(LinearProbe.search_space["probe_l2"].default)
"""Weight of the penalty of a linear probe that runs start with."""


def set_initial_weights(experiment: Experiment) -> None:
    """Gives the algorithm the classifier that its spec asks for, in place of the drawn one.

    `linear-probe`: logistic regression on the features that its featurizer gives to the training
    domains' images, of the in-splits, not augmented. `text`: that of the classes' names.

    Raises:
        UserError: the algorithm has no linear classifier on features, or the backbone's text
            encoder is not available.
    """
    algorithm, initial = experiment.algorithm, experiment.spec.initial_weights
    is_text = initial == "text" or algorithm.needs_text
    if not is_text and initial != "linear-probe":
        return
    try:
        featurizer, classifier = linear_head(experiment)
    except UserError as error:
        raise UserError(
            f"initial_weights is {initial!r}, but {error}: choose 'shared' or 'own'",
            "initial_weights",
        ) from error
    finally:
        algorithm.train()
    weight, bias = _text_head(experiment) if is_text else _probe(experiment, featurizer)
    with torch.no_grad():
        # Also of the classifier that is trained, where another one predicts.
        for each in (classifier, getattr(algorithm, "classifier", classifier)):
            each.weight.copy_(weight)
            each.bias.copy_(bias)


def _text_head(experiment: Experiment) -> tuple[torch.Tensor, torch.Tensor]:
    spec, folder = experiment.spec, experiment.dataset.features_folder
    assert spec.features is not None
    assert folder is not None
    names = experiment.dataset.class_names
    prompts = with_defaults(HEAD_OPTIONS, spec.hparams)["prompts"]
    weight, scale = open_text_head(folder, spec.features, names, prompts)
    return scale * weight, torch.zeros(len(names))


@torch.no_grad()
def _probe(experiment: Experiment, featurizer: nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
    """Weight and bias of the logistic regression."""
    experiment.algorithm.eval()
    features, labels = [], []
    for domain in experiment.train_envs:
        inside = experiment.stage_splits[domain].inside
        batches = experiment.domains[domain].evaluation_batches(inside, workers=experiment.workers)
        for x, y in batches:
            features.append(featurizer(x).float())
            labels.append(y)
    experiment.algorithm.train()
    z, y = torch.cat(features), torch.cat(labels)
    weight, bias, _ = logistic_regression(z, y, experiment.dataset.num_classes, PROBE_L2)
    return weight, bias


@torch.no_grad()
def linear_head(experiment: Experiment) -> tuple[nn.Module, nn.Linear]:
    """The featurizer and the linear classifier that an experiment's algorithm predicts with.

    Puts the algorithm in evaluation mode. The two are tried on two training images, for which they
    must predict as it does.

    Raises:
        UserError: it predicts in another way; the reason has the algorithm's name.
    """
    algorithm, domain = experiment.algorithm.eval(), experiment.train_envs[0]
    two = experiment.stage_splits[domain].inside[:2]
    ((x, _),) = experiment.domains[domain].evaluation_batches(two)
    name = type(algorithm).__name__
    try:
        featurizer, classifier = algorithm.predicting_parts()
    except AttributeError as error:
        raise UserError(f"{name} has no classifier on features") from error
    if not isinstance(classifier, nn.Linear):
        raise UserError(f"the classifier of {name} is not one linear layer")
    try:
        logits = classifier(featurizer(x))
    except RuntimeError as error:  # its featurizer or classifier needs more than the inputs
        raise UserError(f"{name} predicts by more than a classifier on its features") from error
    if algorithm.predicts_batches or not torch.allclose(logits, algorithm.predict(x), atol=1e-4):
        raise UserError(f"{name} predicts by more than a classifier on its features")
    return featurizer, classifier
