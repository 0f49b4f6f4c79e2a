"""One restart of one algorithm on Colored MNIST, as Arjovsky et al. (2019, section 5.1) made it.

Two training domains and one test domain, an MLP that is trained on full batches, and the penalties
of the algorithms, for one logit per image and two domains.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from domainbed.algorithms.fishr import fishr_penalty
from domainbed.algorithms.irm import scale_gradient
from domainbed.algorithms.vrex import vrex_penalty
from domainbed.core.registry import Registry
from domainbed.core.seeding import seed_hash
from domainbed.datasets import DATASETS
from domainbed.errors import UserError
from domainbed.experiments.irm_colored_mnist.settings import Settings
from domainbed.gradients import (
    gradient_covariances,
    gradient_second_moments,
    gradient_variances,
)

# ---- the data ----

COLOR_FLIPS = (0.2, 0.1, 0.9)
"""How often the colour differs from the label: in the two training domains and the test domain."""

_MNIST_TRAINING_IMAGES = 60_000
_BLOCK = 1024  # images; the activations of so many stay in a core's cache


@dataclass(frozen=True)
class ColoredImages:
    """The images of a domain, those of colour 0 first.

    An image shows its digit in one of two channels, and the other is zero. So it is kept as one
    grey image and a colour, and the images are sorted by colour: a network's first layer then
    multiplies grey images by half of its weights, where it would multiply zeros by the other half.

    Attributes:
        images: (n, P) pixels of the grey images, in [0, 1].
        labels: (n, 1), 0 or 1, in the type of the images.
        color_sizes: how many images are of colour 0 and of colour 1; they sum to n.
    """

    images: torch.Tensor
    labels: torch.Tensor
    color_sizes: tuple[int, int]

    def blocks(self) -> list[tuple[int, torch.Tensor]]:
        """Colours and the grey images of that colour, (≤ 1024, P) each, in the domain's order."""
        of_colors = self.images.split(list(self.color_sizes))
        return [(c, block) for c, images in enumerate(of_colors) for block in images.split(_BLOCK)]

    def colored(self) -> torch.Tensor:
        """(n, 2P): the pixels of both channels, of which the channel 1 − colour is zero."""
        n, pixels = self.images.shape
        first = self.color_sizes[0]
        colored = self.images.new_zeros(n, 2 * pixels)
        colored[:first, :pixels] = self.images[:first]
        colored[first:, pixels:] = self.images[first:]
        return colored

    def gray(self) -> torch.Tensor:
        """(n, 2P): the same image in both channels."""
        return self.images.repeat(1, 2)

    def to(self, target: torch.device | torch.dtype | str) -> ColoredImages:
        """The same domain on another device, or in another type."""
        return ColoredImages(self.images.to(target), self.labels.to(target), self.color_sizes)


@cache  # a worker process reads the files once for all its restarts
def read_images(data_dir: str) -> tuple[torch.Tensor, torch.Tensor]:
    """MNIST's training images, every second pixel: (60000, 14, 14) uint8, and (60000,) digits.

    Raises:
        UserError: the files are not there and cannot be downloaded.
    """
    images, digits = DATASETS["ColoredMNIST"].read(data_dir)
    images, digits = images[:_MNIST_TRAINING_IMAGES], digits[:_MNIST_TRAINING_IMAGES]
    return images[:, ::2, ::2].contiguous(), digits


def seed_of(what: str, restart: int) -> int:
    """A seed of a restart, whatever the algorithm.

    Args:
        what: "data" (shuffle, label noise and colours), or "initialisation" of the weights.
        restart: its number.
    """
    return seed_hash("IRM Colored MNIST", what, restart)


def make_domains(
    images: torch.Tensor, digits: torch.Tensor, restart: int, label_flip: float = 0.25
) -> list[ColoredImages]:
    """Two training domains and the test domain.

    The last sixth of the images (10,000 of MNIST's 60,000) is the test domain; the others are
    shuffled and alternate between the two training domains. y = 1 if digit < 5, flipped with
    probability `label_flip`; colour = y, flipped with the domain's probability.

    Args:
        images: (N, H, W) uint8.
        digits: (N,).
        restart: decides the random draws.
        label_flip: 0.25 in table 2 of Ramé et al. 2022, 0 in their table 5.

    Raises:
        UserError: fewer than six images, which do not fill three domains.
    """
    if len(images) < 6:
        raise UserError(f"{len(images)} images: expected at least 6, for three domains")
    generator = torch.Generator().manual_seed(seed_of("data", restart))
    training = len(images) - len(images) // 6
    order = torch.randperm(training, generator=generator)
    members = (order[::2], order[1::2], torch.arange(training, len(images)))
    return [
        _color(images[indices], digits[indices], label_flip, color_flip, generator)
        for indices, color_flip in zip(members, COLOR_FLIPS, strict=True)
    ]


