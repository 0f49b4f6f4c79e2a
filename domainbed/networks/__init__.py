"""Featurizers and heads. `Featurizer` picks the network that suits the input's shape."""

from domainbed.config.dimensions import Option
from domainbed.networks.featurizer import (
    BACKBONE_OPTIONS,
    CHOICE_OPTIONS,
    MLP,
    MLP_OPTIONS,
    MNIST_CNN,
    NETWORKS,
    Backbone,
    Classifier,
    Featurizer,
    Projection,
    SequenceCNN,
    Transformer,
    UnitFeatures,
    is_shape,
    named_network,
)
from domainbed.networks.open_clip_models import PROMPTS

NETWORK_OPTIONS: dict[str, Option] = {**CHOICE_OPTIONS, **BACKBONE_OPTIONS, **MLP_OPTIONS}
"""What networks read where it is given, whatever the algorithm."""

HEAD_OPTIONS: dict[str, Option] = {
    "featurizer": CHOICE_OPTIONS["featurizer"],
    **MLP_OPTIONS,
    "prompts": Option(
        "photo",
        f"templates of a classifier made of text: {', '.join(PROMPTS)}, or a file",
        file=True,
    ),
}
"""Likewise, where inputs are features of images."""

ResNet = Backbone
"""DomainBed's name, for algorithms that were written for it."""

__all__ = [
    "HEAD_OPTIONS",
    "MLP",
    "MNIST_CNN",
    "NETWORKS",
    "NETWORK_OPTIONS",
    "Backbone",
    "Classifier",
    "Featurizer",
    "Projection",
    "ResNet",
    "SequenceCNN",
    "Transformer",
    "UnitFeatures",
    "is_shape",
    "named_network",
]
