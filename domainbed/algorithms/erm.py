"""Empirical risk minimisation, and what methods that extend it share.

One forward pass over all domains' minibatches, and penalties whose weight changes at a switch.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, wraps
from typing import Any, ClassVar, TypeVar

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from domainbed import networks
from domainbed.algorithms.base import (
    Algorithm,
    Metrics,
    Minibatches,
    Objective,
    Unlabeled,
    concatenate,
    domain_labels,
    domain_sizes,
    register_algorithm,
)
from domainbed.core.device import full_precision
from domainbed.core.minibatch import Nest, joined_extras, split
from domainbed.errors import UserError
from domainbed.metrics.labels import CLASSES, LabelType

T = TypeVar("T")
Network = Callable[[torch.Tensor], torch.Tensor]


def in_full_precision(
    function: Callable[[Sequence[torch.Tensor]], T],
) -> Callable[[Sequence[torch.Tensor]], T]:
    """The same function of one tensor per domain, computed in float32 or better.

    Statistics of bfloat16 numbers hardly differ by anything but rounding.
    """

    @wraps(function)
    def computed(values: Sequence[torch.Tensor]) -> T:
        with full_precision(values[0].device):
            return function([z.to(torch.promote_types(z.dtype, torch.float32)) for z in values])

    return computed


class ForwardPass:
    """All domains' inputs, one after the other, on their way through featurizer and classifier.

    Features and logits are computed when they are first asked for, once: a method pays for what
    it uses, and the order of its computations is its own.

    Args:
        minibatches: one pair of inputs and labels per training domain.
        featurizer: (N, *input_shape) to (N, d); None where the network has no features.
        classifier: from the features (the inputs, if there are no features) to (N, C) logits.
        one_by_one: send the domains through the network one after the other, in domain order.
        label_type: of the labels, whose loss the risks are.

    Attributes:
        minibatches: as they were given.
        x: (N, *input_shape) inputs, or a nest of them; N is the sum of the domains' B.
        y: (N,) labels.
        sizes: B of each of the E domains.
    """

    def __init__(
        self,
        minibatches: Minibatches,
        featurizer: Network | None,
        classifier: Network,
        one_by_one: bool = False,
        label_type: LabelType = CLASSES,
    ) -> None:
        self.minibatches, self.label_type = minibatches, label_type
        self.x, self.y = concatenate(minibatches)
        self.sizes = domain_sizes(minibatches)
        self._featurizer, self._classifier, self._one_by_one = featurizer, classifier, one_by_one

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
        """E tensors (B, d), whose graphs are separate if the domains go one by one."""
        if self._one_by_one:
            return list(map(self._known_featurizer(), self.by_domain(self.x)))
        return self.by_domain(self.features)

    @cached_property
    def domain_logits(self) -> Sequence[torch.Tensor]:
        """E tensors (B, C), whose graphs are separate if the domains go one by one."""
        if self._one_by_one:
            inputs = self.by_domain(self.x) if self._featurizer is None else self.domain_features
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

    @cached_property
    def extras(self) -> dict[str, Any] | None:
        """By name what else each domain's samples have, of all N; None where there is nothing."""
        return joined_extras(self.minibatches)

    def by_domain(self, values: Nest) -> Sequence[Any]:
        """(N, …), such as the features, to E tensors (B, …); a nest to E nests."""
        return split(values, self.sizes)

    def pooled_risk(self) -> torch.Tensor:
        """The mean loss of all samples, a scalar."""
        return self.label_type.risk(self.logits, self.y)

    def separate_risks(self) -> list[torch.Tensor]:
        """E mean losses, scalars, whose graphs are separate where the logits' are."""
        return list(map(self.label_type.risk, self.domain_logits, self.by_domain(self.y)))

    def domain_risks(self) -> torch.Tensor:
        """(E,) mean losses."""
        return torch.stack(self.separate_risks())


