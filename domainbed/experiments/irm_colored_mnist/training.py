"""Full-batch training of the MLP, one restart of one algorithm."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from domainbed.core.seeding import seed_hash
from domainbed.experiments.irm_colored_mnist.data import (
    Domain,
    data_seed,
    make_domains,
)
from domainbed.experiments.irm_colored_mnist.penalties import PENALTIES, ForwardPass
from domainbed.experiments.irm_colored_mnist.settings import Settings


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


def initialisation_seed(restart: int) -> int:
    """The seed of a restart's initial weights, whatever the algorithm."""
    return seed_hash("IRM Colored MNIST", "initialisation", restart)


def forward_pass(network: Network, domains: Sequence[Domain]) -> ForwardPass:
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
    network: Network, domains: Sequence[Domain], algorithm: str, settings: Settings, step: int
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
    domains: Sequence[Domain],
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
    network = Network(pixels, settings.hidden_dim, initialisation_seed(restart)).to(device)
    *training, test = domains
    train(network, training, algorithm, settings, on_step)
    return {
        "algorithm": algorithm,
        "restart": restart,
        "settings": settings.identity(),
        "seeds": {"data": data_seed(restart), "initialisation": initialisation_seed(restart)},
        "train_acc": sum(accuracy(network, d.colored(), d.labels) for d in training) / 2,
        "test_acc": accuracy(network, test.colored(), test.labels),
        "gray_test_acc": accuracy(network, test.gray(), test.labels),
        "seconds": time.monotonic() - began,
    }


@torch.no_grad()
def accuracy(network: nn.Module, x: torch.Tensor, labels: torch.Tensor) -> float:
    """The share of inputs (n, 2P) whose logit has the sign of the label, (n, 1)."""
    return ((network(x) > 0) == labels.bool()).sum().item() / len(labels)
