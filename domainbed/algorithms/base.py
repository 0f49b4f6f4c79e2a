"""The contract of an algorithm. It is DomainBed's, so that code written for it runs here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import nn
from torch.nn import functional as F

from domainbed.dimensions import Option, SearchSpace, SpaceOf
from domainbed.errors import UserError
from domainbed.registry import Registry

Minibatches = Sequence[tuple[torch.Tensor, torch.Tensor]]

ALGORITHMS = Registry("algorithm", entry_point_group="domainbed.algorithms")


class Algorithm(nn.Module):
    """A method of domain generalization: a network and a way to update it.

    Args:
        input_shape: shape of one input, without the batch.
        num_classes: C.
        num_domains: E, the number of *training* domains.
        hparams: name to value, as drawn from the search space.
    """

    paper: ClassVar[str] = ""
    """Authors, title, venue and arXiv number."""

    search_space: ClassVar[Any] = {}
    """A `SearchSpace` of the algorithm's own, or a function of `DatasetFacts` to one."""

    options: ClassVar[Mapping[str, Option]] = {}
    """Variants beyond the published protocol, which a user may set as hyper-parameters."""

    def __init__(
        self,
        input_shape: Sequence[int],
        num_classes: int,
        num_domains: int,
        hparams: Mapping[str, Any],
    ) -> None:
        super().__init__()
        self.hparams = hparams

    def update(
        self, minibatches: Minibatches, unlabeled: Sequence[torch.Tensor] | None = None
    ) -> dict[str, float]:
        """One step of training.

        Args:
            minibatches: one pair of inputs (B, *input_shape) and labels (B,) per training
                domain, in domain order.
            unlabeled: inputs of the test domains, in the task "domain_adaptation" alone.

        Returns:
            what the step is to be watched by: its loss and the parts of it.
        """
        raise NotImplementedError

    def predict(self, x: torch.Tensor) -> torch.Tensor:
        """Logits: (B, *input_shape) to (B, C)."""
        raise NotImplementedError


def register_algorithm(
    algorithm: type | None = None,
    *,
    name: str | None = None,
    search_space: SearchSpace | SpaceOf | None = None,
    paper: str | None = None,
) -> Any:
    """Adds an algorithm to the registry; works as a decorator, with or without arguments.

    A class that was written for DomainBed needs no change: its hyper-parameters may be
    declared here instead of in the class.

    Example:
        >>> from domainbed.dimensions import LogUniform
        >>> register_algorithm(
        ...     TheirMethod, search_space={"their_weight": LogUniform(1.0, -2, 2)}
        ... )  # doctest: +SKIP
    """
    if algorithm is None:
        return lambda later: register_algorithm(
            later, name=name, search_space=search_space, paper=paper
        )
    if search_space is not None:
        algorithm.search_space = search_space  # type: ignore[attr-defined]
    if paper is not None:
        algorithm.paper = paper  # type: ignore[attr-defined]
    return ALGORITHMS.register(algorithm, name=name)


def concatenate(minibatches: Minibatches) -> tuple[torch.Tensor, torch.Tensor]:
    """All domains' inputs and labels in one tensor each, in domain order."""
    return torch.cat([x for x, _ in minibatches]), torch.cat([y for _, y in minibatches])


def domain_sizes(minibatches: Minibatches) -> list[int]:
    """How many samples each domain's minibatch has."""
    return [len(y) for _, y in minibatches]


def domain_risks(logits: Sequence[torch.Tensor], labels: Sequence[torch.Tensor]) -> torch.Tensor:
    """(E,) mean cross-entropies, from one (B, C) tensor of logits and (B,) labels per domain."""
    return torch.stack([F.cross_entropy(logits_e, y_e) for logits_e, y_e in zip(logits, labels)])


def require_samples(minibatches: Minibatches, least: int, method: str) -> None:
    """Refuses minibatches too small for a method's statistics, which would give NaN.

    Raises:
        UserError: a domain has fewer than `least` samples.
    """
    smallest = min(domain_sizes(minibatches))
    if smallest < least:
        raise UserError(
            f"{method} needs at least {least} samples per domain, but a minibatch has "
            f"{smallest}: raise the hyper-parameter 'batch_size'"
        )
