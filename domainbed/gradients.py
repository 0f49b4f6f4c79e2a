"""Variances of per-sample gradients; for linear layers without storing any of these gradients.

For a linear layer the gradient of sample n is an outer product δ_n ⊗ a_n of the gradient δ_n
with respect to the layer's output and the layer's input a_n. Its elementwise square is
δ_n² ⊗ a_n², so the sums over samples of gradients and of their squares are small matrix
products, and δ comes for all samples and layers from one backward pass through the head.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import nn
from torch.nn import functional as F

PerSampleLoss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]

# Layers that treat every sample alone, element by element, and have no parameters.
_ELEMENTWISE = (nn.ReLU, nn.LeakyReLU, nn.ELU, nn.GELU, nn.SiLU, nn.Tanh, nn.Sigmoid, nn.Identity)


def per_sample_cross_entropy(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The cross-entropy of every sample: (B, C) logits and (B,) labels to (B,) losses."""
    return F.cross_entropy(logits, labels, reduction="none")


def gradient_variances(
    head: nn.Module,
    features: torch.Tensor,
    labels: torch.Tensor,
    domain_sizes: Sequence[int],
    loss: PerSampleLoss = per_sample_cross_entropy,
) -> torch.Tensor:
    """Var(G_e) for every domain e: variances of the per-sample gradients of the head.

    Args:
        head: maps (B, d) features to (B, C) logits, without mixing samples.
        features: (B, d), the samples of all domains, one domain after the other.
        labels: (B,).
        domain_sizes: samples per domain, E numbers that sum to B.
        loss: logits and labels to (B,) losses.

    Returns:
        (E, P): for each domain the elementwise variance (divided by n, as in the code of Ramé et
        al. 2022) of the gradients with respect to the P parameters, flattened in the order of
        `head.parameters()`. Differentiable with respect to the features and the head.

    Raises:
        ValueError: the domain sizes do not sum to the number of samples.
    """
    if sum(domain_sizes) != len(features):
        raise ValueError(
            f"domain_sizes {list(domain_sizes)} sum to {sum(domain_sizes)}, "
            f"but there are {len(features)} samples"
        )
    statistics = _linear_stack_variances if is_linear_stack(head) else _materialised_variances
    differentiable = torch.is_grad_enabled()
    if not differentiable:
        features = features.detach()
    # Variances are differences of two moments, of which reduced precision would leave nothing.
    with torch.enable_grad(), torch.autocast(features.device.type, enabled=False):
        inputs = features.to(torch.promote_types(features.dtype, torch.float32))
        variances = statistics(head, inputs, labels, list(domain_sizes), loss)
    return variances if differentiable else variances.detach()


def is_linear_stack(head: nn.Module) -> bool:
    """Whether `head` is a linear layer, or a sequence of different linear and elementwise ones."""
    layers = _layers(head)
    # Exact types: a subclass (a parametrized Linear, say) may compute something else. A layer
    # that works in place would overwrite the output whose gradient is wanted.
    known = all(type(layer) in (nn.Linear, *_ELEMENTWISE) for layer in layers)
    in_place = any(getattr(layer, "inplace", False) for layer in layers)
    return known and not in_place and len(set(layers)) == len(layers)


def _layers(head: nn.Module) -> list[nn.Module]:
    return list(head) if isinstance(head, nn.Sequential) else [head]


def _linear_stack_variances(
    head: nn.Module,
    features: torch.Tensor,
    labels: torch.Tensor,
    domain_sizes: list[int],
    loss: PerSampleLoss,
) -> torch.Tensor:
    linears, inputs, outputs = [], [], []
    x = features if features.requires_grad else features.detach().requires_grad_()
    for layer in _layers(head):
        if isinstance(layer, nn.Linear):
            linears.append(layer)
            inputs.append(x)
        x = layer(x)
        if isinstance(layer, nn.Linear):
            outputs.append(x)
    # Samples do not mix, so the gradient of the sum holds the gradient of every sample.
    deltas = torch.autograd.grad(loss(x, labels).sum(), outputs, create_graph=True)
    per_layer = [
        torch.stack(
            [
                _outer_product_variance(delta_e, a_e, linear.bias is not None)
                for delta_e, a_e in zip(delta.split(domain_sizes), a.split(domain_sizes))
            ]
        )
        for linear, a, delta in zip(linears, inputs, deltas)
    ]
    return torch.cat(per_layer, dim=1)


def _outer_product_variance(delta: torch.Tensor, a: torch.Tensor, bias: bool) -> torch.Tensor:
    """The variance of δ_n ⊗ a_n over n: (n, out) and (n, in) to (out·in [+ out],).

    With δ = δ̄ + δ' and a = ā + a', the variance is that of δ̄ a' + δ' a, whose mean is
    E[δ' a']. E[g²] − E[g]² would be shorter, but loses a variance that is small beside the mean.
    """
    n, mean = len(a), delta.mean(dim=0)
    delta_c, a_c = delta - mean, a - a.mean(dim=0)
    second_moment = (
        torch.outer(mean.square(), a_c.square().mean(dim=0))
        + 2 * mean.unsqueeze(1) * (delta_c.T @ (a * a_c)) / n
        + delta_c.square().T @ a.square() / n
    )
    variance = (second_moment - (delta_c.T @ a_c / n).square()).flatten()
    return torch.cat([variance, delta_c.square().mean(dim=0)]) if bias else variance


def _materialised_variances(
    head: nn.Module,
    features: torch.Tensor,
    labels: torch.Tensor,
    domain_sizes: list[int],
    loss: PerSampleLoss,
) -> torch.Tensor:
    """For any other head: all gradients, one backward pass per sample and (B, P) in memory.

    A loop, because `torch.func.vmap` gets second derivatives wrong: that of the gradient of a
    LayerNorm's weight, by some percent (PyTorch 2.15).
    """
    parameters: dict[str, torch.Tensor] = dict(head.named_parameters())

    def sample_loss(
        parameters: dict[str, torch.Tensor], x: torch.Tensor, y: torch.Tensor
    ) -> torch.Tensor:
        logits = torch.func.functional_call(head, parameters, (x.unsqueeze(0),))
        return loss(logits, y.unsqueeze(0)).sum()

    sample_gradients = torch.func.grad(sample_loss)
    rows = []
    for x, y in zip(features, labels):
        gradients = sample_gradients(parameters, x, y)
        rows.append(torch.cat([gradients[name].flatten() for name in parameters]))
    return torch.stack(
        [g.var(dim=0, unbiased=False) for g in torch.stack(rows).split(domain_sizes)]
    )
