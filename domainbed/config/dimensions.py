"""The kinds of search dimension, and the facts of a dataset that a search space may depend on."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from numpy.random import RandomState


def _is_number(value: Any, integer: bool) -> bool:
    """Whether `value` is finite, and a whole number if need be; True and False are none."""
    kinds = int if integer else (int, float)
    return isinstance(value, kinds) and not isinstance(value, bool) and math.isfinite(value)


def _is_like(value: Any, examples: Sequence[Any]) -> bool:
    """Whether `value` is of the examples' kind: a truth value, a whole number, a number, …"""
    if all(_is_number(example, integer=False) for example in examples):
        return _is_number(value, all(isinstance(example, int) for example in examples))
    return any(type(value) is type(example) for example in examples)


@dataclass(frozen=True, kw_only=True)
class _Bounded:
    """Bounds of what a user may set, if a number: from `least` to `most`, `above`, `below`."""

    least: float = -math.inf
    most: float = math.inf
    above: float = -math.inf
    below: float = math.inf

    def _bounds(self) -> str:
        """The bounds in words, such as " from 0 on, below 1"; nothing where there are none."""
        is_open_below, is_open_above = self.above >= self.least, self.below <= self.most
        low = f" above {self.above:g}" if is_open_below else f" from {self.least:g} on"
        high = f", below {self.below:g}" if is_open_above else f", up to {self.most:g}"
        has_low = math.isfinite(max(self.above, self.least))
        return low * has_low + high * math.isfinite(min(self.below, self.most))

    def _within(self, value: Any) -> bool:
        if not _is_number(value, integer=False):
            return True
        return self.least <= value <= self.most and self.above < value < self.below


def _kind(examples: Sequence[Any]) -> str:
    """What `_is_like` takes, in words."""
    if all(_is_number(example, integer=False) for example in examples):
        whole = all(isinstance(example, int) for example in examples)
        return "a whole number" if whole else "a number"
    words = {bool: "true or false", str: "a text", list: "a list", type(None): "null"}
    kinds = dict.fromkeys(map(type, examples))
    return " or ".join(words.get(kind, f"a {kind.__name__}") for kind in kinds)


def _require(holds: bool, dimension: Any, expected: str) -> None:
    """Raises where an author's dimension cannot be."""
    if not holds:
        raise ValueError(f"{dimension}: expected {expected}")


@dataclass(frozen=True)
class Fixed(_Bounded):
    """A hyper-parameter that is not searched: every draw gives the default."""

    default: Any
    doc: str = ""

    def draw(self, random_state: RandomState) -> Any:
        return self.default

    def accepts(self, value: Any) -> bool:
        """Whether a user may set it to `value`."""
        return _is_like(value, [self.default]) and self._within(value)

    def expected(self) -> str:
        """What `accepts` takes, in words."""
        return _kind([self.default]) + self._bounds()

    def describe(self) -> str:
        return "fixed"

    def drawn(self) -> str:
        """How it is drawn, for a sentence; nothing where it is not."""
        return ""


@dataclass(frozen=True)
class Option(_Bounded):
    """A variant beyond the published protocol: never drawn, recorded only where a user sets it.

    One of `values`, where there are any; else anything of the default's kind. With `file` it may
    name a file, which then counts by its content. With `always_recorded` the default, too, is
    among the hyper-parameters of every run.
    """

    default: Any
    doc: str = ""
    values: Sequence[Any] = ()
    file: bool = False
    always_recorded: bool = False

    def __post_init__(self) -> None:
        _require(self.accepts(self.default), self, "a default that may be set")

    def accepts(self, value: Any) -> bool:
        """Whether a user may set it to `value`."""
        if self.values:
            return any(value == each and type(value) is type(each) for each in self.values)
        return _is_like(value, [self.default]) and self._within(value)

    def expected(self) -> str:
        """What `accepts` takes, in words."""
        if self.values:
            return f"one of {', '.join(map(str, self.values))}"
        return _kind([self.default]) + self._bounds()

    def describe(self) -> str:
        return "not drawn" + (f"; one of {', '.join(self.values)}" if self.values else "")

    def drawn(self) -> str:
        """As of the others: it is not."""
        return ""


def with_defaults(options: Mapping[str, Option], hparams: Mapping[str, Any]) -> dict[str, Any]:
    """The hyper-parameters, and the declared defaults of those options that they leave out."""
    return {**{name: option.default for name, option in options.items()}, **hparams}


@dataclass(frozen=True)
class Choice(_Bounded):
    """One of `values`, each equally likely.

    A user may set any number of their kind, but of words only those, and `further` ones.
    """

    default: Any
    values: Sequence[Any]
    doc: str = ""
    further: Sequence[str] = ()

    def __post_init__(self) -> None:
        _require(len(self.values) > 0, self, "values to choose from")
        _require(self.accepts(self.default), self, "a default like the values")

    def draw(self, random_state: RandomState) -> Any:
        return random_state.choice(list(self.values)).item()

    def accepts(self, value: Any) -> bool:
        """Whether a user may set it to `value`."""
        if isinstance(value, str):
            return value in (*self.values, *self.further)
        return _is_like(value, list(self.values)) and self._within(value)

    def expected(self) -> str:
        """What `accepts` takes, in words."""
        others = [value for value in self.values if not isinstance(value, str)]
        texts = [value for value in self.values if isinstance(value, str)] + [*self.further]
        kinds = [_kind(others) + self._bounds()] if others else []
        return " or ".join(kinds + ([f"one of {', '.join(texts)}"] if texts else []))

    def describe(self) -> str:
        also = f"; also {', '.join(self.further)}" if self.further else ""
        return "choice of " + ", ".join(map(str, self.values)) + also

    def drawn(self) -> str:
        """How it is drawn, for a sentence."""
        return "drawn from " + ", ".join(map(str, self.values))


