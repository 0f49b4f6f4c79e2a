"""Featurizers and heads. `Featurizer` picks the network that suits the input's shape."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from domainbed.config.dimensions import Option, with_defaults
from domainbed.networks.backbone import BACKBONE_OPTIONS, Backbone
from domainbed.networks.featurizer import CHOICE_OPTIONS, NETWORKS, Featurizer
from domainbed.networks.heads import MLP, Classifier, Projection, UnitFeatures
from domainbed.networks.mnist_cnn import MNIST_CNN
from domainbed.networks.open_clip_models import PROMPTS

MLP_OPTIONS: dict[str, Option] = {
    "mlp_width": Option(256, "width of a featurizer of vectors", least=1),
    "mlp_depth": Option(3, "linear layers of a featurizer of vectors", least=2),
    "mlp_dropout": Option(0.0, "dropout in a featurizer of vectors", least=0, below=1),
}

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


@NETWORKS.register(name="MLP")
def mlp_featurizer(input_shape: Sequence[int], hparams: Mapping[str, Any]) -> MLP:
    """An `MLP` of vectors, as wide at its end as inside."""
    hparams = with_defaults(MLP_OPTIONS, hparams)
    return MLP(input_shape[0], hparams["mlp_width"], hparams)


NETWORKS.register(Projection)
NETWORKS.register(UnitFeatures)
NETWORKS.register(MNIST_CNN)
NETWORKS.register(Backbone)

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
    "UnitFeatures",
]
