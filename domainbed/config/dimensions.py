"""The kinds of search dimension, and the facts of a dataset that a search space may depend on."""

import json
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import KW_ONLY, dataclass
from typing import Any

from numpy.random import RandomState


def is_number(value: Any, integer: bool = False) -> bool:
    """Whether `value` is finite, and a whole number if need be; True and False are none."""
    kinds = int if integer else (int, float)
    return isinstance(value, kinds) and not isinstance(value, bool) and math.isfinite(value)


def _require(holds: bool, dimension: Any, expected: str) -> None:
    """Raises where an author's dimension cannot be."""
    if not holds:
        raise ValueError(f"{dimension}: expected {expected}")


@dataclass(frozen=True)
class _Setting:
    """What a user may set: a value of the default's kind, and if it is a number, within bounds.

    The bounds are `least` and `most`, which may be reached, and `above` and `below`, which may not.
    """

    default: Any
    _: KW_ONLY
    least: float = -math.inf
    most: float = math.inf
    above: float = -math.inf
    below: float = math.inf

    def __post_init__(self) -> None:
        _require(self.accepts(self.default), self, "a default that may be set")

    def _examples(self) -> Sequence[Any]:
        """Values of all kinds that may be set."""
        return [self.default]

    def _texts(self) -> Collection[str]:
        """The only texts that may be set; none of them where any text may be."""
        return ()

    def accepts(self, value: Any) -> bool:
        """Whether a user may set it to `value`."""
        examples, texts = self._examples(), self._texts()
        if texts and isinstance(value, str):
            return value in texts
        if is_number(value) and not (
            self.least <= value <= self.most and self.above < value < self.below
        ):
            return False
        if all(is_number(example) for example in examples):
            return is_number(value, all(isinstance(example, int) for example in examples))
        return any(type(value) is type(example) for example in examples)

    def expected(self) -> str:
        """What `accepts` takes, in words."""
        texts = self._texts()
        others = [example for example in self._examples() if not (texts and example in texts)]
        kinds = [_kind(others) + self._bounds()] if others else []
        return " or ".join(kinds + ([f"one of {', '.join(texts)}"] if texts else []))

    def _bounds(self) -> str:
        """The bounds in words, such as " from 0 on, below 1"; empty where there are none."""
        has_low = math.isfinite(max(self.above, self.least))
        has_high = math.isfinite(min(self.below, self.most))
        low = f" above {self.above:g}" if self.above >= self.least else f" from {self.least:g} on"
        high = f", below {self.below:g}" if self.below <= self.most else f", up to {self.most:g}"
        return low * has_low + high * has_high


def _kind(examples: Sequence[Any]) -> str:
    """The kind of value that the examples are of, in words."""
    if all(is_number(example) for example in examples):
        whole = all(isinstance(example, int) for example in examples)
        return "a whole number" if whole else "a number"
    words = {bool: "true or false", str: "a text", list: "a list", type(None): "null"}
    kinds = dict.fromkeys(map(type, examples))
    return " or ".join(words.get(kind, f"a {kind.__name__}") for kind in kinds)


@dataclass(frozen=True)
class Fixed(_Setting):
    """A hyper-parameter that is not searched: every draw gives the default."""

    doc: str = ""

    def draw(self, random_state: RandomState) -> Any:
        return self.default

    def describe(self) -> str:
        return "fixed"


@dataclass(frozen=True)
class Option(_Setting):
    """A variant beyond the published protocol: never drawn, recorded only where a user sets it.

    One of `values`, where there are any; else anything of the default's kind. With `file` it may
    name a file, which then counts by its content. With `always_recorded` the default, too, is
    among the hyper-parameters of every run.
    """

    doc: str = ""
    values: Collection[str] = ()
    file: bool = False
    always_recorded: bool = False

    def _texts(self) -> Collection[str]:
        return self.values

    def describe(self) -> str:
        return "not drawn" + (f"; one of {', '.join(self.values)}" if self.values else "")


def with_defaults(options: Mapping[str, Option], hparams: Mapping[str, Any]) -> dict[str, Any]:
    """The hyper-parameters, and the declared defaults of those options that they leave out."""
    return {**{name: option.default for name, option in options.items()}, **hparams}


