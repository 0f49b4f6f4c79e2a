"""Small networks of sequences: of samples, such as those of sensors, and of tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from domainbed.config.dimensions import Option, with_defaults
from domainbed.networks.featurizer import NETWORKS, Featurizer

_WIDTHS = "width of a network of sequences"

SEQUENCE_OPTIONS: dict[str, Option] = {
    "sequence_width": Option(64, "width of a network of sequences, a multiple of 4", least=4),
    "sequence_depth": Option(2, "its layers", least=1),
    "sequence_dropout": Option(0.0, "its dropout", least=0, below=1),
}


@NETWORKS.register
class SequenceCNN(Featurizer):
    """Convolutions over time, then the mean over time.

    Each of `sequence_depth` layers has a kernel of 7 steps, GroupNorm, ReLU and dropout, and halves
    the length.

    Args:
        input_shape: (T, C), steps and channels.
        hparams: reads `SEQUENCE_OPTIONS`.
    """

    options = SEQUENCE_OPTIONS

    def __init__(self, input_shape: Sequence[int], hparams: Mapping[str, Any]) -> None:
        super().__init__()
        hparams = with_defaults(SEQUENCE_OPTIONS, hparams)
        self.n_outputs, depth = hparams["sequence_width"], hparams["sequence_depth"]
        layers: list[nn.Module] = []
        for channels in [input_shape[1], *[self.n_outputs] * (depth - 1)]:
            layers += [
                nn.Conv1d(channels, self.n_outputs, kernel_size=7, stride=2, padding=3),
                nn.GroupNorm(4, self.n_outputs),
                nn.ReLU(),
                nn.Dropout(hparams["sequence_dropout"]),
            ]
        self.layers = nn.Sequential(*layers)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x.transpose(1, 2)).mean(dim=2)


@NETWORKS.register
class Transformer(Featurizer):
    """Self-attention of tokens with learned places, of which the first one sums up the others.

    `sequence_depth` layers of `sequence_width` with four heads, normalised before attention
    (Vaswani et al. 2017; Xiong et al. 2020). Padding, token 0, changes nothing.

    Args:
        data: `vocabulary`, the number of tokens with 0, and `length`, the most in a sequence.
        hparams: reads `SEQUENCE_OPTIONS`.
    """

    options = SEQUENCE_OPTIONS

    def __init__(self, data: Mapping[str, int], hparams: Mapping[str, Any]) -> None:
        super().__init__()
        hparams = with_defaults(SEQUENCE_OPTIONS, hparams)
        width, dropout = hparams["sequence_width"], hparams["sequence_dropout"]
        self.n_outputs = width
        # One token more, which is first, stands for the whole.
        self.tokens = nn.Embedding(data["vocabulary"] + 1, width)
        self.places = nn.Embedding(data["length"] + 1, width)
        layer = nn.TransformerEncoderLayer(
            width, 4, 2 * width, dropout, batch_first=True, norm_first=True
        )
        depth, norm = hparams["sequence_depth"], nn.LayerNorm(width)
        self.encoder = nn.TransformerEncoder(layer, depth, norm, enable_nested_tensor=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # (B, L)
        x = nn.functional.pad(x, (1, 0), value=self.tokens.num_embeddings - 1)
        z = self.tokens(x) + self.places.weight[: x.shape[1]]
        with sdpa_kernel(SDPBackend.MATH):  # the only kind with second derivatives
            return self.encoder(z, src_key_padding_mask=x == 0)[:, 0]
