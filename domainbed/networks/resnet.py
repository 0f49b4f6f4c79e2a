"""ResNet-50 and ResNet-18 as featurizers, with frozen batch norm."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.error import URLError

import torch
from torch import nn

from domainbed.errors import UserError


class ResNet(nn.Module):
    """torchvision's ResNet without its last layer: 2048 features (ResNet-50) or 512 (ResNet-18).

    All batch norm layers stay in eval mode while training, as in the published protocol.

    Args:
        input_shape: (channels, height, width). With other than 3 channels the first
            convolution is rebuilt, its pretrained weights repeated over the channels.
        hparams: reads `resnet18`, `resnet_dropout` (dropout on the features) and, where it is
            there, `weights`: "imagenet" (the default), "none", or a file with a state dict.

    Raises:
        UserError: the weights are neither cached nor to be downloaded.
    """

    def __init__(self, input_shape: Sequence[int], hparams: Mapping[str, Any]) -> None:
        super().__init__()
        name = "resnet18" if hparams["resnet18"] else "resnet50"
        self.network = _build(name, str(hparams.get("weights", "imagenet")))
        self.n_outputs = self.network.fc.in_features
        self.network.fc = nn.Identity()
        if input_shape[0] != 3:
            self.network.conv1 = _repeat_over_channels(self.network.conv1, input_shape[0])
        self.dropout = nn.Dropout(hparams["resnet_dropout"])
        self.freeze_batch_norm()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.dropout(self.network(x))

    def train(self, mode: bool = True) -> ResNet:
        super().train(mode)
        self.freeze_batch_norm()
        return self

    def freeze_batch_norm(self) -> None:
        """Keeps the running statistics of all batch norm layers as they were loaded."""
        for module in self.network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()


def _build(name: str, weights: str) -> Any:
    from torchvision import models  # 0.6 s, needed by natural images alone

    network = getattr(models, name)(weights=None)
    if weights == "imagenet":
        published = models.get_model_weights(name)["IMAGENET1K_V1"]
        network.load_state_dict(_download(name, published))
    elif weights != "none":
        try:
            network.load_state_dict(_read(weights))
        except (RuntimeError, TypeError) as error:
            raise UserError(
                f"hyper-parameter 'weights': {weights!r} holds no state dict of {name}"
            ) from error
    return network


def _download(name: str, published: Any) -> Mapping[str, Any]:
    try:
        return published.get_state_dict(progress=True, check_hash=True)
    except (URLError, OSError, RuntimeError) as error:
        file = Path(torch.hub.get_dir()) / "checkpoints" / published.url.rsplit("/", 1)[1]
        raise UserError(
            f"the ImageNet weights of {name} could not be downloaded from {published.url} "
            f"({error}): put that file at {file}, or set the hyper-parameter 'weights' to the "
            "path of a state dict or to 'none'"
        ) from error


def _read(path: str) -> Mapping[str, Any]:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # unpickling what is no state dict raises anything
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(
            f"hyper-parameter 'weights': {path!r} cannot be read ({reason}): give 'imagenet', "
            "'none' or the path of a state dict"
        ) from error


def _repeat_over_channels(convolution: nn.Conv2d, channels: int) -> nn.Conv2d:
    """The same convolution for `channels` inputs: input i takes the weights of input i mod 3."""
    rebuilt = nn.Conv2d(
        channels,
        convolution.out_channels,
        kernel_size=convolution.kernel_size,  # type: ignore[arg-type]
        stride=convolution.stride,  # type: ignore[arg-type]
        padding=convolution.padding,  # type: ignore[arg-type]
        bias=False,
    )
    with torch.no_grad():
        rebuilt.weight.copy_(convolution.weight[:, torch.arange(channels) % 3])
    return rebuilt
