"""Hyper-parameters: the kinds of search dimension, their defaults and their random draws.

An algorithm declares its own dimensions beside its class, in `search_space`; what all runs
share stands here. Defaults and draws are DomainBed's: each name is drawn alone, from a source
seeded by that name, so a draw never depends on which other hyper-parameters there are.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from numpy.random import RandomState

from domainbed.algorithms import declared_options, declared_space, get_algorithm_class
from domainbed.config.dimensions import (
    Choice,
    DatasetFacts,
    Dimension,
    Fixed,
    LogUniform,
    Option,
    Uniform,
    learning_rate,
    refusal,
    weight_decay,
    with_defaults,
)
from domainbed.core.seeding import hparam_seed, hparams_draw_seed
from domainbed.core.suggest import did_you_mean
from domainbed.datasets import DATASETS, dataset_facts
from domainbed.datasets.image_domains import DATA_OPTIONS
from domainbed.errors import UserError
from domainbed.networks import HEAD_OPTIONS, NETWORK_OPTIONS

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


def _batch_size(facts: DatasetFacts) -> Dimension:
    doc = "images per training domain and step"
    if facts.from_scratch:
        return LogUniform(64, 3, 9, doc, base=2, integer=True, least=1)
    high = 5 if facts.name == "DomainNet" else 5.5
    return LogUniform(32, 3, high, doc, base=2, integer=True, least=1)


def _network_space(facts: DatasetFacts) -> dict[str, Dimension]:
    if facts.features:
        return {
            "head_depth": Fixed(1, "trained layers below the classifier", least=0),
            "head_width": Fixed(256, "their width", least=1),
            "head_dropout": Choice(
                0.0, (0.0, 0.1, 0.5), "dropout before each of them", least=0, below=1
            ),
        }
    return {
        "resnet18": Fixed(False, "ResNet-18 instead of ResNet-50"),
        "resnet_dropout": Choice(
            0.0, (0.0, 0.1, 0.5), "dropout on the backbone's features", least=0, below=1
        ),
    }


def shared_space(facts: DatasetFacts) -> dict[str, Dimension]:
    """The dimensions that every algorithm has."""
    return {
        "data_augmentation": Fixed(True, "random crop, flip, colour jitter and greyscale"),
        **_network_space(facts),
        "class_balanced": Fixed(False, "draw all classes equally often"),
        "nonlinear_classifier": Fixed(False, "three linear layers with ReLU, instead of one"),
        "lr": learning_rate(facts),
        "weight_decay": weight_decay(facts),
        "batch_size": _batch_size(facts),
    }


def search_space(algorithm: str, dataset: str, features: bool = False) -> dict[str, Dimension]:
    """All dimensions of `algorithm` on `dataset`: the shared ones, its parents' and its own.

    A dataset that is not registered (a folder, say) counts as one of natural images. With
    `features` inputs are features of its images.

    Raises:
        UserError: no such algorithm.
    """
    facts = dataset_facts(dataset, features)
    return shared_space(facts) | declared_space(get_algorithm_class(algorithm), facts)


def options(
    algorithm: str, dataset: str | None = None, features: bool = False
) -> dict[str, Option]:
    """What may be set besides the search space: of networks, data, `dataset` and `algorithm`.

    Raises:
        UserError: no such algorithm.
    """
    of_data = DATASETS[dataset].options if dataset and dataset in DATASETS else {}
    of_algorithm = declared_options(get_algorithm_class(algorithm))
    if features:
        of_files = {"corrupt_images": DATA_OPTIONS["corrupt_images"]}
        return {**HEAD_OPTIONS, **of_files, **of_data, **of_algorithm}
    return {**NETWORK_OPTIONS, **DATA_OPTIONS, **of_data, **of_algorithm}


def file_options(algorithm: str, dataset: str, features: bool = False) -> list[str]:
    """The options whose value may name a file."""
    found = options(algorithm, dataset, features)
    return [name for name, option in found.items() if option.file]


def default_hparams(algorithm: str, dataset: str, features: bool = False) -> dict[str, Any]:
    """The hyper-parameters of hparams seed 0."""
    space = search_space(algorithm, dataset, features)
    return {name: dimension.default for name, dimension in space.items()}


Ranges = Mapping[str, tuple[float, float]]
"""By hyper-parameter, low and high of a `Uniform` or `LogUniform` in place of its own."""


def random_hparams(
    algorithm: str,
    dataset: str,
    seed: int,
    in_sequence: bool = False,
    ranges: Ranges = MappingProxyType({}),
    features: bool = False,
) -> dict[str, Any]:
    """A random draw.

    Args:
        algorithm: its name.
        dataset: its name, without paths.
        seed: of the draw, see `seeding.hparams_draw_seed`.
        in_sequence: draw all from one source in turn, as DomainBed did until 2020, instead of
            each from a source of its own name.
        ranges: of hyper-parameters that the algorithm declares, where they are not its own.
        features: whether inputs are features of the dataset's images.
    """
    facts = dataset_facts(dataset, features)
    shared, own = shared_space(facts), declared_space(get_algorithm_class(algorithm), facts)
    own |= {name: _in_range(own[name], *ends) for name, ends in ranges.items()}
    source = RandomState(seed)
    if in_sequence:
        return _drawn_in_sequence(shared, own, source)
    drawn = {}
    for name, dimension in {**shared, **own}.items():
        source.seed(hparam_seed(seed, name))  # as a new one, at a hundredth of the time
        drawn[name] = dimension.draw(source)
    return drawn


def _in_range(dimension: Dimension, low: float, high: float) -> Dimension:
    assert isinstance(dimension, (Uniform, LogUniform)), dimension
    return replace(dimension, low=low, high=high)


_FIRST_IN_SEQUENCE = ("resnet_dropout", "lr", "batch_size", "weight_decay")


def _drawn_in_sequence(
    shared: Mapping[str, Dimension], own: Mapping[str, Dimension], source: RandomState
) -> dict[str, Any]:
    """The shared ones that there were in 2020, then the algorithm's as it declares them.

    A shared one that the algorithm replaces (`batch_size` of ARM) is drawn all the same.
    """
    drawn = {name: dimension.default for name, dimension in shared.items()}
    drawn |= {name: shared[name].draw(source) for name in _FIRST_IN_SEQUENCE}
    return drawn | {name: dimension.draw(source) for name, dimension in own.items()}


def resolve(
    algorithm: str,
    dataset: str,
    *,
    protocol_options: Mapping[str, Any],
    protocol_defaults: Mapping[str, Any],
    protocol_ranges: Ranges,
    fixed: Mapping[str, Any],
    hparams_seed: int,
    trial_seed: int,
    shared_draws: bool = False,
    in_sequence: bool = False,
    features: bool = False,
) -> dict[str, Any]:
    """All hyper-parameters of a run: defaults or draw, the protocol's options, fixed values.

    Args:
        algorithm: its name.
        dataset: its name, without paths.
        protocol_options: its values; those that nothing in the run declares are left out.
        protocol_defaults: values of hparams seed 0 in place of the search space's.
        protocol_ranges: of random draws, see `random_hparams`.
        fixed: what the user set.
        hparams_seed: 0 for the defaults, any other for a random draw.
        trial_seed: which the published draws depend on.
        shared_draws: the same draws in all trials.
        in_sequence: see `random_hparams`.
        features: whether inputs are features of the dataset's images.

    Raises:
        UserError: an unknown name, or a value that cannot be.
    """
    _check_fixed(algorithm, dataset, fixed, features)
    declared = options(algorithm, dataset, features)
    if hparams_seed == 0:
        drawn = {**default_hparams(algorithm, dataset, features), **protocol_defaults}
    else:
        seed = hparams_draw_seed(hparams_seed, trial_seed, shared_draws)
        drawn = random_hparams(algorithm, dataset, seed, in_sequence, protocol_ranges, features)
    recorded = {name: o.default for name, o in declared.items() if o.always_recorded}
    of_protocol = {name: v for name, v in protocol_options.items() if name in declared}
    return {**drawn, **recorded, **of_protocol, **fixed}


_OTHERWISE_CALLED = {"learning_rate": "lr", "dropout": "resnet_dropout"}


def _check_fixed(algorithm: str, dataset: str, fixed: Mapping[str, Any], features: bool) -> None:
    """Refuses values that cannot be, and unknown names where the algorithm declares its space."""
    cls = get_algorithm_class(algorithm)
    known = {
        **options(algorithm, dataset, features),
        **search_space(algorithm, dataset, features),
    }
    declared = cls.__module__.startswith("domainbed.") or "search_space" in vars(cls)
    for name, value in fixed.items():
        if declared and name not in known:
            meant = _OTHERWISE_CALLED.get(name, name)
            raise UserError(
                f"unknown hyper-parameter {name!r} of {algorithm}.{did_you_mean(meant, known)} "
                f"Known: {', '.join(known)}",
                *("hparams", name),
            )
        if isinstance(value, float) and not math.isfinite(value):
            raise UserError(
                f"hyper-parameter {name!r} of {algorithm} cannot be {value!r}: expected a "
                "finite number",
                *("hparams", name),
            )
        if name in known and not known[name].accepts(value):
            raise UserError(
                f"hyper-parameter {name!r} of {algorithm} cannot be {value!r}: "
                f"{refusal(value, known[name])}",
                *("hparams", name),
            )
    small_images = dataset_facts(dataset).small_images
    if small_images and set(fixed) & {"weights", "backbone", "featurizer"} == {"weights"}:
        raise UserError(
            f"hyper-parameter 'weights' is {fixed['weights']!r}, but no backbone takes weights on "
            f"{dataset}: leave it out, or name a 'backbone'",
            *("hparams", "weights"),
        )
