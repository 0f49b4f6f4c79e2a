"""A network from outside: the pixels themselves, scaled."""

import torch
from torch import nn


class Flat(nn.Module):
    """Inputs as vectors, times one number that is learned."""

    def __init__(self, input_shape, hparams):
        super().__init__()
        self.n_outputs = input_shape[0] * input_shape[1] * input_shape[2]
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, x):
        return self.scale * x.flatten(1)
