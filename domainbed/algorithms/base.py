"""The interface of an algorithm. It is DomainBed's, so that code written for it runs here."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from numpy.random import RandomState
from torch import nn

from domainbed.algorithms import optimizers
from domainbed.config.dimensions import (
    DatasetFacts,
    Dimension,
    Option,
    SearchSpace,
    SpaceOf,
    with_defaults,
)
from domainbed.config.run_facts import RUN_AT_HAND, RunFacts
from domainbed.core.minibatch import Nest, joined
from domainbed.core.registry import Registry
from domainbed.core.seeding import seed_hash
from domainbed.errors import UserError
from domainbed.metrics.labels import LabelType, label_type

# One pair of inputs (B, *input_shape) and labels (B,) per training domain, in domain order. In a
# run each is a `Minibatch`, which also has extras, positions and the domain's number. Inputs of a
# dataset whose samples are no single tensor are nests.
Minibatches = Sequence[tuple[Nest, torch.Tensor]]
# Inputs (B, *input_shape) of the test domains, in the task "domain_adaptation" only.
Unlabeled = Sequence[Nest] | None
# Scalars that show how an update went, by name.
Metrics = Mapping[str, torch.Tensor | float]
# From minibatches and unlabeled inputs to a loss, a scalar in the graph, and metrics.
Objective = Callable[[Minibatches, Unlabeled], tuple[torch.Tensor, Metrics]]

# The readings of a method where DomainBed's code, or its authors', differs from its paper.
DOMAINBED, PAPER, AUTHORS = "domainbed", "paper", "authors"
# Those of a method that DomainBed lacks. Protocols that choose `DOMAINBED` mean `AUTHORS` here.
OF_AUTHORS = (AUTHORS, PAPER)


def two_readings(
    default: str,
    doc: str,
    further: tuple[str, ...] = (),
    values: tuple[str, ...] = (DOMAINBED, PAPER),
) -> dict[str, Option]:
    """The option `fidelity`, for an algorithm's `options`; every run records which one it used.

    Args:
        default: one of the readings.
        doc: what DomainBed or the authors do differently, in a few words.
        further: more readings than the two.
        values: the two; `OF_AUTHORS` of a method that DomainBed lacks.
    """
    return {"fidelity": Option(default, doc, (*values, *further), always_recorded=True)}


@dataclass(frozen=True)
class Stage:
    """One training of a fresh model, for the run's number of steps at most.

    Attributes:
        data: which images of the training domains are trained on: their in-splits, or all. With
            "all", no domain has an out-split, and test domains are measured on all images too.
        replacement: whether minibatches are drawn with replacement, as the protocol says, or epoch
            by epoch, so that every image comes once before any comes again.
        whole: whether each minibatch is all of a domain's training images, not augmented.
        validation: metrics whose mean over the out-splits of the training domains is in every
            record; that of "loss" is called `val_loss`.
    """

    data: Literal["in-splits", "all"] = "in-splits"
    replacement: bool = True
    whole: bool = False
    validation: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.data == "all" and self.validation:
            raise ValueError("a stage that trains on all images has none left for validation")


class Draws:
    """The random numbers of an algorithm's updates: permutations, weights, noise.

    DomainBed takes them from the global sources of NumPy, PyTorch's CPU and the device, so that
    anything else that draws changes them. Here they follow from the seed that PyTorch had when
    the algorithm was built, on every device alike, and are saved and restored with its state.
    Building one draws nothing from the global sources, so the network's weights stay the same.
    """

    def __init__(self, seed: int | None = None) -> None:
        self._seed = seed_hash(torch.initial_seed(), "update") if seed is None else seed
        self._generator = torch.Generator().manual_seed(self._seed)
        self._random_state = RandomState(self._seed)

    def of_a_prediction(self) -> Draws:
        """A separate source, the same each time, so that a prediction changes no later update."""
        return Draws(seed_hash(self._seed, "prediction"))

    def permutation(self, size: int) -> torch.Tensor:
        """(size,) the integers below `size` in random order."""
        return torch.randperm(size, generator=self._generator)

    def uniform(self, *shape: int) -> torch.Tensor:
        """Numbers in [0, 1), float32."""
        return torch.rand(shape, generator=self._generator)

    def normal(self, *shape: int) -> torch.Tensor:
        """Numbers from N(0, 1), float32."""
        return torch.randn(shape, generator=self._generator)

    def integer(self, below: int) -> int:
        """An integer in [0, below)."""
        return int(self._random_state.randint(0, below))

    def beta(self, a: float, b: float) -> float:
        """A number from the Beta(a, b) distribution."""
        return float(self._random_state.beta(a, b))


class Algorithm(nn.Module):
    """A method of domain generalization: a network and a way to update it.

    A subclass makes its networks and optimizers in `build`. A class that was written for DomainBed
    has a constructor of its own with the same arguments, which works as well.

    Args:
        input_shape: shape of one input, without the batch.
        num_classes: C, the width of the outputs, which the label type decides.
        num_domains: E, the number of *training* domains.
        hparams: name to value, as drawn from the search space; in a run, `HParams` with its facts.

    Attributes:
        input_shape, num_classes, num_domains, hparams: the arguments.
        facts: how long the run is, how far it is, and what it is on.
        draws: the source of the random numbers of its updates.
        paper: authors, title, venue and arXiv number.
        search_space: a `SearchSpace` of the algorithm's own, or a function of `DatasetFacts` to
            one.
        options: variants beyond the published protocol, which a user may set as hyper-parameters.
        least_domains: training domains that its mathematics needs.
        least_samples: samples of each domain in a minibatch that its mathematics needs.
        least_in_all: samples of all domains together that it needs, as batch norm does that trains.
        needs_images: whether inputs must be images, and not features that a backbone computed from
            them.
        needs_tensor: whether it computes with the inputs themselves (mixes or perturbs them),
            which must then be one tensor of numbers: no tokens, and no nest of tensors.
        needs_features: whether natural images are too large for it, so that its inputs must be
            their features.
        needs_classes: whether labels must be the numbers of classes. One whose losses are all
            those of its `label_type` says False; a class that was written for DomainBed computes
            cross-entropies.
        needs_linear: whether its classifier must be one linear layer, whatever
            `nonlinear_classifier` says.
        needs_text: whether its classifier is made of the classes' names, by a backbone that reads
            text.
        uses_optimizer: whether it trains by optimizers, so that a user may set the
            `OPTIMIZER_OPTIONS`.
        memory_format: of the weights of convolutions. Code that reshapes them by `view` needs
            PyTorch's usual `torch.contiguous_format`.
        predicts_batches: whether a prediction depends on the other inputs of its batch, which must
            then be of one domain.
        balances_groups: whether minibatches have all groups of a domain equally often: those of
            label and attribute, or without an attribute the classes.
        whole_batch_inside: whether it looks into the featurizer, at all samples of a batch, so
            that processes of a run cannot share these out.
        counters: buffers that count updates, from 0. They stay on the CPU: to ask a GPU for a
            count would wait for all its work.
        optimizer: what `descend` steps; an algorithm with others overrides `descend`.
        update_count: updates so far, where `counters` has it.

    Raises:
        UserError: fewer training domains than `least_domains`.
    """

    paper: ClassVar[str] = ""
    search_space: ClassVar[Any] = {}
    options: ClassVar[Mapping[str, Option]] = {}

    least_domains: ClassVar[int] = 1
    least_samples: ClassVar[int] = 1
    least_in_all: ClassVar[int] = 1

    needs_images: ClassVar[bool] = False
    needs_tensor: ClassVar[bool] = False
    needs_features: ClassVar[bool] = False
    needs_classes: ClassVar[bool] = True
    needs_linear: ClassVar[bool] = False
    needs_text: ClassVar[bool] = False

    uses_optimizer: ClassVar[bool] = True
    memory_format: ClassVar[torch.memory_format] = torch.channels_last
    predicts_batches: ClassVar[bool] = False
    balances_groups: ClassVar[bool] = False
    whole_batch_inside: ClassVar[bool] = False
    counters: ClassVar[tuple[str, ...]] = ()

    optimizer: torch.optim.Optimizer
    update_count: torch.Tensor

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
        self.input_shape, self.hparams = input_shape, hparams
        self.num_classes, self.num_domains = num_classes, num_domains
        self.facts: RunFacts = getattr(hparams, "facts", RUN_AT_HAND.get() or RunFacts())
        self.draws = Draws()
        for name in self.counters:
            self.register_buffer(name, torch.tensor([0]))
        self.build()

    @classmethod
    def revision(cls, hparams: Mapping[str, Any]) -> int:
        """Of its updates with these hyper-parameters, from 1; a run's identity has it.

        A correction that changes numbers counts it up, so that runs from before do not count.
        """
        return 1

    def build(self) -> None:
        """Makes the networks and the optimizers, at the end of the constructor."""

    @property
    def label_type(self) -> LabelType:
        """What labels are, and the loss that is learned by: see `LabelType`."""
        return label_type(self.facts.labels)

    def option(self, name: str) -> Any:
        """The value of one of `options`: what the user set, or its default."""
        return with_defaults(declared_options(type(self)), self.hparams)[name]

    def new_optimizer(
        self, *parts: Any, role: str = "main", **settings: Any
    ) -> torch.optim.Optimizer:
        """A fresh optimizer, of the kind and with the schedule and the clipping that the user set.

        Args:
            parts: networks; or one iterable of parameters, or of PyTorch's parameter groups.
            role: what it is for, such as "discriminator": for a class that overrides this.
            settings: of the optimizer, in place of the hyper-parameters `lr` and `weight_decay`;
                `betas`, if it takes any; and `optimizer`, a name in place of the user's choice.
        """
        chosen = chosen_options(type(self), self.hparams)
        return optimizers.new_optimizer(parts, self.hparams, chosen, self.facts, settings)

    def updates_done(self) -> int:
        """The value of `update_count`."""
        return int(self.update_count.item())

    def require_samples(self, minibatches: Minibatches) -> None:
        """Refuses minibatches too small for the method's statistics.

        Raises:
            UserError: a domain has fewer than `least_samples` samples, or all have fewer than
                `least_in_all`.
        """
        sizes = domain_sizes(minibatches)
        in_domain, in_all = (min(sizes), self.least_samples), (sum(sizes), self.least_in_all)
        for where, (found, least) in (("per domain", in_domain), ("in all", in_all)):
            if found < least:
                raise UserError(
                    f"{type(self).__name__} needs at least {least} samples {where}, but gets "
                    f"{found}: raise the hyper-parameter 'batch_size'"
                )

    def objective(
        self, minibatches: Minibatches, unlabeled: Unlabeled = None
    ) -> tuple[torch.Tensor, Metrics]:
        """What an update descends on.

        Args:
            minibatches: one pair of inputs (B, *input_shape) and labels (B,) per training
                domain, in domain order.
            unlabeled: inputs of the test domains, in the task "domain_adaptation" only.

        Returns:
            the loss, a scalar in the graph, and the metrics to report beside it. A metric named
            "loss" is reported in its place.
        """
        raise NotImplementedError

    def update(self, minibatches: Minibatches, unlabeled: Unlabeled = None) -> Metrics:
        """One step of training: descends on the objective; arguments as there.

        Returns:
            its loss and other metrics, as numbers; on a GPU they may be scalar tensors, see
            `as_numbers`.
        """
        return self.update_on(self.objective, minibatches, unlabeled)

    def update_on(
        self, objective: Objective, minibatches: Minibatches, unlabeled: Unlabeled = None
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

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        kept = {name: own for name, own in self._buffers.items() if name in self.counters}
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self._buffers |= kept
        return self

    def training_stages(self) -> Sequence[Stage]:
        """What a run of this method trains on; stages after the first start with a fresh model."""
        return (Stage(),)

    def take_over(self, before: Any) -> None:
        """Called on the fresh model of a further stage, with the trained one of the stage before.

        Both are of the same class and have the same arguments.
        """

    def on_start(self) -> None:
        """Called before the first update of a stage, and not when a run resumes."""

    def on_step(self) -> None:
        """Called after each update; its number is in `facts.step`, the data in `facts.splits`."""

    def context(self) -> AbstractContextManager[Any]:
        """The context in which updates and their hooks are computed."""
        return nullcontext()

    def on_record(self, metrics: dict[str, float]) -> bool | None:
        """Called with each record's numbers, to which it may add; true ends the stage there."""

    def on_end(self) -> None:
        """Called after the last update of a stage."""

    def predict(self, x: torch.Tensor) -> torch.Tensor:
        """Logits: (B, *input_shape) to (B, C)."""
        raise NotImplementedError

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """As `predict`."""
        return self.predict(x)

    def clone(self) -> Any:
        """A copy with optimizers of its own."""
        return copy.deepcopy(self)

    def predictor(self) -> Callable[[torch.Tensor], torch.Tensor]:
        """A function that predicts the batches of one split, or of one domain, in turn.

        An algorithm that learns from the batches it predicts returns a function that remembers
        what it learned, and starts afresh with each call of this one.
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
    ways = ("objective", "update", "update_on")
    if all(getattr(entry, way) is getattr(Algorithm, way) for way in ways):
        raise ValueError(f"algorithm {name} has neither 'objective' nor 'update'")


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

    Examples:
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


def declared_space(algorithm: type, facts: DatasetFacts) -> dict[str, Dimension]:
    """The dimensions that a class declares, after those of its parents."""
    return _declared(algorithm, "search_space", Dimension, facts)


def declared_options(algorithm: type) -> dict[str, Option]:
    """The options that a class declares, after those of its parents."""
    return _declared(algorithm, "options", Option)


def chosen_options(algorithm: type, hparams: Mapping[str, Any]) -> dict[str, Any]:
    """The `OPTIMIZER_OPTIONS` that are set, but for names that the class gives its own meaning."""
    own = {**declared_options(algorithm), **declared_space(algorithm, DatasetFacts(""))}
    return {n: hparams[n] for n in hparams if n in optimizers.OPTIMIZER_OPTIONS and n not in own}


def _declared(algorithm: type, name: str, kind: Any, *facts: DatasetFacts) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for cls in reversed(algorithm.__mro__):
        declared = vars(cls).get(name, {})
        declared = declared(*facts) if callable(declared) else declared
        if not isinstance(declared, Mapping):
            raise UserError(
                f"{name} of {cls.__name__} is {declared!r}: expected names with dimensions"
            )
        for key, value in declared.items():
            if not isinstance(value, kind):
                known = "Option" if kind is Option else "Fixed, Choice, Uniform or LogUniform"
                raise UserError(f"{name} of {cls.__name__}: {key!r} is {value!r}, expected {known}")
        found |= declared
    return found


def concatenate(minibatches: Minibatches) -> tuple[Nest, torch.Tensor]:
    """All domains' inputs and labels in one tensor each (or one nest of inputs), in domain order.

    Inputs are joined as their dataset says, else by `domainbed.core.minibatch.joined`.
    """
    join = getattr(minibatches[0], "join", None) or joined
    return join([x for x, _ in minibatches]), torch.cat([y for _, y in minibatches])


def domain_sizes(minibatches: Minibatches) -> list[int]:
    """How many samples each domain's minibatch has."""
    return [len(y) for _, y in minibatches]


