"""A network from images to one map of the same size, for methods that adapt to a batch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn


class ContextNet(nn.Module):
    """Three 5×5 convolutions, with batch norm and ReLU between: (B, c, H, W) to (B, 1, H, W).

    Zhang et al. 2021 (arXiv 2007.02931). Parameter names are those of DomainBed's class, so that
    its saved models load.
    """

    def __init__(self, input_shape: Sequence[int]) -> None:
        super().__init__()
        self.context_net = nn.Sequential(
            nn.Conv2d(input_shape[0], 64, 5, padding=2),
            nn.BatchNorm2d(64),
            nn.ReLU(),
            nn.Conv2d(64, 64, 5, padding=2),
            nn.BatchNorm2d(64),
            nn.ReLU(),
            nn.Conv2d(64, 1, 5, padding=2),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.context_net(x)
