"""Algorithms whose loss is a function of one forward pass over all domains' minibatches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import ClassVar

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from domainbed.algorithms.base import (
    Algorithm,
    Metrics,
    Minibatches,
    concatenate,
    domain_labels,
    domain_sizes,
)
from domainbed.errors import UserError

Network = Callable[[torch.Tensor], torch.Tensor]


class ForwardPass:
    """All domains' inputs, one after the other, on their way through featurizer and classifier.

    Features and logits are computed when they are first asked for, once: a method pays for what
    it uses, and the order of its computations is its own.

    Args:
        minibatches: one pair of inputs and labels per training domain.
        featurizer: (N, *input_shape) to (N, d); None where the network has no features.
        classifier: from the features (from the inputs, where there are none) to (N, C) logits.
        one_by_one: send the domains through the network one after the other, in domain order.

    Attributes:
        x: (N, *input_shape) inputs; N is the sum of the domains' B.
        y: (N,) labels.
        sizes: B of each of the E domains.
    """

    def __init__(
        self,
        minibatches: Minibatches,
        featurizer: Network | None,
        classifier: Network,
        one_by_one: bool = False,
    ) -> None:
        self.x, self.y = concatenate(minibatches)
        self.sizes = domain_sizes(minibatches)
        self._featurizer, self._classifier = featurizer, classifier
        self._one_by_one = one_by_one

    @cached_property
    def features(self) -> torch.Tensor:
        """(N, d).

        Raises:
            UserError: the algorithm's predictions are not those of a classifier on features.
        """
        if self._one_by_one:
            return torch.cat(list(self.domain_features))
        return self._known_featurizer()(self.x)

    @cached_property
    def logits(self) -> torch.Tensor:
        """(N, C)."""
        if self._one_by_one:
            return torch.cat(list(self.domain_logits))
        return self._classifier(self.x if self._featurizer is None else self.features)

    @cached_property
    def domain_features(self) -> Sequence[torch.Tensor]:
        """E tensors (B, d), whose graphs are apart if the domains go one by one."""
        if self._one_by_one:
            return list(map(self._known_featurizer(), self.by_domain(self.x)))
        return self.by_domain(self.features)

    @cached_property
    def domain_logits(self) -> Sequence[torch.Tensor]:
        """E tensors (B, C), whose graphs are apart if the domains go one by one."""
        if self._one_by_one:
            direct = self._featurizer is None
            inputs = self.by_domain(self.x) if direct else self.domain_features
            return list(map(self._classifier, inputs))
        return self.by_domain(self.logits)

    def _known_featurizer(self) -> Network:
        if self._featurizer is None:
            raise UserError(
                "this method needs features, but the class overrides 'predict', so that its "
                "classifier's inputs are not known: override 'forward_pass' as well"
            )
        return self._featurizer

    @cached_property
    def domains(self) -> torch.Tensor:
        """(N,) the number of each sample's domain."""
        return domain_labels(self.sizes, self.y.device)

    def by_domain(self, values: torch.Tensor) -> Sequence[torch.Tensor]:
        """(N, …), such as the features, to E tensors (B, …)."""
        return values.split(self.sizes)

    def pooled_risk(self) -> torch.Tensor:
        """The mean cross-entropy of all samples, a scalar."""
        return F.cross_entropy(self.logits, self.y)

    def separate_risks(self) -> list[torch.Tensor]:
        """E mean cross-entropies, scalars, whose graphs are apart as those of the logits."""
        pairs = zip(self.domain_logits, self.by_domain(self.y))
        return [F.cross_entropy(logits_e, y_e) for logits_e, y_e in pairs]

    def domain_risks(self) -> torch.Tensor:
        """(E,) mean cross-entropies."""
        return torch.stack(self.separate_risks())


class PooledAlgorithm(Algorithm):
    """An algorithm with a featurizer and a classifier, through which all domains go at once.

    A subclass has `objective_of(forward)`; everything else may be inherited.

    Attributes:
        featurizer: φ, (N, *input_shape) to (N, d).
        classifier: w, (N, d) to (N, C).
    """

    featurizer: nn.Module
    classifier: nn.Module

    passes_by_domain: ClassVar[bool] = False
    """Whether DomainBed sends each domain through the network by itself. It makes a difference
    only where batch norm layers train, and is done only there."""

    separates_domains: ClassVar[bool] = False
    """Whether each domain goes through the network by itself in any case, because gradients of
    single domains are wanted: one backward pass of its own graph each."""

    def objective_of(self, forward: ForwardPass) -> tuple[torch.Tensor, Metrics]:
        """The loss and the metrics of a forward pass, see `objective`."""
        raise NotImplementedError

    def objective(
        self, minibatches: Minibatches, unlabeled: Sequence[torch.Tensor] | None = None
    ) -> tuple[torch.Tensor, Metrics]:
        return self.objective_of(self.forward_pass(minibatches))

    def forward_pass(self, minibatches: Minibatches) -> ForwardPass:
        """Of all domains, through this algorithm's networks.

        A class that overrides `predict` alone is trained on what it predicts.

        Raises:
            UserError: a domain has too few samples for the method.
        """
        self.require_samples(minibatches)
        one_by_one = self.passes_by_domain and trains_batch_norm(self)
        one_by_one = one_by_one or self.separates_domains
        if predicts_otherwise(type(self)):
            return ForwardPass(minibatches, None, self.predict, one_by_one)
        return ForwardPass(minibatches, self.featurizer, self.classifier, one_by_one)

    def predict(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.featurizer(x))


def trains_batch_norm(network: nn.Module) -> bool:
    """Whether a layer of it normalises by the batch, and not by running statistics."""
    return any(isinstance(m, _BatchNorm) and m.training for m in network.modules())


def draws_dropout(network: nn.Module) -> bool:
    """Whether a layer of it drops random values, so that two passes differ."""
    return any(isinstance(m, _DropoutNd) and m.training and m.p > 0 for m in network.modules())


def predicts_otherwise(algorithm: type[PooledAlgorithm]) -> bool:
    """Whether its predictions may be others than those of its classifier on its features."""
    return algorithm.predict is not PooledAlgorithm.predict
