"""Hyper-parameters: the kinds of search dimension, their defaults and their random draws.

An algorithm declares its own dimensions beside its class, in `search_space`; what all runs
share stands here. Defaults and draws are DomainBed's: each name is drawn alone, from a source
seeded by that name, so a draw never depends on which other hyper-parameters there are.
"""

from __future__ import annotations

from typing import Any

from domainbed.dimensions import (
    Choice,
    DatasetFacts,
    Dimension,
    Fixed,
    LogUniform,
    Option,
    Uniform,
    learning_rate,
    weight_decay,
)
from domainbed.seeding import hparam_random_state

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
]


def _batch_size(facts: DatasetFacts) -> Dimension:
    doc = "images per training domain and step"
    if facts.small_images:
        return LogUniform(64, 3, 9, doc, base=2, integer=True, least=1)
    high = 5 if facts.name == "DomainNet" else 5.5
    return LogUniform(32, 3, high, doc, base=2, integer=True, least=1)


def shared_space(facts: DatasetFacts) -> dict[str, Dimension]:
    """The dimensions that every algorithm has."""
    return {
        "data_augmentation": Fixed(True, "random crop, flip, colour jitter and greyscale"),
        "resnet18": Fixed(False, "ResNet-18 instead of ResNet-50"),
        "resnet_dropout": Choice(0.0, (0.0, 0.1, 0.5), "dropout on the backbone's features"),
        "class_balanced": Fixed(False, "draw all classes equally often"),
        "nonlinear_classifier": Fixed(False, "three linear layers with ReLU, instead of one"),
        "lr": learning_rate(facts),
        "weight_decay": weight_decay(facts),
        "batch_size": _batch_size(facts),
    }


def search_space(algorithm: str, dataset: str) -> dict[str, Dimension]:
    """All dimensions of `algorithm` on `dataset`: the shared ones, its parents' and its own.

    A dataset that is not registered (a folder, say) counts as one of natural images.

    Raises:
        UserError: no such algorithm.
    """
    from domainbed.algorithms import declared_space, get_algorithm_class
    from domainbed.datasets import DATASETS

    small_images = bool(getattr(DATASETS.get(dataset), "small_images", False))
    facts = DatasetFacts(dataset, small_images)
    return shared_space(facts) | declared_space(get_algorithm_class(algorithm), facts)


def options(algorithm: str) -> dict[str, Option]:
    """What may be set besides the search space of `algorithm`: shared, parents' and its own.

    Raises:
        UserError: no such algorithm.
    """
    from domainbed.algorithms import declared_options, get_algorithm_class
    from domainbed.datasets.image_access import DATA_OPTIONS
    from domainbed.networks import NETWORK_OPTIONS

    return {
        **NETWORK_OPTIONS,
        **DATA_OPTIONS,
        **declared_options(get_algorithm_class(algorithm)),
    }


def default_hparams(algorithm: str, dataset: str) -> dict[str, Any]:
    """The hyper-parameters of hparams seed 0."""
    return {name: dim.default for name, dim in search_space(algorithm, dataset).items()}


def random_hparams(algorithm: str, dataset: str, seed: int) -> dict[str, Any]:
    """A random draw; `seed` is that of the draw, see `seeding.hparams_draw_seed`."""
    return {
        name: dim.draw(hparam_random_state(seed, name))
        for name, dim in search_space(algorithm, dataset).items()
    }
