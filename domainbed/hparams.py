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
    from domainbed.algorithms import get_algorithm_class
    from domainbed.datasets import DATASETS

    small_images = bool(getattr(DATASETS.get(dataset), "small_images", False))
    facts = DatasetFacts(dataset, small_images)
    space = shared_space(facts)
    for cls in reversed(get_algorithm_class(algorithm).__mro__):  # its parents' spaces as well
        own = vars(cls).get("search_space", {})
        own = getattr(own, "__func__", own)
        space |= own(facts) if callable(own) else own
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