class PooledAlgorithm(Algorithm):
    """An algorithm with a featurizer and a classifier, through which all domains go at once.

    A subclass has `objective_of(forward)`; everything else may be inherited.

    Attributes:
        featurizer: φ, (N, *input_shape) to (N, d).
        classifier: w, (N, d) to (N, C).
        needs_classes: a subclass that overrides `update`, `objective` or `forward_pass`, where it
            may compute cross-entropies of its own, says by False that it does not.
        passes_by_domain: whether DomainBed sends each domain through the network by itself. It
            makes a difference only where batch norm layers train, and is done only there.
        separates_domains: whether each domain goes through the network by itself in any case,
            because gradients of single domains are wanted: one backward pass of its own graph each.
    """

    featurizer: networks.Featurizer
    classifier: nn.Module
    needs_classes = False
    passes_by_domain: ClassVar[bool] = False
    separates_domains: ClassVar[bool] = False

    def __init_subclass__(cls, **settings: Any) -> None:
        super().__init_subclass__(**settings)
        own = vars(cls)
        if "needs_classes" not in own and {"update", "objective", "forward_pass"} & {*own}:
            cls.needs_classes = True

    def objective_of(self, forward: ForwardPass) -> tuple[torch.Tensor, Metrics]:
        """The loss and the metrics of a forward pass, see `objective`."""
        raise NotImplementedError

    def objective(
        self, minibatches: Minibatches, unlabeled: Unlabeled = None
    ) -> tuple[torch.Tensor, Metrics]:
        return self.objective_of(self.forward_pass(minibatches))

    def forward_pass(self, minibatches: Minibatches) -> ForwardPass:
        """Of all domains, through this algorithm's networks.

        A class that overrides `predict` alone is trained on what it predicts.

        Raises:
            UserError: a domain has too few samples for the method.
        """
        self.require_samples(minibatches)
        one_by_one = self.separates_domains or (self.passes_by_domain and trains_batch_norm(self))
        if type(self).predict is not PooledAlgorithm.predict:
            return ForwardPass(minibatches, None, self.predict, one_by_one, self.label_type)
        return ForwardPass(
            minibatches, self.featurizer, self.classifier, one_by_one, self.label_type
        )

    def predict(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.featurizer(x))


def trains_batch_norm(network: nn.Module) -> bool:
    """Whether a layer of it normalises by the batch, and not by running statistics."""
    return any(isinstance(m, _BatchNorm) and m.training for m in network.modules())


@register_algorithm
class ERM(PooledAlgorithm):
    """Cross-entropy over all training domains, pooled.

        min_{φ, w}  CE(w(φ(x)), y),   (x, y) the concatenation of all minibatches

    x: (E·B, *input_shape), φ(x): (E·B, d), w(φ(x)): (E·B, C). Here and in other algorithms CE
    stands for the loss of the label type, which is the cross-entropy where labels are classes.

    Attributes:
        featurizer: φ.
        classifier: w.
        network: w ∘ φ.
        optimizer: over the network.
    """

    paper = "Vapnik, Statistical Learning Theory, Wiley 1998"

    def build(self) -> None:
        self.featurizer = networks.Featurizer(self.input_shape, self.hparams)
        self.classifier = networks.Classifier(
            self.featurizer.n_outputs, self.num_classes, self.hparams["nonlinear_classifier"]
        )
        self.network = nn.Sequential(self.featurizer, self.classifier)
        self.optimizer = self.new_optimizer(self.network)

    def objective_of(self, forward: ForwardPass) -> tuple[torch.Tensor, Metrics]:
        return forward.pooled_risk(), {}


@dataclass(frozen=True)
class AnnealedWeight:
    """λ, one value for the first updates and another after.

    Attributes:
        name: the hyper-parameter with the value after.
        updates: the hyper-parameter with the number of updates before.
        initial: the value before.
    """

    name: str
    updates: str
    initial: float = 0.0


class AnnealedPenalty(ERM):
    """loss = risk + Σ λ · penalty, each λ one value for the first updates and another after.

    At a switch the optimizer is re-created, because its moments were gathered on another loss.

    Attributes:
        weights: the λ.
        lr_after: the hyper-parameter with the learning rate after a switch.
    """

    weights: ClassVar[Sequence[AnnealedWeight]] = ()
    lr_after: ClassVar[str] = "lr"
    counters = ("update_count",)

    def penalty_weights(self) -> list[float]:
        """The λ of the current update, in the order of `weights`."""
        done = self.updates_done()
        return [
            self.hparams[each.name] if done >= self.hparams[each.updates] else each.initial
            for each in self.weights
        ]

    def penalised(self, risk: torch.Tensor, penalty: torch.Tensor) -> tuple[torch.Tensor, Metrics]:
        """risk + λ · penalty with the only λ, and the two as metrics."""
        (weight,) = self.penalty_weights()
        return risk + weight * penalty, {"nll": risk, "penalty": penalty}

    def switches_now(self) -> bool:
        """Whether the current update is the first after a switch."""
        return self.updates_done() in [self.hparams[each.updates] for each in self.weights]

    def update_on(
        self, objective: Objective, minibatches: Minibatches, unlabeled: Unlabeled = None
    ) -> Metrics:
        """Starts with a fresh optimizer at a switch."""
        if self.switches_now():
            self.optimizer = self.new_optimizer(self.network, lr=self.hparams[self.lr_after])
        return super().update_on(objective, minibatches, unlabeled)

    def descend(self, loss: torch.Tensor) -> None:
        """One step on `loss`; counts the update."""
        super().descend(loss)
        self.update_count += 1
