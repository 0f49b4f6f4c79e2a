"""Published classification models as featurizers; the protocol's are ResNet-50 and ResNet-18."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from domainbed.config.dimensions import Option, with_defaults
from domainbed.errors import UserError, one_line
from domainbed.networks.featurizer import CHOICE_OPTIONS, NETWORKS, Featurizer
from domainbed.networks.pretrained import headless_model

_AUGMIX = "timm:resnet50.ram_in1k"

BACKBONE_OPTIONS: dict[str, Option] = {
    "weights": Option(
        "imagenet", "pretrained: imagenet, none, or the path of a state dict", file=True
    ),
    "freeze_bn": Option(True, "keep a backbone's batch norm layers in eval mode"),
    "resnet50_augmix": Option(False, f"{_AUGMIX} instead of ResNet-50, as in DomainBed from 2024"),
}


@NETWORKS.register
class Backbone(Featurizer):
    """A model of torchvision or timm without its last layer, with dropout on its features.

    Args:
        input_shape: (channels, height, width). With other than 3 channels the first
            convolution takes them, its pretrained weights repeated over the channels.
        hparams: reads `resnet18` (ResNet-18 in place of ResNet-50) and `resnet_dropout`
            (dropout on the features), and where they are given `backbone` (another model, by
            its name in torchvision, or `timm:NAME`) and `BACKBONE_OPTIONS`: `weights`
            ("imagenet", "none", or a file), `freeze_bn` (true as in the published protocol: all
            batch norm layers stay in eval mode while training) and `resnet50_augmix` (with
            neither of the other choices of a model: timm's ResNet-50 of AugMix's training).

    Attributes:
        network: the model; the names of its parameters are its source's, and DomainBed's.
        n_outputs: the width of the features.

    Raises:
        UserError: no such model, weights that are not available or do not fit, or a model that
            cannot take inputs of this shape.
    """

    def __init__(self, input_shape: Sequence[int], hparams: Mapping[str, Any]) -> None:
        super().__init__()
        hparams = with_defaults({**CHOICE_OPTIONS, **BACKBONE_OPTIONS}, hparams)
        name = _chosen_model(hparams)
        self.network = headless_model(name, str(hparams["weights"]))
        if input_shape[0] != 3:
            _take_channels(self.network, input_shape[0], name)
        self.n_outputs = _width_of_features(self.network, input_shape, name)
        self.dropout = nn.Dropout(hparams["resnet_dropout"])
        self.freeze_bn = bool(hparams["freeze_bn"])
        self.train()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.dropout(self.network(x))

    def train(self, mode: bool = True) -> Backbone:
        super().train(mode)
        for module in self.network.modules():
            if self.freeze_bn and isinstance(module, _BatchNorm):  # also synchronised or timm's
                module.eval()
        return self


def _chosen_model(hparams: Mapping[str, Any]) -> str:
    named, resnet18 = hparams["backbone"], hparams["resnet18"]
    if resnet18 and named not in ("", "resnet18"):
        raise UserError(
            f"the hyper-parameters 'backbone' ({named!r}) and 'resnet18' (True) choose two "
            "models: set only one of them"
        )
    if named or resnet18:
        return named or "resnet18"
    return _AUGMIX if hparams["resnet50_augmix"] else "resnet50"


def _take_channels(network: Any, channels: int, name: str) -> None:
    """Makes the first convolution take `channels`: number i gets the weights of i modulo 3."""
    first = next((m for m in network.modules() if isinstance(m, nn.Conv2d)), None)
    if first is None or first.in_channels != 3:
        raise UserError(
            f"backbone {name!r} does not begin with a convolution of 3 channels, so it cannot "
            f"take images of {channels}: choose another backbone"
        )
    first.weight = nn.Parameter(first.weight.detach()[:, torch.arange(channels) % 3])
    first.in_channels = channels
    if hasattr(network, "transform_input"):
        network.transform_input = False  # torchvision's takes the three channels apart


def _width_of_features(network: nn.Module, input_shape: Sequence[int], name: str) -> int:
    """Tries the network on one blank image: its features must be (1, width)."""
    size = "×".join(map(str, input_shape))
    try:
        with torch.no_grad():
            features = network.eval()(torch.zeros(1, *input_shape))
    except Exception as error:  # each model has its own way to refuse a size
        raise UserError(
            f"backbone {name!r} cannot take images of {size} ({one_line(error)}): choose another "
            "backbone"
        ) from error
    if not isinstance(features, torch.Tensor) or features.dim() != 2:
        raise UserError(
            f"backbone {name!r} does not give one vector of features per image of {size}: "
            "choose another backbone"
        )
    return features.shape[1]
