"""Hyper-parameters: the kinds of search dimension, their defaults and their random draws.

An algorithm declares its own dimensions beside its class, in `search_space`; what all runs
share stands here. Defaults and draws are DomainBed's: each name is drawn alone, from a source
seeded by that name, so a draw never depends on which other hyper-parameters there are.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from numpy.random import RandomState

from domainbed.seeding import hparam_random_state


def _is_number(value: Any, integer: bool) -> bool:
    """Whether `value` is finite, and a whole number if need be; True and False are none."""
    kinds = int if integer else (int, float)
    return isinstance(value, kinds) and not isinstance(value, bool) and math.isfinite(value)


def _is_like(value: Any, examples: Sequence[Any]) -> bool:
    """Whether `value` is of the examples' kind: a truth value, a whole number, a number, …"""
    if all(_is_number(example, integer=False) for example in examples):
        return _is_number(value, all(isinstance(example, int) for example in examples))
    return any(type(value) is type(example) for example in examples)


@dataclass(frozen=True)
class Fixed:
    """A hyper-parameter that is not searched: every draw gives the default."""

    default: Any
    doc: str = ""

    def draw(self, random_state: RandomState) -> Any:
        return self.default

    def accepts(self, value: Any) -> bool:
        """Whether a user may set it to `value`."""
        return _is_like(value, [self.default])

    def describe(self) -> str:
        return "fixed"


@dataclass(frozen=True)
class Option:
    """A variant beyond the published protocol: never drawn, recorded only where a user sets it.

    One of `values`, where there are any; else anything of the default's kind.
    """

    default: Any
    doc: str = ""
    values: Sequence[Any] = ()

    def accepts(self, value: Any) -> bool:
        """Whether a user may set it to `value`."""
        if self.values:
            return any(value == each and type(value) is type(each) for each in self.values)
        return _is_like(value, [self.default])

    def describe(self) -> str:
        return "not drawn" + (f"; one of {', '.join(self.values)}" if self.values else "")


@dataclass(frozen=True)
class Choice:
    """One of `values`, each equally likely."""

    default: Any
    values: Sequence[Any]
    doc: str = ""

    def draw(self, random_state: RandomState) -> Any:
        return random_state.choice(list(self.values)).item()

    def accepts(self, value: Any) -> bool:
        """Whether a user may set it to `value`: any of the kind, not only those drawn."""
        return _is_like(value, list(self.values))

    def describe(self) -> str:
        return "choice of " + ", ".join(map(str, self.values))


@dataclass(frozen=True)
class Uniform:
    """Uniform in [low, high); `integer` truncates. A user may set values in [least, below)."""

    default: float
    low: float
    high: float
    doc: str = ""
    integer: bool = False
    least: float = -math.inf
    below: float = math.inf

    def draw(self, random_state: RandomState) -> float:
        value = random_state.uniform(self.low, self.high)
        return int(value) if self.integer else value

    def accepts(self, value: Any) -> bool:
        """Whether a user may set it to `value`."""
        return _is_number(value, self.integer) and self.least <= value < self.below

    def describe(self) -> str:
        kind = "integer, uniform" if self.integer else "uniform"
        return f"{kind} in [{self.low:g}, {self.high:g})"


@dataclass(frozen=True)
class LogUniform:
    """`base` to a power that is uniform in [low, high); `integer` truncates.

    A user may set values from `least` on.
    """

    default: float
    low: float
    high: float
    doc: str = ""
    base: int = 10
    integer: bool = False
    least: float = 0.0

    def draw(self, random_state: RandomState) -> float:
        value = self.base ** random_state.uniform(self.low, self.high)
        return int(value) if self.integer else value

    def accepts(self, value: Any) -> bool:
        """Whether a user may set it to `value`."""
        return _is_number(value, self.integer) and value >= self.least

    def describe(self) -> str:
        kind = "integer, log-uniform" if self.integer else "log-uniform"
        return f"{kind} in [{self.base}^{self.low:g}, {self.base}^{self.high:g})"


Dimension = Fixed | Choice | Uniform | LogUniform
SearchSpace = Mapping[str, Dimension]

