"""Hyper-parameters: the kinds of search dimension, their defaults and their random draws.

An algorithm declares its own dimensions beside its class, in `search_space`; what all runs
share stands here. Defaults and draws are DomainBed's: each name is drawn alone, from a source
seeded by that name, so a draw never depends on which other hyper-parameters there are.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, cast

from numpy.random import RandomState

from domainbed.algorithms import Algorithm, declared_options, declared_space, get_algorithm_class
from domainbed.algorithms.optimizers import OPTIMIZER_OPTIONS, check_optimizer_options
from domainbed.config.dimensions import (
    Choice,
    DatasetFacts,
    Dimension,
    Fixed,
    Foreign,
    LogUniform,
    Option,
    Uniform,
    learning_rate,
    refusal,
    weight_decay,
    with_defaults,
)
from domainbed.core.seeding import seed_hash
from domainbed.datasets import class_for_search, dataset_facts
from domainbed.datasets.image_domains import DATA_OPTIONS, OF_FEATURES
from domainbed.errors import FEW_NAMES, UserError, did_you_mean
from domainbed.networks import HEAD_OPTIONS, NETWORK_OPTIONS, named_network

__all__ = [
    "Choice",
    "DatasetFacts",
    "Dimension",
    "Fixed",
    "LogUniform",
    "Option",
    "Uniform",
    "default_hparams",
    "learning_rate",
    "options",
    "random_hparams",
    "search_space",
    "shared_space",
    "weight_decay",
    "with_defaults",
]


def shared_space(facts: DatasetFacts) -> dict[str, Dimension]:
    """The dimensions that every algorithm has."""
    rates = (0.0, 0.1, 0.5)
    network: dict[str, Dimension] = {
        "resnet18": Fixed(False, "ResNet-18 instead of ResNet-50"),
        "resnet_dropout": Choice(
            0.0, rates, "dropout on the backbone's features", least=0, below=1
        ),
    }
    if facts.features:
        network = {
            "head_depth": Fixed(1, "trained layers below the classifier", least=0),
            "head_width": Fixed(256, "their width", least=1),
            "head_dropout": Choice(0.0, rates, "dropout before each of them", least=0, below=1),
        }
    if facts.network:
        network = {"featurizer": Fixed(facts.network, "registered network; the dataset's own")}
    size, high = (64, 9.0) if facts.from_scratch else (32, 5.5)
    if facts.name == "DomainNet" and not facts.from_scratch:
        high = 5.0
    return {
        "data_augmentation": Fixed(True, "random crop, flip, colour jitter and greyscale"),
        **network,
        "class_balanced": Fixed(False, "draw all classes equally often"),
        "nonlinear_classifier": Fixed(False, "three linear layers with ReLU, instead of one"),
        "lr": learning_rate(facts),
        "weight_decay": weight_decay(facts),
        "batch_size": LogUniform(
            size, 3, high, "images per training domain and step", base=2, integer=True, least=1
        ),
    }


_FIRST_IN_SEQUENCE = ("resnet_dropout", "lr", "batch_size", "weight_decay")
_OTHERWISE_CALLED = {"learning_rate": "lr", "dropout": "resnet_dropout"}


@dataclass(frozen=True)
class Space:
    """What may be drawn and set for an algorithm on a dataset.

    Attributes:
        algorithm: its name.
        dataset: as `datasets.get_dataset_class` takes it.
        shared: the dimensions that every algorithm has.
        own: those that the algorithm declares; they replace shared ones of the same name.
        options: what else may be set.
        is_complete: whether the algorithm says which hyper-parameters it has.
    """

    algorithm: str
    dataset: str
    shared: Mapping[str, Dimension]
    own: Mapping[str, Dimension]
    options: Mapping[str, Option]
    is_complete: bool

    @classmethod
    def of(
        cls,
        algorithm: str,
        declaring: type[Algorithm],
        dataset: str,
        features: bool = False,
        featurizer: str = "",
    ) -> Space:
        """The space of `algorithm`, which is the class `declaring`; see `search_space`.

        With a `featurizer`, this network takes the place of the dataset's own.

        Raises:
            UserError: there is no such network.
        """
        facts = dataset_facts(dataset, features)
        if featurizer and featurizer != facts.network:
            facts = replace(facts, network="")
        usual = {**({} if facts.network else NETWORK_OPTIONS), **DATA_OPTIONS}
        if features:
            usual = {**HEAD_OPTIONS, **{name: DATA_OPTIONS[name] for name in OF_FEATURES}}
        usual |= OPTIMIZER_OPTIONS if declaring.uses_optimizer else {}
        if network := featurizer or facts.network:
            usual |= getattr(named_network(network), "options", {})
        of_data, shared = {}, shared_space(facts)
        if data := class_for_search(dataset):
            of_data = data.options
            shared |= {} if features else declared_space(data, facts)
        return cls(
            algorithm=algorithm,
            dataset=dataset,
            options={**usual, **of_data, **declared_options(declaring)},
            own=declared_space(declaring, facts),
            shared=shared,
            is_complete=declaring.__module__.startswith("domainbed.")
            or "search_space" in vars(declaring),
        )

    @property
    def dimensions(self) -> dict[str, Dimension]:
        """All dimensions."""
        return {**self.shared, **self.own}

    def defaults(self) -> dict[str, Any]:
        """The hyper-parameters of hparams seed 0."""
        return {name: dimension.default for name, dimension in self.dimensions.items()}

    def draw(
        self,
        seed: int,
        in_sequence: bool = False,
        ranges: Mapping[str, tuple[float, float]] = {},
    ) -> dict[str, Any]:
        """A random draw; see `random_hparams`."""
        changed = {
            name: replace(cast(Uniform, self.own[name]), low=low, high=high)
            for name, (low, high) in ranges.items()
        }
        own, source = {**self.own, **changed}, RandomState(seed)
        if in_sequence:
            # The shared ones that there were in 2020, then the algorithm's as it declares them.
            # One that the algorithm replaces (`batch_size` of ARM) is drawn all the same.
            drawn = {name: dimension.default for name, dimension in self.shared.items()}
            drawn |= {
                n: self.shared[n].draw(source) for n in _FIRST_IN_SEQUENCE if n in self.shared
            }
            return drawn | {name: dimension.draw(source) for name, dimension in own.items()}
        drawn = {}
        for name, dimension in {**self.shared, **own}.items():
            if isinstance(dimension, Foreign):  # by itself, from the same seed as in the fork
                drawn[name] = dimension.value_of(seed)
                continue
            source.seed(seed_hash(seed, name))  # as a new one, at a hundredth of the time
            drawn[name] = dimension.draw(source)
        return drawn

    def check(self, fixed: Mapping[str, Any]) -> None:
        """Makes sure that these values may be set.

        Raises:
            UserError: a wrong value; or an unknown name, if the space is complete.
        """
        known = {**self.options, **self.dimensions}
        for name, value in fixed.items():
            if self.is_complete and name not in known:
                hint = did_you_mean(_OTHERWISE_CALLED.get(name, name), known)
                listed = "" if hint and len(known) > FEW_NAMES else f" Known: {', '.join(known)}"
                raise UserError(
                    f"unknown hyper-parameter {name!r} of {self.algorithm}.{hint}{listed}",
                    *("hparams", name),
                )
            expected = ""
            if isinstance(value, float) and not math.isfinite(value):
                expected = "expected a finite number"
            elif name in known and not known[name].accepts(value):
                expected = refusal(value, known[name])
            if expected:
                raise UserError(
                    f"hyper-parameter {name!r} of {self.algorithm} cannot be {value!r}: {expected}",
                    *("hparams", name),
                )
        check_optimizer_options(
            {n: v for n, v in fixed.items() if known.get(n) is OPTIMIZER_OPTIONS.get(n, self)}
        )
        named = set(fixed) & {"weights", "backbone", "featurizer"}
        if dataset_facts(self.dataset).small_images and named == {"weights"}:
            raise UserError(
                f"hyper-parameter 'weights' is {fixed['weights']!r}, but no backbone takes weights "
                f"on {self.dataset}: leave it out, or name a 'backbone'",
                *("hparams", "weights"),
            )


def _space(algorithm: str, dataset: str, features: bool) -> Space:
    return Space.of(algorithm, get_algorithm_class(algorithm), dataset, features)


def search_space(algorithm: str, dataset: str, features: bool = False) -> dict[str, Dimension]:
    """All dimensions of `algorithm` on `dataset`: the shared ones, its parents' and its own.

    A dataset that is not registered (a folder, whatever its name) counts as natural images. With
    `features` inputs are features of its images.

    Raises:
        UserError: no such algorithm.
    """
    return _space(algorithm, dataset, features).dimensions


def options(algorithm: str, dataset: str = "", features: bool = False) -> dict[str, Option]:
    """The options besides the search space: of networks, data, `dataset` and `algorithm`.

    Raises:
        UserError: no such algorithm.
    """
    return dict(_space(algorithm, dataset, features).options)


def default_hparams(algorithm: str, dataset: str, features: bool = False) -> dict[str, Any]:
    """The hyper-parameters of hparams seed 0."""
    return _space(algorithm, dataset, features).defaults()


def random_hparams(
    algorithm: str,
    dataset: str,
    seed: int,
    in_sequence: bool = False,
    ranges: Mapping[str, tuple[float, float]] = {},
    features: bool = False,
) -> dict[str, Any]:
    """A random draw.

    Args:
        algorithm: its name.
        dataset: as `datasets.get_dataset_class` takes it.
        seed: of the draw, see `seeding.hparams_draw_seed`.
        in_sequence: draw all from one source in turn, as DomainBed did until 2020, instead of
            each from a source of its own name.
        ranges: low and high of hyper-parameters that the algorithm declares as a `Uniform` or
            `LogUniform`, where they are not its own.
        features: whether inputs are features of the dataset's images.
    """
    return _space(algorithm, dataset, features).draw(seed, in_sequence, ranges)
