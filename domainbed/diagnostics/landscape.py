"""Risks of domains at weights around those of a trained network: along a line, and on a plane."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F

from domainbed.core.minibatch import Minibatch

Parameters = Mapping[str, torch.Tensor]

LINE = [i / 20 for i in range(-10, 31)]
PLANE_X = [i / 10 for i in range(-5, 16)]
PLANE_Y = [i / 10 for i in range(-10, 11)]


@dataclass(frozen=True)
class Line:
    """Risks along a straight line through the weights before (0) and after training (1).

    Attributes:
        positions: points on the line.
        risks: for each domain one risk per position.
    """

    positions: list[float]
    risks: list[list[float]]


@dataclass(frozen=True)
class Plane:
    """Risks on a plane through the trained weights of the classifier, at (1, 0).

    Attributes:
        x: coordinates from the weights before training, at 0, to those after, at 1.
        y: coordinates along a random direction.
        risks: for each domain one row per y of one risk per x.
    """

    x: list[float]
    y: list[float]
    risks: list[list[list[float]]]


@dataclass(frozen=True)
class Landscape:
    """Risks of two domains around the weights: of the network, and of the classifier alone."""

    domains: list[int]
    line: Line
    plane: Plane


def parameters_of(network: nn.Module) -> dict[str, torch.Tensor]:
    """A copy of a network's parameters as they are now."""
    return {name: p.detach().clone() for name, p in network.named_parameters()}


@torch.no_grad()
def risks_along(
    network: nn.Module,
    start: Parameters,
    end: Parameters,
    positions: Sequence[float],
    batches: Iterable[Minibatch],
) -> list[float]:
    """The risk at (1 − t) · start + t · end for every t in `positions`; reads the images once.

    Args:
        network: maps (B, *input_shape) to (B, C); its buffers are used as they are.
        start: the parameters at t = 0, by name.
        end: the parameters at t = 1, by name.
        positions: the values of t.
        batches: pairs of inputs and labels.
    """
    sums, count = torch.zeros(len(positions), dtype=torch.float64), 0
    for x, y in batches:
        count += len(y)
        for number, t in enumerate(positions):
            weights = {name: torch.lerp(start[name], end[name], t) for name in start}
            logits = functional_call(network, weights, (x,))
            sums[number] += F.cross_entropy(logits, y, reduction="sum").item()
    return (sums / count).tolist()


def plane_of(
    before: nn.Module,
    after: nn.Module,
    domains: Sequence[tuple[torch.Tensor, torch.Tensor]],
    seed: int,
) -> Plane:
    """The risks of domains on a plane through the weights of a head before and after training.

    Args:
        before: the head with its initial weights.
        after: the trained head, which maps (n, d) features to (n, C) logits.
        domains: (n, d) features, of the trained featurizer, and (n,) labels of each.
        seed: of the random direction.
    """
    start, end = parameters_of(before), parameters_of(after)
    step = {name: end[name] - start[name] for name in start}
    aside = filter_normalised_direction(end, seed)
    risks = [risks_on_plane(after, start, step, aside, PLANE_X, PLANE_Y, *pair) for pair in domains]
    return Plane(PLANE_X, PLANE_Y, risks)


@torch.no_grad()
def risks_on_plane(
    head: nn.Module,
    origin: Parameters,
    along_x: Parameters,
    along_y: Parameters,
    x: Sequence[float],
    y: Sequence[float],
    features: torch.Tensor,
    labels: torch.Tensor,
) -> list[list[float]]:
    """The risk at origin + x · along_x + y · along_y: for each y a row of one risk per x.

    Args:
        head: maps (n, d) features to (n, C) logits.
        origin: parameters of the head, by name, as are the two directions.
        features: (n, d).
        labels: (n,).
    """

    def risk(a: float, b: float) -> float:
        weights = {name: origin[name] + a * along_x[name] + b * along_y[name] for name in origin}
        return F.cross_entropy(functional_call(head, weights, (features,)), labels).item()

    return [[risk(a, b) for a in x] for b in y]


def filter_normalised_direction(weights: Parameters, seed: int) -> dict[str, torch.Tensor]:
    """A random direction whose rows are as long as the weights' rows, and 0 for biases.

    Li et al. 2018, "Visualizing the Loss Landscape of Neural Nets", section 4.
    """
    generator = torch.Generator().manual_seed(seed)
    direction = {}
    for name, weight in weights.items():
        drawn = torch.randn(weight.shape, generator=generator, dtype=weight.dtype)
        if weight.dim() < 2:
            direction[name] = torch.zeros_like(weight)
        else:
            rows = drawn.flatten(1)
            lengths = weight.flatten(1).norm(dim=1, keepdim=True)
            direction[name] = (rows / rows.norm(dim=1, keepdim=True) * lengths).view_as(weight)
    return direction