NETWORK_OPTIONS: dict[str, Option] = {
    "weights": Option("imagenet", "pretrained: imagenet, none, or the path of a state dict"),
    "backbone": Option("", "a torchvision model, or timm:NAME; empty: the protocol's ResNet"),
    "freeze_bn": Option(True, "keep a backbone's batch norm layers in eval mode"),
    "featurizer": Option("", "a registered network; empty: by the shape of the input"),
    "mlp_width": Option(256, "width of a featurizer of vectors"),
    "mlp_depth": Option(3, "linear layers of a featurizer of vectors"),
    "mlp_dropout": Option(0.0, "dropout in a featurizer of vectors"),
}
"""What networks read where it is given, whatever the algorithm."""

DATA_OPTIONS: dict[str, Option] = {
    "data_path": Option("exact", "how images are read; fast: packed once", ("exact", "fast")),
    "packed_size": Option(256, "height and width of packed images"),
    "packed_format": Option("raw", "of packed images; jpeg: less of the disk", ("raw", "jpeg")),
    "corrupt_images": Option("error", "images that cannot be read", ("error", "skip")),
}
"""How image files are read, whatever the algorithm."""


def learning_rate(small_images: bool) -> Dimension:
    """The step size of an Adam, drawn under its own name wherever it is used."""
    if small_images:
        return LogUniform(1e-3, -4.5, -2.5, "step size of Adam")
    return LogUniform(5e-5, -5, -3.5, "step size of Adam")


def weight_decay(small_images: bool) -> Dimension:
    """The L2 coefficient of an Adam that trains a featurizer; small images train without."""
    if small_images:
        return Fixed(0.0, "L2 coefficient of Adam")
    return LogUniform(0.0, -6, -2, "L2 coefficient of Adam")


def _batch_size(dataset: str, small_images: bool) -> Dimension:
    doc = "images per training domain and step"
    if small_images:
        return LogUniform(64, 3, 9, doc, base=2, integer=True, least=1)
    high = 5 if dataset == "DomainNet" else 5.5
    return LogUniform(32, 3, high, doc, base=2, integer=True, least=1)


def shared_space(dataset: str, small_images: bool) -> dict[str, Dimension]:
    """The dimensions that every algorithm has on `dataset`."""
    return {
        "data_augmentation": Fixed(True, "random crop, flip, colour jitter and greyscale"),
        "resnet18": Fixed(False, "ResNet-18 instead of ResNet-50"),
        "resnet_dropout": Choice(0.0, (0.0, 0.1, 0.5), "dropout on the backbone's features"),
        "class_balanced": Fixed(False, "draw all classes equally often"),
        "nonlinear_classifier": Fixed(False, "three linear layers with ReLU, instead of one"),
        "lr": learning_rate(small_images),
        "weight_decay": weight_decay(small_images),
        "batch_size": _batch_size(dataset, small_images),
    }


def search_space(algorithm: str, dataset: str) -> dict[str, Dimension]:
    """All dimensions of `algorithm` on `dataset`: the shared ones, its parents' and its own.

    A dataset that is not registered (a folder, say) counts as one of natural images.

    Raises:
        UserError: no such algorithm.
    """
    from domainbed.algorithms import get_algorithm_class
    from domainbed.datasets import DATASETS

    small_images = bool(getattr(DATASETS.get(dataset), "small_images", False))
    space = shared_space(dataset, small_images)
    for cls in reversed(get_algorithm_class(algorithm).__mro__):  # its parents' spaces as well
        own = vars(cls).get("search_space", {})
        own = getattr(own, "__func__", own)
        space |= own(small_images) if callable(own) else own
    return space


def options(algorithm: str) -> dict[str, Option]:
    """What may be set besides the search space of `algorithm`: shared, parents' and its own.

    Raises:
        UserError: no such algorithm.
    """
    from domainbed.algorithms import get_algorithm_class

    found = {**NETWORK_OPTIONS, **DATA_OPTIONS}
    for cls in reversed(get_algorithm_class(algorithm).__mro__):
        found |= vars(cls).get("options", {})
    return found


def default_hparams(algorithm: str, dataset: str) -> dict[str, Any]:
    """The hyper-parameters of hparams seed 0."""
    return {name: dim.default for name, dim in search_space(algorithm, dataset).items()}


def random_hparams(algorithm: str, dataset: str, seed: int) -> dict[str, Any]:
    """A random draw; `seed` is that of the draw, see `seeding.hparams_draw_seed`."""
    return {
        name: dim.draw(hparam_random_state(seed, name))
        for name, dim in search_space(algorithm, dataset).items()
    }