def _color(
    images: torch.Tensor,
    digits: torch.Tensor,
    label_flip: float,
    color_flip: float,
    generator: torch.Generator,
) -> ColoredImages:
    def flip(bits: torch.Tensor, probability: float) -> torch.Tensor:
        return bits ^ (torch.rand(len(bits), generator=generator) < probability)

    labels = flip(digits < 5, label_flip)
    colors = flip(labels, color_flip)
    order = colors.int().argsort(stable=True)
    ones = int(colors.sum())
    return ColoredImages(
        images[order].flatten(1).div(255),
        labels[order].float().unsqueeze(1),
        (len(colors) - ones, ones),
    )


# ---- the penalties ----

PENALTIES: Registry[Callable[[ForwardPass], torch.Tensor | None]] = Registry("algorithm")
"""By algorithm: a function from a `ForwardPass` to a scalar, or to None if there is no penalty."""


@dataclass(frozen=True)
class ForwardPass:
    """The network's outputs for all training images, one domain after the other.

    Attributes:
        features: (B, d) in all, what the last layer reads, in blocks.
        logits: (B, 1).
        labels: (B, 1), 0 or 1, in the type of the logits.
        domain_sizes: images per domain, which sum to B.
        classifier: the last layer.
    """

    features: Sequence[torch.Tensor]
    logits: torch.Tensor
    labels: torch.Tensor
    domain_sizes: list[int]
    classifier: nn.Module

    def per_domain(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Logits and labels of each domain."""
        sizes = self.domain_sizes
        return list(zip(self.logits.split(sizes), self.labels.split(sizes), strict=True))

    def risks(self) -> torch.Tensor:
        """(E,) mean binary cross-entropies."""
        return torch.stack(
            [F.binary_cross_entropy_with_logits(*pair) for pair in self.per_domain()]
        )


@PENALTIES.register(name="ERM")
def no_penalty(forward: ForwardPass) -> None:
    """ERM minimises the mean risk alone."""


@PENALTIES.register(name="IRM")
def irm(forward: ForwardPass) -> torch.Tensor:
    """mean_e g_e², g_e the derivative of L_e with respect to a scale of the logits.

    Arjovsky et al. 2019, equation IRMv1. One logit l is the two logits (0, l).
    """
    gradients = [
        scale_gradient(F.pad(logits, (1, 0)), labels.squeeze(1).long())
        for logits, labels in forward.per_domain()
    ]
    return torch.stack(gradients).square().mean()


@PENALTIES.register(name="VREx")
def vrex(forward: ForwardPass) -> torch.Tensor:
    """(L_0 − L_1)²: four times the variance of two risks (Krueger et al. 2021, equation 8)."""
    return 4 * vrex_penalty(forward.risks())


def _statistics_penalty(
    statistics: Callable[..., torch.Tensor],
) -> Callable[[ForwardPass], torch.Tensor]:
    """Σ_e ‖s_e − s̄‖², s_e statistics of the last layer's gradients in a domain."""

    def penalty(forward: ForwardPass) -> torch.Tensor:
        features = torch.cat(list(forward.features))
        values = statistics(
            forward.classifier, features, forward.labels, forward.domain_sizes,
            loss="bce_with_logits",
        )  # fmt: skip
        return fishr_penalty(values, "sum") * len(values)  # a sum over the domains as well

    return penalty


# Variances (Ramé et al. 2022, equation 4), their variant of the covariances in the Frobenius norm,
# and the mean squares.
PENALTIES.register(_statistics_penalty(gradient_variances), name="Fishr")
PENALTIES.register(_statistics_penalty(gradient_covariances), name="Fishr-offdiagonal")
PENALTIES.register(_statistics_penalty(gradient_second_moments), name="Fishr-uncentred")


# ---- the network and its training ----


class Network(nn.Module):
    """2P-d-d-1 with ReLU; Xavier-uniform weights and zero biases.

    Args:
        pixels: P, of a grey image; the inputs are the pixels of two channels.
        hidden_dim: d.
        seed: of the initial weights.
    """

    def __init__(self, pixels: int, hidden_dim: int, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.first = _linear(2 * pixels, hidden_dim, generator)
        self.second = _linear(hidden_dim, hidden_dim, generator)
        self.classifier = _linear(hidden_dim, 1, generator)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits: (n, 2P) pixels of both channels to (n, 1)."""
        hidden = F.relu(self.first(x))
        return self.classifier(F.relu(self.second(hidden)))

    def features(self, color: int, images: torch.Tensor) -> torch.Tensor:
        """What the classifier reads: (n, P) grey images, all of one colour, to (n, d)."""
        weight = self.first.weight.chunk(2, dim=1)[color]
        hidden = F.linear(images, weight, self.first.bias).relu_()
        return self.second(hidden).relu_()


def _linear(inputs: int, outputs: int, generator: torch.Generator) -> nn.Linear:
    linear = nn.utils.skip_init(nn.Linear, inputs, outputs)
    nn.init.xavier_uniform_(linear.weight, generator=generator)
    nn.init.zeros_(linear.bias)
    return linear


def forward_pass(network: Network, domains: Sequence[ColoredImages]) -> ForwardPass:
    """The network's features and logits of all images of `domains`."""
    blocks = [block for domain in domains for block in domain.blocks()]
    features = [network.features(color, images) for color, images in blocks]
    return ForwardPass(
        features,
        torch.cat([network.classifier(block) for block in features]),
        torch.cat([domain.labels for domain in domains]),
        [len(domain.labels) for domain in domains],
        network.classifier,
    )


def objective(
    network: Network,
    domains: Sequence[ColoredImages],
    algorithm: str,
    settings: Settings,
    step: int,
) -> torch.Tensor:
    """mean_e L_e + l2 · ‖θ‖² + λ · penalty, the whole divided by λ where λ > 1.

    θ are all weights and biases; λ is 1 before `settings.anneal_step` and
    `settings.penalty_weight` from it on. ERM has no penalty, so nothing is divided.
    """
    forward = forward_pass(network, domains)
    norm = torch.stack([parameter.square().sum() for parameter in network.parameters()]).sum()
    loss = forward.risks().mean() + settings.l2_weight * norm
    penalty = PENALTIES[algorithm](forward)
    if penalty is None:
        return loss
    weight = settings.penalty_weight if step >= settings.anneal_step else 1.0
    return (loss + weight * penalty) / max(1.0, weight)


def train(
    network: Network,
    domains: Sequence[ColoredImages],
    algorithm: str,
    settings: Settings,
    on_step: Callable[[int], None] = lambda steps: None,
) -> None:
    """Updates `network` on the two training domains; calls `on_step` with the updates made."""
    optimizer = torch.optim.Adam(network.parameters(), lr=settings.lr)
    for step in range(settings.steps):
        optimizer.zero_grad()
        objective(network, domains, algorithm, settings, step).backward()
        optimizer.step()
        on_step(step + 1)


def run_restart(
    settings: Settings,
    algorithm: str,
    restart: int,
    images: torch.Tensor,
    digits: torch.Tensor,
    device: torch.device | str = "cpu",
    on_step: Callable[[int], None] = lambda steps: None,
) -> dict[str, Any]:
    """Trains one algorithm once. The restart alone decides the data and the initial weights.

    Args:
        settings: of the experiment.
        algorithm: a name of `PENALTIES`.
        restart: from 0 on.
        images: (N, H, W) uint8, the last sixth for testing; see `read_images`.
        digits: (N,).
        device: where to compute.
        on_step: called after every update with the number of updates made.

    Returns:
        algorithm, restart, the settings, the seeds, seconds, and after the last update
        `train_acc` (the mean of the two training domains), `test_acc` and `gray_test_acc`, in
        [0, 1].

    Raises:
        UserError: no such algorithm, or too few images.
    """
    began = time.monotonic()
    domains = [d.to(device) for d in make_domains(images, digits, restart, settings.label_flip)]
    pixels = domains[0].images.shape[1]
    seeds = {what: seed_of(what, restart) for what in ("data", "initialisation")}
    network = Network(pixels, settings.hidden_dim, seeds["initialisation"]).to(device)
    *training, test = domains
    train(network, training, algorithm, settings, on_step)
    return {
        "algorithm": algorithm,
        "restart": restart,
        "settings": settings.identity(),
        "seeds": seeds,
        "train_acc": sum(accuracy(network, d.colored(), d.labels) for d in training) / 2,
        "test_acc": accuracy(network, test.colored(), test.labels),
        "gray_test_acc": accuracy(network, test.gray(), test.labels),
        "seconds": time.monotonic() - began,
    }


@torch.no_grad()
def accuracy(network: nn.Module, x: torch.Tensor, labels: torch.Tensor) -> float:
    """The share of inputs (n, 2P) whose logit has the sign of the label, (n, 1)."""
    return ((network(x) > 0) == labels.bool()).sum().item() / len(labels)
