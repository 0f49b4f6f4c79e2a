"""The contract of an algorithm. It is DomainBed's, so that code written for it runs here."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import nn

from domainbed.algorithms.stages import Stage
from domainbed.config.dimensions import DatasetFacts, Dimension, Option, SearchSpace, SpaceOf
from domainbed.core.registry import Registry
from domainbed.errors import UserError

if TYPE_CHECKING:
    from typing_extensions import Self

Minibatches = Sequence[tuple[torch.Tensor, torch.Tensor]]
"""One pair of inputs (B, *input_shape) and labels (B,) per training domain, in domain order."""

Metrics = Mapping[str, torch.Tensor | float]
"""Scalars to watch an update by, by name."""

Objective = Callable[[Minibatches, Sequence[torch.Tensor] | None], tuple[torch.Tensor, Metrics]]
"""From minibatches and unlabeled inputs to a loss, a scalar in the graph, and metrics."""


class Algorithm(nn.Module):
    """A method of domain generalization: a network and a way to update it.

    Args:
        input_shape: shape of one input, without the batch.
        num_classes: C.
        num_domains: E, the number of *training* domains.
        hparams: name to value, as drawn from the search space.

    Raises:
        UserError: fewer training domains than `least_domains`.
    """

    paper: ClassVar[str] = ""
    """Authors, title, venue and arXiv number."""

    search_space: ClassVar[Any] = {}
    """A `SearchSpace` of the algorithm's own, or a function of `DatasetFacts` to one."""

    options: ClassVar[Mapping[str, Option]] = {}
    """Variants beyond the published protocol, which a user may set as hyper-parameters."""

    least_domains: ClassVar[int] = 1
    """Training domains that its mathematics needs."""

    least_samples: ClassVar[int] = 1
    """Samples of each domain in a minibatch that its mathematics needs."""

    needs_images: ClassVar[bool] = False
    """Whether inputs must be images, and not features that a backbone computed of them."""

    needs_features: ClassVar[bool] = False
    """Whether natural images are too large for it, and features of them must be its inputs."""

    needs_text: ClassVar[bool] = False
    """Whether its classifier is made of the classes' names, by a backbone that reads text."""

    predicts_batches: ClassVar[bool] = False
    """Whether a prediction depends on the other inputs of its batch, which are then to be of one
    domain."""

    kept_on_cpu: ClassVar[tuple[str, ...]] = ()
    """Buffers that a GPU does not take along: to ask it for a count would wait for all its work."""

    optimizer: torch.optim.Optimizer
    """What `descend` steps; an algorithm with others overrides `descend`."""

    def __init__(
        self,
        input_shape: Sequence[int],
        num_classes: int,
        num_domains: int,
        hparams: Mapping[str, Any],
    ) -> None:
        super().__init__()
        if num_domains < self.least_domains:
            raise UserError(
                f"{type(self).__name__} needs at least {self.least_domains} training domains, but "
                f"there is {num_domains}: hold out fewer domains"
            )
        self.hparams = hparams

    def require_samples(self, minibatches: Minibatches) -> None:
        """Refuses minibatches too small for the method's statistics.

        Raises:
            UserError: a domain has fewer than `least_samples` samples.
        """
        smallest = min(domain_sizes(minibatches))
        if smallest < self.least_samples:
            raise UserError(
                f"{type(self).__name__} needs at least {self.least_samples} samples per domain, "
                f"but a minibatch has {smallest}: raise the hyper-parameter 'batch_size'"
            )

    def objective(
        self, minibatches: Minibatches, unlabeled: Sequence[torch.Tensor] | None = None
    ) -> tuple[torch.Tensor, Metrics]:
        """What an update descends on.

        Args:
            minibatches: one pair of inputs (B, *input_shape) and labels (B,) per training
                domain, in domain order.
            unlabeled: inputs of the test domains, in the task "domain_adaptation" alone.

        Returns:
            the loss, a scalar in the graph, and the metrics to report beside it. A metric named
            "loss" is reported in its place.
        """
        raise NotImplementedError

    def update(
        self, minibatches: Minibatches, unlabeled: Sequence[torch.Tensor] | None = None
    ) -> Metrics:
        """One step of training: descends on the objective; arguments as there.

        Returns:
            what the step is to be watched by: its loss and the parts of it, as numbers; on a GPU
            they may be scalar tensors, see `as_numbers`.
        """
        return self.update_on(self.objective, minibatches, unlabeled)

    def update_on(
        self,
        objective: Objective,
        minibatches: Minibatches,
        unlabeled: Sequence[torch.Tensor] | None = None,
    ) -> Metrics:
        """`update` with a given objective, such as this algorithm's own with a penalty added.

        An algorithm whose updates are of several kinds overrides this.
        """
        loss, metrics = objective(minibatches, unlabeled)
        self.descend(loss)
        return as_numbers({"loss": loss, **metrics})

    def descend(self, loss: torch.Tensor) -> None:
        """One step of the optimizer on `loss`."""
        step(self.optimizer, loss)

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        kept = {name: own for name, own in self._buffers.items() if name in self.kept_on_cpu}
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self._buffers |= kept
        return self

    def training_stages(self) -> Sequence[Stage]:
        """What a run of this method trains on; more than one asks for a fresh model for each."""
        return (Stage(),)

    def take_over(self, before: Any) -> None:
        """Called on the fresh model of a further stage, with the trained one of the stage before.

        Both are of the same class and have the same arguments.
        """

    def on_start(self) -> None:
        """Called before the first update of a stage, and not when a run goes on."""

    def on_record(self, metrics: dict[str, float]) -> bool | None:
        """Called with each record's numbers, to which it may add; true ends the stage there."""

    def on_end(self) -> None:
        """Called after the last update of a stage."""

    def predict(self, x: torch.Tensor) -> torch.Tensor:
        """Logits: (B, *input_shape) to (B, C)."""
        raise NotImplementedError

    def predictor(self) -> Callable[[torch.Tensor], torch.Tensor]:
        """What predicts the batches of one split, or of other images of one domain, in turn.

        An algorithm that learns from the batches that it predicts returns a function that keeps
        what it learned, and begins anew with each call of this one.
        """
        return self.predict

    def predicting_parts(self) -> tuple[nn.Module, nn.Module]:
        """The featurizer and the classifier whose predictions are the algorithm's.

        Raises:
            AttributeError: it has none.
        """
        return self.get_submodule("featurizer"), self.get_submodule("classifier")