@dataclass(frozen=True)
class Choice(_Setting):
    """One of `values`, each equally likely.

    A user may set any number of their kind, but of texts only those, and `further` ones.
    """

    values: Sequence[Any]
    doc: str = ""
    further: Sequence[str] = ()

    def __post_init__(self) -> None:
        _require(len(self.values) > 0, self, "values to choose from")
        super().__post_init__()

    def _examples(self) -> Sequence[Any]:
        return self.values

    def _texts(self) -> Sequence[str]:
        return [value for value in (*self.values, *self.further) if isinstance(value, str)]

    def draw(self, random_state: RandomState) -> Any:
        return random_state.choice(list(self.values)).item()

    def describe(self) -> str:
        also = f"; also {', '.join(self.further)}" if self.further else ""
        return "choice of " + ", ".join(map(str, self.values)) + also


@dataclass(frozen=True)
class _Range(_Setting):
    low: float
    high: float
    doc: str = ""
    _: KW_ONLY
    integer: bool = False

    def __post_init__(self) -> None:
        are_numbers = is_number(self.low) and is_number(self.high)
        _require(are_numbers and self.low <= self.high, self, "numbers, low and not below it high")
        super().__post_init__()

    def _examples(self) -> Sequence[Any]:
        return [1 if self.integer else 0.5]


@dataclass(frozen=True)
class Uniform(_Range):
    """Uniform in [low, high); `integer` truncates."""

    def draw(self, random_state: RandomState) -> float:
        value = random_state.uniform(self.low, self.high)
        return int(value) if self.integer else value

    def describe(self) -> str:
        return f"{'integer, ' * self.integer}uniform in [{self.low:g}, {self.high:g})"


@dataclass(frozen=True)
class LogUniform(_Range):
    """`base` to a power that is uniform in [low, high); `integer` truncates."""

    _: KW_ONLY
    base: int = 10
    least: float = 0.0

    def __post_init__(self) -> None:
        _require(self.base > 0, self, "a base above 0")
        super().__post_init__()

    def draw(self, random_state: RandomState) -> float:
        value = self.base ** random_state.uniform(self.low, self.high)
        return int(value) if self.integer else value

    def describe(self) -> str:
        kind = "integer, log-uniform" if self.integer else "log-uniform"
        return f"{kind} in [{self.base}^{self.low:g}, {self.base}^{self.high:g})"


@dataclass(frozen=True)
class Foreign(_Setting):
    """A hyper-parameter of a fork's registry, which draws it.

    Attributes:
        value_of: from the seed of a draw to the value.
    """

    value_of: Callable[[int], Any]
    doc: str = ""

    def accepts(self, value: Any) -> bool:
        return self.default is None or super().accepts(value)

    def draw(self, random_state: RandomState) -> Any:
        return self.value_of(int(random_state.randint(2**31)))

    def describe(self) -> str:
        return "as the fork's registry draws it"


Dimension = Fixed | Choice | Uniform | LogUniform | Foreign
SearchSpace = Mapping[str, Dimension]


def refusal(value: Any, of: Dimension | Option) -> str:
    """Why a user may not set a hyper-parameter to `value`, for the end of an error's sentence."""
    quotes, drawn = "", "" if isinstance(of, (Fixed, Option)) else f"; {of.describe()}"
    with suppress(ValueError, RecursionError, OverflowError):
        if isinstance(value, str) and of.accepts(json.loads(value)):
            quotes = ", without quotes"
    return f"expected {of.expected()}{quotes} (default {of.default!r}{drawn})"


@dataclass(frozen=True)
class DatasetFacts:
    """What a search space may depend on.

    Attributes:
        name: the dataset's, without paths.
        small_images: whether its search space is the "small" one, which the protocol has for
            images of MNIST's kind.
        features: whether inputs are features of its images, which a backbone computed before.
        network: the name of the dataset's own network; empty where inputs' shape decides.
    """

    name: str
    small_images: bool = False
    features: bool = False
    network: str = ""

    @property
    def from_scratch(self) -> bool:
        """Whether everything that is trained starts from random weights."""
        return self.small_images or self.features


# A search space that depends on the dataset.
SpaceOf = Callable[[DatasetFacts], SearchSpace]


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
