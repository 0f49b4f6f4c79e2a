"""Classifiers on features, and the multi-layer perceptron."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from domainbed.networks.featurizer import Featurizer


def Classifier(in_features: int, out_features: int, is_nonlinear: bool = False) -> nn.Module:
    """A head from (B, in_features) to (B, out_features) logits.

    One linear layer, or with `is_nonlinear` three of them (in, in/2, in/4, out) with ReLU.
    """
    if not is_nonlinear:
        return nn.Linear(in_features, out_features)
    return nn.Sequential(
        nn.Linear(in_features, in_features // 2),
        nn.ReLU(),
        nn.Linear(in_features // 2, in_features // 4),
        nn.ReLU(),
        nn.Linear(in_features // 4, out_features),
    )


class MLP(Featurizer):
    """`mlp_depth` linear layers of width `mlp_width`; after each but the last, dropout then ReLU.

    Args:
        n_inputs: width of the input, (B, n_inputs).
        n_outputs: width of the output, (B, n_outputs).
        hparams: reads `mlp_width`, `mlp_depth` (at least 2) and `mlp_dropout`.
    """

    def __init__(self, n_inputs: int, n_outputs: int, hparams: Mapping[str, Any]) -> None:
        super().__init__()
        width = hparams["mlp_width"]
        self.input = nn.Linear(n_inputs, width)
        self.dropout = nn.Dropout(hparams["mlp_dropout"])
        self.hiddens = nn.ModuleList(
            nn.Linear(width, width) for _ in range(hparams["mlp_depth"] - 2)
        )
        self.output = nn.Linear(width, n_outputs)
        self.n_outputs = n_outputs

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in [self.input, *self.hiddens]:
            x = F.relu(self.dropout(layer(x)))
        return self.output(x)


class Projection(Featurizer):
    """What is trained on frozen features below the classifier: `head_depth` layers with ReLU.

    Dropout comes before each layer. With a depth of 0 it is that dropout alone: the classifier
    stands on the features as they are.

    Args:
        input_shape: (d,).
        hparams: reads `head_depth`, `head_width` and `head_dropout`.
    """

    def __init__(self, input_shape: Sequence[int], hparams: Mapping[str, Any]) -> None:
        super().__init__()
        widths = [input_shape[0], *[hparams["head_width"]] * hparams["head_depth"]]
        self.layers = nn.ModuleList(map(nn.Linear, widths, widths[1:]))
        self.dropout = nn.Dropout(hparams["head_dropout"])
        self.n_outputs = widths[-1]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = F.relu(layer(self.dropout(x)))
        return x if self.layers else self.dropout(x)


class UnitFeatures(Featurizer):
    """Frozen features scaled to length 1; nothing below the classifier is trained.

    Args:
        input_shape: (d,).
        hparams: not read.
    """

    def __init__(self, input_shape: Sequence[int], hparams: Mapping[str, Any]) -> None:
        super().__init__()
        self.n_outputs = input_shape[0]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.normalize(x, dim=1)
