"""What an algorithm may know of the run that it is part of."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, ClassVar

from domainbed.errors import UserError


@dataclass(frozen=True)
class RunFacts:
    """How long a run is, how far it is, and what it is on.

    Nothing changes but the step, which the trainer sets before each update. A class that is made
    by hand, outside a run, has the defaults, and may be given others.

    Attributes:
        steps: updates of the run, or of each stage of a run with several.
        class_names: in the order of the outputs.
        domain_names: of the training domains, in the order of the minibatches.
        test_domains: the names of the test domains.
        test_envs: their numbers.
        group_sizes: training samples of each group, in all training domains together, where the
            data has an attribute; else of each training domain.
        group_names: of the groups of label and attribute, where the data has an attribute. Group
            `y * len(attribute_names) + attribute` has the label y.
        attribute_names: of the values of the attribute, where the data has one.
        class_sizes: training samples of each class; empty where that is not known beforehand.
        labels: the name of the label type.
        dataset: its name, without paths.
        data_options: names and values of the dataset's options.
        step: of the current update, from 0; of predictions, that of the last update before.
        device: that computes the run.
        splits: one `TrainingSplit` per training domain, a dataset of the samples that it trains
            on; none outside a run.
    """

    steps: int = 5001
    class_names: tuple[str, ...] = ()
    domain_names: tuple[str, ...] = ()
    test_domains: tuple[str, ...] = ()
    test_envs: tuple[int, ...] = ()
    group_sizes: tuple[int, ...] = ()
    group_names: tuple[str, ...] = ()
    attribute_names: tuple[str, ...] = ()
    class_sizes: tuple[int, ...] = ()
    labels: str = "classes"
    dataset: str = ""
    data_options: tuple[tuple[str, Any], ...] = ()
    step: int = 0
    device: ClassVar[str] = "cpu"
    splits: ClassVar[Sequence[Any]] = ()

    @property
    def progress(self) -> float:
        """The share of the run's updates that are done, in [0, 1]."""
        return self.step / self.steps

    def begin(self, step: int) -> None:
        """Sets the step, for everything that holds these facts."""
        object.__setattr__(self, "step", step)

    def place(self, device: str, splits: Sequence[Any] = ()) -> None:
        """Sets device and splits, which are no facts that are kept with a model."""
        vars(self).update(device=device, splits=splits)

    def __deepcopy__(self, memo: dict[int, Any]) -> RunFacts:
        """Itself: a copy of a network is part of the same run."""
        return self


RUN_AT_HAND: ContextVar[RunFacts | None] = ContextVar("RUN_AT_HAND", default=None)


@contextmanager
def made_for(facts: RunFacts) -> Iterator[None]:
    """Algorithms that are made here have these facts.

    Also those whose constructor hands its parent a plain dict in place of its hyper-parameters.
    """
    before = RUN_AT_HAND.set(facts)
    try:
        yield
    finally:
        RUN_AT_HAND.reset(before)


class HParams(dict[str, Any]):
    """Hyper-parameters with the facts of their run.

    It equals a plain dict, and its copies and pickles are plain dicts.

    Attributes:
        facts: of the run.
    """

    def __init__(self, hparams: Mapping[str, Any], facts: RunFacts) -> None:
        super().__init__(hparams)
        self.facts = facts

    def __reduce__(self) -> tuple[Any, ...]:
        return dict, (dict(self),)


class NoValue(UserError, KeyError, AttributeError):
    """A hyper-parameter that a fork's class reads, and that has no value."""

    __str__ = Exception.__str__  # a KeyError shows its message in quotes


class LentValue(UserWarning):
    """A fork's registry lacks a value for an algorithm; another place in the fork has it."""


class Handed(HParams):
    """Hyper-parameters that are also attributes.

    Args:
        hparams, facts: as usual.
        elsewhere: returns values of hyper-parameters that are not there, each with the place that
            it is from; without a place where no one need be told.
    """

    def __init__(
        self,
        hparams: Mapping[str, Any],
        facts: RunFacts,
        elsewhere: Callable[[], Mapping[str, tuple[Any, str]]] = dict,
    ) -> None:
        super().__init__(hparams, facts)
        self._elsewhere = elsewhere

    def __missing__(self, name: str) -> Any:
        lent = self._elsewhere()
        if name not in lent:
            raise NoValue(
                f"hyper-parameter {name!r} has no value: the fork's registry has none for this "
                "algorithm, so declare it in 'search_space'"
            )
        self[name], place = lent[name]
        if place:
            said = f"hyper-parameter {name!r} is {self[name]!r}, {place}"
            warnings.warn(said, LentValue, stacklevel=2)
        return self[name]

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return self[name]

    def __reduce__(self) -> tuple[Any, ...]:
        return Handed, (dict(self), self.facts, self._elsewhere)
