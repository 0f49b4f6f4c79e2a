"""Featurizers and heads. `Featurizer` picks the network that suits the input's shape."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from domainbed.errors import UserError
from domainbed.hparams import NETWORK_OPTIONS
from domainbed.networks.backbone import Backbone
from domainbed.networks.heads import MLP, Classifier
from domainbed.networks.mnist_cnn import MNIST_CNN
from domainbed.registry import Registry

NETWORKS = Registry("network")
"""Featurizers: called with `(input_shape, hparams)`, they have `n_outputs`."""


@NETWORKS.register(name="MLP")
def mlp_featurizer(input_shape: Sequence[int], hparams: Mapping[str, Any]) -> nn.Module:
    """An `MLP` of vectors, as wide at its end as inside."""
    defaults = {name: option.default for name, option in NETWORK_OPTIONS.items()}
    hparams = {**defaults, **hparams}
    return MLP(input_shape[0], hparams["mlp_width"], hparams)


NETWORKS.register(MNIST_CNN)
NETWORKS.register(Backbone)

ResNet = Backbone
"""DomainBed's name, for algorithms that were written for it."""


def Featurizer(input_shape: Sequence[int], hparams: Mapping[str, Any]) -> nn.Module:
    """A network from inputs of `input_shape` to (B, n_outputs) features.

    Vectors go through an `MLP`, images of at most 28×28 through `MNIST_CNN`, of at least 32×32
    through a `Backbone`, and so do images of any size where `hparams["backbone"]` names one.
    `hparams["featurizer"]` names another registered network, and wins.

    Raises:
        UserError: no network for that shape.
    """
    if hparams.get("featurizer"):
        return NETWORKS[hparams["featurizer"]](input_shape, hparams)
    if hparams.get("backbone") and len(input_shape) == 3:
        return NETWORKS["Backbone"](input_shape, hparams)
    if hparams.get("backbone"):
        raise UserError(
            f"backbone {hparams['backbone']!r} takes images, but the inputs have the shape "
            f"{tuple(input_shape)}: leave 'backbone' out"
        )
    if len(input_shape) == 1:
        return NETWORKS["MLP"](input_shape, hparams)
    if len(input_shape) == 3 and max(input_shape[1:]) <= 28:
        return NETWORKS["MNIST_CNN"](input_shape, hparams)
    if len(input_shape) == 3 and min(input_shape[1:]) >= 32:
        return NETWORKS["Backbone"](input_shape, hparams)
    raise UserError(
        f"no featurizer for inputs of shape {tuple(input_shape)}: expected (features,) or "
        "(channels, height, width); name a registered network in the hyper-parameter 'featurizer'"
    )


__all__ = ["MLP", "MNIST_CNN", "NETWORKS", "Backbone", "Classifier", "Featurizer", "ResNet"]
