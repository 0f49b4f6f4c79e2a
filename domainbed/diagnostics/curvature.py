"""Curvatures of a domain's risk in the parameters of a head, and how vectors of them compare.

The head maps (n, d) features of one domain to (n, C) logits, the risk is their mean cross-entropy
with the (n,) labels, and the P parameters are flattened in the order of `head.parameters()`. For
the cross-entropy the true Fisher matrix is the Gauss-Newton part of the Hessian, and all of it
where the head is linear (Kunstner et al. 2019, arXiv 1905.12558).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from domainbed.errors import UserError
from domainbed.gradients import (
    PerSampleLoss,
    gradient_means,
    gradient_second_moments,
    gradient_variances,
    per_sample_cross_entropy,
)
from domainbed.gradients.methods import flat_layers, is_linear_stack

Curvature = Callable[[nn.Module, torch.Tensor, torch.Tensor], torch.Tensor]

MOST_ROWS = 4000
"""Parameters up to which a Hessian is computed row by row, or as a whole."""

_PIECEWISE_LINEAR = (nn.Linear, nn.ReLU, nn.LeakyReLU, nn.Identity)


@torch.no_grad()
def gradient_mean(head: nn.Module, features: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """E_n g_n: (P,), the gradient of the risk."""
    return gradient_means(head, features, labels, [len(labels)])[0]


@torch.no_grad()
def gradient_variance(
    head: nn.Module, features: torch.Tensor, labels: torch.Tensor
) -> torch.Tensor:
    """E_n (g_n − E g)²: (P,), what Fishr matches across domains (Ramé et al. 2022)."""
    return gradient_variances(head, features, labels, [len(labels)])[0]


@torch.no_grad()
def empirical_fisher(
    head: nn.Module,
    features: torch.Tensor,
    labels: torch.Tensor,
    loss: PerSampleLoss = per_sample_cross_entropy,
) -> torch.Tensor:
    """E_n g_n²: (P,), the diagonal of the empirical Fisher matrix."""
    return gradient_second_moments(head, features, labels, [len(labels)], loss)[0]


@torch.no_grad()
def true_fisher(head: nn.Module, features: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """E_n Σ_c p_nc g_nc²: (P,), the diagonal of the Fisher matrix under the model's own labels.

    p_nc is the probability that the head gives to class c, g_nc the gradient if c were the label.
    """
    classes = head(features[:1]).size(1)
    per_class = [
        empirical_fisher(head, features, torch.full_like(labels, c), _weighted_by_root_probability)
        for c in range(classes)
    ]
    return torch.stack(per_class).sum(dim=0)


def hessian_diagonal(head: nn.Module, features: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The exact diagonal of the risk's Hessian: (P,).

    In closed form for one linear layer. In a stack of linear layers and ReLUs the logits are
    linear in every single weight, almost everywhere, so that the diagonal is the true Fisher's.
    For any other head, one backward pass per parameter.

    Raises:
        UserError: another head with more than `MOST_ROWS` parameters.
    """
    if type(head) is nn.Linear:
        return _linear_hessian_diagonal(head, features)
    if is_piecewise_linear(head):
        return true_fisher(head, features, labels)
    rows = _hessian_rows(head, features, labels, "hessian")
    return torch.stack([row[i] for i, row in enumerate(rows)])


