"""A dataset from outside, written as for DomainBed: it draws from PyTorch's global source."""

import torch
from torch.utils.data import TensorDataset

from domainbed.datasets import MultipleDomainDataset


class TwoBlobs(MultipleDomainDataset):
    """Three domains of 4×4 images, whose brightness tells the class."""

    ENVIRONMENTS = ("dim", "normal", "bright")
    N_STEPS = 21
    CHECKPOINT_FREQ = 10
    network, space = "flat", "small"

    def __init__(self, root, test_envs, hparams):
        self.input_shape, self.num_classes = (1, 4, 4), 2
        self.datasets = [self.domain(brightness) for brightness in (0.5, 1.0, 1.5)]

    def domain(self, brightness):
        labels = torch.arange(30) % 2
        noise = 0.1 * torch.rand(30, 1, 4, 4)
        return TensorDataset(brightness * (labels[:, None, None, None] + noise), labels)
