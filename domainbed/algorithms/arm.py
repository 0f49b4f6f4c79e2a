"""Adaptive risk minimisation: images get an extra channel that their batch has in common."""

from collections import OrderedDict
from collections.abc import Sequence
from contextlib import nullcontext

import torch
from torch import nn

from domainbed.algorithms.base import (
    DOMAINBED,
    PAPER,
    Minibatches,
    concatenate,
    domain_sizes,
    register_algorithm,
    two_readings,
)
from domainbed.algorithms.erm import ERM, ForwardPass
from domainbed.config.dimensions import DatasetFacts, Dimension, Fixed
from domainbed.errors import UserError
from domainbed.networks import is_shape


def new_context_net(channels: int) -> nn.Sequential:
    """κ: three 5×5 convolutions with batch norm and ReLU between, (B, c, H, W) to (B, 1, H, W).

    Zhang et al. 2021 (arXiv 2007.02931). Parameter names are those of DomainBed's class, so that
    its saved models load.
    """
    layers = nn.Sequential(
        nn.Conv2d(channels, 64, 5, padding=2),
        nn.BatchNorm2d(64),
        nn.ReLU(),
        nn.Conv2d(64, 64, 5, padding=2),
        nn.BatchNorm2d(64),
        nn.ReLU(),
        nn.Conv2d(64, 1, 5, padding=2),
    )
    return nn.Sequential(OrderedDict(context_net=layers))


def with_context(x: torch.Tensor, maps: torch.Tensor, sizes: Sequence[int]) -> torch.Tensor:
    """Appends to each image, as its last channel, the mean map of its group.

    Args:
        x: (N, c, H, W) images, group by group.
        maps: (N, 1, H, W), one of each image.
        sizes: of the groups; they sum to N.

    Returns:
        (N, c + 1, H, W).
    """
    groups = maps.to(x.dtype).split(list(sizes))
    context = torch.cat([group.mean(dim=0, keepdim=True).expand_as(group) for group in groups])
    return torch.cat([x, context], dim=1)


def group_sizes(n: int, size: int) -> list[int]:
    """n images in groups of `size`, if it divides n; else all in one."""
    return [size] * (n // size) if n % size == 0 else [n]


def _search_space(facts: DatasetFacts) -> dict[str, Dimension]:
    if facts.small_images:
        return {}
    return {"batch_size": Fixed(8, "images per training domain and step, and per group", least=1)}


@register_algorithm
class ARM(ERM):
    """ARM-CML: a contextual network adapts the predictions to unlabeled images of one domain.

        c = mean_n κ(x_n) over the K images of a group                          (1, H, W)
        loss = CE(w(φ([x_n, c])), y_n) over all images

    κ: images to maps (1, H, W); φ takes one channel more than the images have (Zhang et al. 2021,
    the contextual meta-learner). In training a group is a domain's minibatch, in a prediction
    `batch_size` images of the batch, if that divides it, else all of it: so predictions are of
    batches of one domain.

    With `fidelity: paper` κ is trained with φ and w, as in the authors' code. In DomainBed, and by
    default, no optimizer has κ, which stays as it was drawn, and the groups of the training
    minibatches are made as those of predictions, which differs where these are not of
    `batch_size` images each. κ has batch norm, which sees all domains at once.

    Attributes:
        context_net: κ.
    """

    paper = (
        "Zhang, Marklund, Dhawan, Gupta, Levine, Finn, Adaptive Risk Minimization: Learning to "
        "Adapt to Domain Shift, NeurIPS 2021, arXiv 2007.02931"
    )
    search_space = staticmethod(_search_space)
    options = two_readings(DOMAINBED, "DomainBed: the contextual network is random, never trained")
    needs_images = True
    predicts_batches = True
    needs_classes = False

    def build(self) -> None:
        if not is_shape(self.input_shape) or len(self.input_shape) != 3:
            raise UserError(
                f"{type(self).__name__} needs images, (channels, height, width), but the inputs "
                f"have the shape {self.input_shape}: choose another algorithm"
            )
        channels, height, width = self.input_shape
        self.input_shape = (channels + 1, height, width)  # of the images with their context
        super().build()
        self.context_net = new_context_net(channels)
        self.trains_context = self.option("fidelity") == PAPER
        if self.trains_context:
            self.optimizer = self.new_optimizer(self.network, self.context_net)

    def forward_pass(self, minibatches: Minibatches) -> ForwardPass:
        """Of the images with their context."""
        self.require_samples(minibatches)
        x, y = concatenate(minibatches)
        sizes = domain_sizes(minibatches)
        groups = sizes if self.trains_context else group_sizes(len(x), self.hparams["batch_size"])
        pairs = list(zip(self.adapted(x, groups).split(sizes), y.split(sizes)))
        return ForwardPass(pairs, self.featurizer, self.classifier, label_type=self.label_type)

    def adapted(self, x: torch.Tensor, sizes: Sequence[int]) -> torch.Tensor:
        """(N, c, H, W) images in groups to (N, c + 1, H, W)."""
        with nullcontext() if self.trains_context else torch.no_grad():
            return with_context(x, self.context_net(x), sizes)

    def predict(self, x: torch.Tensor) -> torch.Tensor:
        """Of a batch of one domain: (B, *input_shape) to (B, C)."""
        return self.network(self.adapted(x, group_sizes(len(x), self.hparams["batch_size"])))