def full_hessian(head: nn.Module, features: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The exact Hessian of the risk: (P, P), symmetric.

    Raises:
        UserError: the head has more than `MOST_ROWS` parameters.
    """
    _refuse_large(head, "full_hessian")
    if type(head) is nn.Linear:
        return _linear_full_hessian(head, features)
    hessian = torch.stack(list(_hessian_rows(head, features, labels, "full_hessian")))
    return (hessian + hessian.T) / 2


DIAGONAL_CURVATURES: dict[str, Curvature] = {
    "variance": gradient_variance,
    "empirical_fisher": empirical_fisher,
    "true_fisher": true_fisher,
    "hessian": hessian_diagonal,
}


@dataclass(frozen=True)
class Comparison:
    """One vector per domain, E of them, compared with each other.

    Attributes:
        norms: E Euclidean norms.
        distances: E × E Euclidean distances.
        cosines: E × E cosines of the angles between them.
    """

    norms: list[float]
    distances: list[list[float]]
    cosines: list[list[float]]


@dataclass(frozen=True)
class Closeness:
    """An estimate beside the exact curvature, for E domains.

    Attributes:
        cosine: of the angle between the two, over all parameters.
        correlation: Pearson's, over all parameters.
        relative_distance: ‖estimate − exact‖ / ‖exact‖.
    """

    cosine: list[float]
    correlation: list[float]
    relative_distance: list[float]


def compare(vectors: torch.Tensor) -> Comparison:
    """Compares the rows of (E, P) with each other."""
    # Squared gradients of a model that fits well are far below the usual floor of 1e-12.
    directions = F.normalize(vectors, dim=1, eps=torch.finfo(vectors.dtype).tiny)
    return Comparison(
        norms=vectors.norm(dim=1).tolist(),
        # Not by a matrix product, which loses the distance of vectors that are nearly the same.
        distances=torch.cdist(
            vectors, vectors, compute_mode="donot_use_mm_for_euclid_dist"
        ).tolist(),
        cosines=(directions @ directions.T).tolist(),
    )


def closeness(estimates: torch.Tensor, exact: torch.Tensor) -> Closeness:
    """Compares (E, P) with (E, P), row by row."""
    smallest = torch.finfo(exact.dtype).tiny
    distance = (estimates - exact).norm(dim=1) / exact.norm(dim=1).clamp_min(smallest)
    return Closeness(
        cosine=_cosines(estimates, exact).tolist(),
        correlation=_cosines(_centred(estimates), _centred(exact)).tolist(),
        relative_distance=distance.tolist(),
    )


def _cosines(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """(E,) cosines of rows; 0 where a row is 0. Curvatures may be tiny: normalised one by one."""
    smallest = torch.finfo(a.dtype).tiny
    return (F.normalize(a, dim=1, eps=smallest) * F.normalize(b, dim=1, eps=smallest)).sum(dim=1)


def _centred(vectors: torch.Tensor) -> torch.Tensor:
    return vectors - vectors.mean(dim=1, keepdim=True)


def is_piecewise_linear(head: nn.Module) -> bool:
    """Whether `head` is a sequence of linear layers and piecewise linear functions."""
    return is_linear_stack(head) and all(type(e) in _PIECEWISE_LINEAR for e in flat_layers(head))


def _weighted_by_root_probability(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """√p · CE, p a constant: the squares of its gradients are those of CE, weighted by p."""
    losses = per_sample_cross_entropy(logits, labels)
    return (-losses.detach() / 2).exp() * losses


@torch.no_grad()
def _linear_hessian_diagonal(head: nn.Linear, features: torch.Tensor) -> torch.Tensor:
    """E[p_c (1 − p_c) z_j²] for weights, E[p_c (1 − p_c)] for biases."""
    p = head(features).softmax(dim=1)
    spread = p * (1 - p)
    weights = (spread.T @ features.square() / len(features)).flatten()
    return weights if head.bias is None else torch.cat([weights, spread.mean(dim=0)])


@torch.no_grad()
def _linear_full_hessian(head: nn.Linear, features: torch.Tensor) -> torch.Tensor:
    """E[(diag(p) − p pᵀ) ⊗ z zᵀ], with a 1 at the end of z for the bias."""
    p = head(features).softmax(dim=1)
    classes, width = head.weight.shape
    z = features
    if head.bias is not None:
        z = torch.cat([features, features.new_ones(len(features), 1)], dim=1)
    blocks = features.new_empty(classes, z.size(1), classes, z.size(1))
    for c in range(classes):
        for k in range(classes):
            weight = p[:, c] * (float(c == k) - p[:, k])
            blocks[c, :, k] = (weight.unsqueeze(1) * z).T @ z / len(z)
    # From (class, input or bias) to the order of the parameters: all weights, then all biases.
    numbers = torch.arange(classes * z.size(1)).view(classes, -1)
    order = torch.cat([numbers[:, :width].flatten(), numbers[:, width:].flatten()])
    return blocks.view(len(order), -1)[order][:, order]


def _hessian_rows(
    head: nn.Module, features: torch.Tensor, labels: torch.Tensor, name: str
) -> Iterator[torch.Tensor]:
    """The rows of the Hessian, (P,) each. A loop: `vmap` gets some second derivatives wrong."""
    _refuse_large(head, name)
    parameters = list(head.parameters())
    risk = F.cross_entropy(head(features), labels)
    for entry in _flat(torch.autograd.grad(risk, parameters, create_graph=True)):
        yield _flat(
            torch.autograd.grad(entry, parameters, retain_graph=True, materialize_grads=True)
        )


def _refuse_large(head: nn.Module, name: str) -> None:
    count = sum(parameter.numel() for parameter in head.parameters())
    if count > MOST_ROWS:
        raise UserError(
            f"curvature {name!r} is computed for at most {MOST_ROWS:,} parameters, but the "
            f"classifier has {count:,}: choose 'true_fisher' or 'variance' instead"
        )


def _flat(tensors: tuple[torch.Tensor, ...]) -> torch.Tensor:
    return torch.cat([tensor.flatten() for tensor in tensors])
