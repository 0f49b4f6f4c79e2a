"""The convolutional network of the benchmark's small images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from domainbed.networks.featurizer import Featurizer


class MNIST_CNN(Featurizer):
    """Four 3×3 convolutions with ReLU and GroupNorm, then a global average pool: 128 features.

    Gulrajani and Lopez-Paz 2020, table 7. Parameter names are those of DomainBed's class, so
    that its saved models load.
    """

    n_outputs = 128

    def __init__(
        self, input_shape: Sequence[int], hparams: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(input_shape[0], 64, 3, 1, padding=1)
        self.conv2 = nn.Conv2d(64, 128, 3, stride=2, padding=1)
        self.conv3 = nn.Conv2d(128, 128, 3, 1, padding=1)
        self.conv4 = nn.Conv2d(128, 128, 3, 1, padding=1)
        self.bn0 = nn.GroupNorm(8, 64)
        self.bn1 = nn.GroupNorm(8, 128)
        self.bn2 = nn.GroupNorm(8, 128)
        self.bn3 = nn.GroupNorm(8, 128)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.conv2.weight.is_contiguous():  # else convolutions are done in the layout of x
            x = x.contiguous()
        x = self.bn0(_relu(self.conv1(x)))  # (B, 64, H, W)
        x = self.bn1(_relu(self.conv2(x)))  # (B, 128, H/2, W/2)
        x = self.bn2(_relu(self.conv3(x)))
        x = self.bn3(_relu(self.conv4(x)))
        return x.mean(dim=(2, 3))  # (B, 128)


def _relu(x: torch.Tensor) -> torch.Tensor:
    """In place where no gradient needs what was there."""
    return F.relu(x, inplace=not torch.is_grad_enabled())