def _check_class(entry: Any) -> None:
    """Raises `ValueError` where a class cannot be trained."""
    name = getattr(entry, "__name__", repr(entry))
    if not (isinstance(entry, type) and issubclass(entry, Algorithm)):
        raise ValueError(f"{name} is no algorithm: inherit from domainbed.algorithms.Algorithm")
    if entry.predict is Algorithm.predict:
        raise ValueError(f"algorithm {name} has no 'predict'")
    if all(getattr(entry, how) is getattr(Algorithm, how) for how in _WAYS_TO_UPDATE):
        raise ValueError(f"algorithm {name} has neither 'objective' nor 'update'")


_WAYS_TO_UPDATE = ("objective", "update", "update_on")

ALGORITHMS: Registry[type[Algorithm]] = Registry(
    "algorithm", entry_point_group="domainbed.algorithms", check=_check_class
)


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
        >>> from domainbed.config.dimensions import LogUniform
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


def domain_labels(sizes: Sequence[int], device: torch.device) -> torch.Tensor:
    """(Σ sizes,) the number of each sample's domain, where the samples come domain by domain."""
    filled = [torch.full((size,), e, device=device) for e, size in enumerate(sizes)]
    return torch.cat(filled)


def step(optimizer: torch.optim.Optimizer, loss: torch.Tensor) -> None:
    """One step of `optimizer` down the gradient of `loss`."""
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


_AT_HAND = ("cpu",)
"""The devices whose numbers can be read without waiting for them."""


def predictor_of(algorithm: Any) -> Callable[[torch.Tensor], torch.Tensor]:
    """See `Algorithm.predictor`; a module that only has `predict` predicts with that."""
    predictor = getattr(algorithm, "predictor", None)
    return predictor() if predictor else algorithm.predict


def as_numbers(metrics: Metrics) -> dict[str, torch.Tensor | float]:
    """The values as numbers; those on a GPU stay there, without their graphs, until a record."""
    return {
        name: _as_number(value) if isinstance(value, torch.Tensor) else float(value)
        for name, value in metrics.items()
    }


def _as_number(value: torch.Tensor) -> torch.Tensor | float:
    return value.item() if value.device.type in _AT_HAND else value.detach()


def declared_space(algorithm: type, facts: DatasetFacts) -> dict[str, Dimension]:
    """The dimensions that a class declares, after those of its parents."""
    space: dict[str, Dimension] = {}
    for cls in reversed(algorithm.__mro__):
        own = vars(cls).get("search_space", {})
        own = own.__func__ if isinstance(own, staticmethod) else own
        declared = own(facts) if callable(own) else own
        _check_declared(cls, "search_space", declared, Dimension)
        space |= declared
    return space


def _check_declared(cls: type, name: str, declared: Any, kind: Any) -> None:
    if not isinstance(declared, Mapping):
        raise UserError(f"{name} of {cls.__name__} is {declared!r}: expected names with dimensions")
    for key, value in declared.items():
        if not isinstance(value, kind):
            expected = "Option" if kind is Option else "Fixed, Choice, Uniform or LogUniform"
            raise UserError(f"{name} of {cls.__name__}: {key!r} is {value!r}, expected {expected}")


def declared_options(algorithm: type) -> dict[str, Option]:
    """The options that a class declares, after those of its parents."""
    found: dict[str, Option] = {}
    for cls in reversed(algorithm.__mro__):
        declared = vars(cls).get("options", {})
        _check_declared(cls, "options", declared, Option)
        found |= declared
    return found
