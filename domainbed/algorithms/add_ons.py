"""What can be added to another algorithm, by a name such as `SAM+CORAL`."""

from functools import cache
from operator import attrgetter
from typing import Any, ClassVar

from torch import nn

from domainbed.algorithms.base import (
    Algorithm,
    declared_options,
    declared_space,
)
from domainbed.algorithms.erm import PooledAlgorithm
from domainbed.config.dimensions import DatasetFacts, Dimension, SearchSpace
from domainbed.errors import UserError


class AddOn(Algorithm):
    """Another algorithm, whose objective a subclass changes.

    It has the other's networks, optimizers, kinds of updates, stages and predictions. Each keeps
    its own hyper-parameters.

    Attributes:
        base: the other algorithm.
        own_space: the dimensions that come after the other algorithm's.
    """

    base_class: ClassVar[type[Algorithm]]
    own_space: ClassVar[SearchSpace] = {}

    base: Any
    featurizer: nn.Module
    classifier: nn.Module

    def build(self) -> None:
        self.base = self.base_class(
            self.input_shape, self.num_classes, self.num_domains, self.hparams
        )

    @classmethod
    def obstacle(cls, base: type[Algorithm]) -> str | None:
        """Why it cannot be added to `base`, for the end of a sentence; None if it can."""
        if base.update is not Algorithm.update:
            return "whose own 'update' would leave it out: it needs 'objective'"
        if getattr(base, "passes_twice", False):
            return "whose two passes must draw the same: it goes in front of others"
        own = base.objective is not Algorithm.objective
        if not own or getattr(base, "objective_of", None) is PooledAlgorithm.objective_of:
            return "it has no 'objective'"
        return None

    def take_over(self, before: Any) -> None:
        self.base.take_over(before.base)


for _name in (
    *("optimizer", "featurizer", "classifier", "objective", "update_on", "predict", "predictor"),
    *("predicting_parts", "training_stages", "on_start", "on_record", "on_end"),
):
    setattr(AddOn, _name, property(attrgetter(f"base.{_name}")))


@cache
def added(
    prefix: str, add_on: type[AddOn], base: type[Algorithm], base_name: str
) -> type[Algorithm]:
    """The class of `<prefix>+<base_name>`.

    Raises:
        UserError: `add_on` cannot be added to that algorithm.
    """
    name, reason = f"{prefix}+{base_name}", add_on.obstacle(base)
    if reason is not None:
        raise UserError(f"no algorithm {name!r}: {prefix} cannot be added to {base_name}, {reason}")

    def search_space(facts: DatasetFacts) -> dict[str, Dimension]:
        return {**declared_space(base, facts), **add_on.own_space}

    either = (
        *("needs_images", "needs_tensor", "needs_classes", "needs_linear"),
        *("predicts_batches", "whole_batch_inside"),
    )
    attributes: dict[str, Any] = {
        "base_class": base,
        "least_domains": max(base.least_domains, add_on.least_domains),
        "least_samples": max(base.least_samples, add_on.least_samples),
        **{need: getattr(base, need) or getattr(add_on, need) for need in either},
        "paper": f"{base.paper}; with {add_on.paper}",
        "search_space": staticmethod(search_space),
        "options": {**add_on.options, **declared_options(base)},
        "revision": base.revision,
        "__doc__": f"{base_name} with {prefix} added, see `{add_on.__name__}`.",
        "__module__": base.__module__,
    }
    return type(name, (add_on,), attributes)