def domain_labels(sizes: Sequence[int], device: torch.device) -> torch.Tensor:
    """(Σ sizes,) the number of each sample's domain, where the samples come domain by domain."""
    return torch.cat([torch.full((size,), e, device=device) for e, size in enumerate(sizes)])


def step(
    optimizer: torch.optim.Optimizer, loss: torch.Tensor, of: Sequence[nn.Parameter] | None = None
) -> None:
    """One step of `optimizer` down the gradient of `loss`, which is computed of all or of some."""
    optimizer.zero_grad()
    loss.backward(inputs=of)
    optimizer.step()


def gradients_of(
    risk: torch.Tensor, parameters: Sequence[torch.Tensor], create_graph: bool = False
) -> tuple[torch.Tensor, ...]:
    """The gradient of a scalar for each parameter: 0 for one that it does not depend on.

    With `create_graph` the gradients can be differentiated.
    """
    return torch.autograd.grad(
        risk, parameters, create_graph=create_graph, allow_unused=True, materialize_grads=True
    )


def trained_parameters(network: nn.Module) -> list[nn.Parameter]:
    """Those that are not frozen."""
    return [parameter for parameter in network.parameters() if parameter.requires_grad]


def predictor_of(algorithm: Any) -> Callable[[torch.Tensor], torch.Tensor]:
    """See `Algorithm.predictor`; a module that only has `predict` predicts with that."""
    predictor = getattr(algorithm, "predictor", None)
    return predictor() if predictor else algorithm.predict


def named_predictor_of(algorithm: Any) -> Callable[[torch.Tensor], Mapping[str, torch.Tensor]]:
    """Its predictors by name; the empty name stands for `predictor_of`."""
    predict = predictor_of(algorithm)
    return getattr(algorithm, "predict_named", None) or (lambda x: {"": predict(x)})


_AT_HAND = ("cpu",)  # the devices whose numbers can be read without waiting for them


def as_numbers(metrics: Metrics) -> dict[str, torch.Tensor | float]:
    """The values as numbers; those on a GPU stay there, detached, until a record."""
    return {
        name: _as_number(value) if isinstance(value, torch.Tensor) else float(value)
        for name, value in metrics.items()
    }


def _as_number(value: torch.Tensor) -> torch.Tensor | float:
    return value.item() if value.device.type in _AT_HAND else value.detach()