@dataclass(frozen=True)
class Uniform(_Bounded):
    """Uniform in [low, high); `integer` truncates."""

    default: float
    low: float
    high: float
    doc: str = ""
    integer: bool = False

    def __post_init__(self) -> None:
        _check_range(self, self.low, self.high)
        _require(self.accepts(self.default), self, "a default that may be set")

    def draw(self, random_state: RandomState) -> float:
        value = random_state.uniform(self.low, self.high)
        return int(value) if self.integer else value

    def accepts(self, value: Any) -> bool:
        """Whether a user may set it to `value`."""
        return _is_number(value, self.integer) and self._within(value)

    def expected(self) -> str:
        """What `accepts` takes, in words."""
        return ("a whole number" if self.integer else "a number") + self._bounds()

    def describe(self) -> str:
        kind = "integer, uniform" if self.integer else "uniform"
        return f"{kind} in [{self.low:g}, {self.high:g})"

    def drawn(self) -> str:
        """How it is drawn, for a sentence."""
        return f"drawn uniformly from {self.low:g} to {self.high:g}"


@dataclass(frozen=True)
class LogUniform(_Bounded):
    """`base` to a power that is uniform in [low, high); `integer` truncates."""

    default: float
    low: float
    high: float
    doc: str = ""
    base: int = 10
    integer: bool = False
    least: float = field(default=0.0, kw_only=True)

    def __post_init__(self) -> None:
        _check_range(self, self.low, self.high)
        _require(self.base > 0, self, "a base above 0")
        _require(self.accepts(self.default), self, "a default that may be set")

    def draw(self, random_state: RandomState) -> float:
        value = self.base ** random_state.uniform(self.low, self.high)
        return int(value) if self.integer else value

    def accepts(self, value: Any) -> bool:
        """Whether a user may set it to `value`."""
        return _is_number(value, self.integer) and self._within(value)

    def expected(self) -> str:
        """What `accepts` takes, in words."""
        return ("a whole number" if self.integer else "a number") + self._bounds()

    def describe(self) -> str:
        kind = "integer, log-uniform" if self.integer else "log-uniform"
        return f"{kind} in [{self.base}^{self.low:g}, {self.base}^{self.high:g})"

    def drawn(self) -> str:
        """How it is drawn, for a sentence."""
        ends = f"{self.base}^{self.low:g} to {self.base}^{self.high:g}"
        return f"drawn log-uniformly from {ends}"


def _check_range(dimension: Any, low: Any, high: Any) -> None:
    are_numbers = _is_number(low, integer=False) and _is_number(high, integer=False)
    _require(are_numbers and low <= high, dimension, "numbers, low and not below it high")


Dimension = Fixed | Choice | Uniform | LogUniform
SearchSpace = Mapping[str, Dimension]


def refusal(value: Any, of: Dimension | Option) -> str:
    """Why a user may not set a hyper-parameter to `value`, for the end of an error's sentence."""
    quotes = ", without quotes" if _is_quoted(value, of) else ""
    told = [f"default {of.default!r}", of.drawn()]
    return f"expected {of.expected()}{quotes} ({'; '.join(filter(None, told))})"


def _is_quoted(value: Any, of: Dimension | Option) -> bool:
    """Whether it is a text that without its quotes could be set."""
    with suppress(ValueError, RecursionError, OverflowError):
        return isinstance(value, str) and of.accepts(json.loads(value))
    return False


@dataclass(frozen=True)
class DatasetFacts:
    """What a search space may depend on.

    Attributes:
        name: the dataset's, without paths.
        small_images: whether it is one of MNIST's kind, which the protocol treats apart.
        features: whether inputs are features of its images, which a backbone computed before.
    """

    name: str
    small_images: bool = False
    features: bool = False

    @property
    def from_scratch(self) -> bool:
        """Whether all that is trained begins with random weights."""
        return self.small_images or self.features


SpaceOf = Callable[[DatasetFacts], SearchSpace]
"""A search space that depends on the dataset."""


def learning_rate(facts: DatasetFacts, doc: str = "step size of Adam") -> Dimension:
    """The step size of an Adam, drawn under its own name wherever it is used."""
    if facts.from_scratch:
        return LogUniform(1e-3, -4.5, -2.5, doc, above=0)
    return LogUniform(5e-5, -5, -3.5, doc, above=0)


def weight_decay(facts: DatasetFacts) -> Dimension:
    """The L2 coefficient of an Adam that trains a featurizer; small images train without."""
    if facts.small_images:
        return Fixed(0.0, "L2 coefficient of Adam", least=0)
    return LogUniform(0.0, -6, -2, "L2 coefficient of Adam")
