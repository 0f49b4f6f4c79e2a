"""Statistics of per-sample gradients: means, second moments, variances, covariances by domain.

What Fishr and the diagnostics share. For linear layers no gradient of a sample is ever stored;
for other networks all of them are. One of the `methods` is chosen by itself; all give the same
values and the same derivatives.
"""

from collections.abc import Callable, Sequence

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.batchnorm import _BatchNorm

from domainbed.core.device import full_precision
from domainbed.gradients.methods import (
    PerSampleLoss,
    backpack_gradients,
    backpack_suits,
    closed_form_gradients,
    closed_form_statistic,
    func_gradients,
    is_linear_stack,
    loop_gradients,
)

METHODS = ("auto", "closed_form", "backpack", "func", "loop")
MOST_COVARIANCE_PARAMETERS = 4096


def per_sample_cross_entropy(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The cross-entropy of every sample: (B, C) logits and (B,) labels to (B,) losses."""
    return F.cross_entropy(logits, labels, reduction="none")


def per_sample_binary_cross_entropy(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The binary cross-entropy of every sample, a mean over its outputs if there are several.

    Logits (B,) or (B, C), and as many labels of 0 or 1 in any shape, to (B,) losses.
    """
    targets = labels.reshape(logits.shape).to(logits.dtype)
    losses = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    return losses.reshape(len(logits), -1).mean(dim=1)


_LOSSES: dict[str, PerSampleLoss] = {
    "cross_entropy": per_sample_cross_entropy,
    "bce_with_logits": per_sample_binary_cross_entropy,
}


def gradient_variances(
    head: nn.Module,
    features: torch.Tensor,
    labels: torch.Tensor,
    domain_sizes: Sequence[int],
    loss: str | PerSampleLoss = "cross_entropy",
    *,
    method: str = "auto",
    parameters: Sequence[str] | None = None,
) -> torch.Tensor:
    """Var(G_e) for every domain e: variances of the per-sample gradients of the head.

    Args:
        head: maps (B, d) features to (B, C) logits, without mixing samples; a whole network and
            its inputs (B, …) are fine as well.
        features: (B, d), the samples of all domains, one domain after the other.
        labels: (B,), or what the loss takes.
        domain_sizes: samples per domain, E numbers that sum to B.
        loss: "cross_entropy", "bce_with_logits", or a function of logits and labels to (B,)
            losses.
        method: "closed_form" (stacks of linear and elementwise layers), "backpack", "func"
            (torch.func's vmap of grad), "loop" (one backward pass a sample), or "auto": the first
            of these that can.
        parameters: names from `head.named_parameters()`; None takes all.

    Returns:
        (E, P): for each domain the elementwise variance (divided by n, as in the code of Ramé et
        al. 2022) of the gradients with respect to the P parameters, flattened in the order of
        `head.parameters()`. Differentiable with respect to the features and the head.

    Raises:
        ValueError: the domain sizes do not sum to the number of samples, a name or a method
            that does not exist, a method that cannot do this head, or a head that mixes samples
            or has no float32 or float64 parameters.
    """
    return _statistic("variance", head, features, labels, domain_sizes, loss, method, parameters)


def gradient_means(
    head: nn.Module,
    features: torch.Tensor,
    labels: torch.Tensor,
    domain_sizes: Sequence[int],
    loss: str | PerSampleLoss = "cross_entropy",
    *,
    method: str = "auto",
    parameters: Sequence[str] | None = None,
) -> torch.Tensor:
    """(E, P) means of the per-sample gradients by domain; see `gradient_variances`."""
    return _statistic("mean", head, features, labels, domain_sizes, loss, method, parameters)


def gradient_second_moments(
    head: nn.Module,
    features: torch.Tensor,
    labels: torch.Tensor,
    domain_sizes: Sequence[int],
    loss: str | PerSampleLoss = "cross_entropy",
    *,
    method: str = "auto",
    parameters: Sequence[str] | None = None,
) -> torch.Tensor:
    """(E, P) means of the squared per-sample gradients, not centred; see `gradient_variances`.

    With the labels of the data this is the diagonal of the empirical Fisher matrix.
    """
    return _statistic(
        "second_moment", head, features, labels, domain_sizes, loss, method, parameters
    )


def gradient_covariances(
    head: nn.Module,
    features: torch.Tensor,
    labels: torch.Tensor,
    domain_sizes: Sequence[int],
    loss: str | PerSampleLoss = "cross_entropy",
    *,
    method: str = "auto",
    parameters: Sequence[str] | None = None,
) -> torch.Tensor:
    """(E, P, P) covariances (divided by n) of the gradients; see `gradient_variances`.

    Raises:
        ValueError: as there, or more than 4,096 parameters.
    """
    return _statistic("covariance", head, features, labels, domain_sizes, loss, method, parameters)


_OF_ROWS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "mean": lambda g: g.mean(dim=0),
    "second_moment": lambda g: g.square().mean(dim=0),
    "variance": lambda g: g.var(dim=0, unbiased=False),
    "covariance": lambda g: torch.cov(g.T, correction=0).reshape(g.shape[1], g.shape[1]),
}


_GRADIENTS: dict[str, Callable[..., torch.Tensor]] = {
    "closed_form": closed_form_gradients,
    "backpack": backpack_gradients,
    "func": func_gradients,
    "loop": loop_gradients,
}
"""The functions that store the gradients of all samples, (B, P)."""


def _statistic(
    statistic: str,
    head: nn.Module,
    features: torch.Tensor,
    labels: torch.Tensor,
    domain_sizes: Sequence[int],
    loss: str | PerSampleLoss,
    method: str,
    parameters: Sequence[str] | None,
) -> torch.Tensor:
    """Checks the arguments, chooses the method and keeps full precision."""
    if not callable(loss):
        if loss not in _LOSSES:
            raise ValueError(f"loss is {loss!r}: expected {', '.join(_LOSSES)}, or a function")
        loss = _LOSSES[loss]
    sizes, names = list(domain_sizes), _selected(head, parameters)
    _check(statistic, head, features, sizes, names)
    method = _choose(head, features, names, method)
    differentiable = torch.is_grad_enabled()
    with (
        # Differentiable twice, whatever mode the caller is in.
        torch.inference_mode(False),
        torch.enable_grad(),
        # Variances are differences of two moments: reduced precision would leave nothing of them.
        full_precision(features.device),
        # Fused attention has no second derivative.
        sdpa_kernel(SDPBackend.MATH),
    ):
        features, labels = (t.clone() if t.is_inference() else t for t in (features, labels))
        if not differentiable:
            features = features.detach()
        if features.is_floating_point():
            features = features.to(torch.promote_types(features.dtype, torch.float32))
        if method == "closed_form" and statistic != "covariance":
            result = closed_form_statistic(statistic, head, features, labels, sizes, loss, names)
        else:
            rows = _GRADIENTS[method](head, features, labels, loss, names)
            result = torch.stack([_OF_ROWS[statistic](g) for g in rows.split(sizes)])
    return result if differentiable else result.detach()


def _choose(head: nn.Module, features: torch.Tensor, names: list[str], method: str) -> str:
    if method not in METHODS:
        raise ValueError(f"method is {method!r}: expected one of {', '.join(METHODS)}")
    vectors = features.dim() == 2 and features.is_floating_point()
    closed = vectors and is_linear_stack(head)
    if method == "closed_form" and not closed:
        raise ValueError(
            "method 'closed_form' needs features (B, d) and a sequence of different linear and "
            f"elementwise layers without hooks, but the head is {head}"
        )
    if method != "auto":
        return method
    if closed:
        return "closed_form"
    suited = features.is_floating_point() and backpack_suits(head, names)
    return "backpack" if suited else "func"


def _selected(head: nn.Module, parameters: Sequence[str] | None) -> list[str]:
    known = [name for name, _ in head.named_parameters()]
    if parameters is None:
        return known
    parameters = [parameters] if isinstance(parameters, str) else parameters
    unknown = sorted(set(parameters) - set(known))
    if unknown:
        raise ValueError(f"no parameter {unknown[0]!r} in the head, which has {', '.join(known)}")
    return [name for name in known if name in set(parameters)]


def _check(
    statistic: str,
    head: nn.Module,
    features: torch.Tensor,
    sizes: list[int],
    names: list[str],
) -> None:
    if sum(sizes) != len(features) or min(sizes, default=0) < 1:
        raise ValueError(
            f"domain_sizes {sizes} sum to {sum(sizes)}, but there are {len(features)} samples; "
            "each domain needs one or more"
        )
    chosen = {name: p for name, p in head.named_parameters() if name in names}
    if not chosen:
        raise ValueError("the head has no parameters, or none were chosen")
    for name, parameter in chosen.items():
        if parameter.dtype not in (torch.float32, torch.float64):
            raise ValueError(
                f"parameter {name!r} is {parameter.dtype}: gradient statistics need float32 or "
                "float64; autocast computes the rest in reduced precision"
            )
    if any(isinstance(m, _BatchNorm) and m.training for m in head.modules()):
        raise ValueError("the head has a batch norm in training mode, which mixes the samples")
    width = sum(parameter.numel() for parameter in chosen.values())
    if statistic == "covariance" and width > MOST_COVARIANCE_PARAMETERS:
        raise ValueError(
            f"full covariances of {width:,} parameters would have {width**2:,} entries a domain: "
            f"choose at most {MOST_COVARIANCE_PARAMETERS:,} parameters, or variances"
        )


__all__ = [
    "METHODS",
    "MOST_COVARIANCE_PARAMETERS",
    "PerSampleLoss",
    "gradient_covariances",
    "gradient_means",
    "gradient_second_moments",
    "gradient_variances",
    "per_sample_binary_cross_entropy",
    "per_sample_cross_entropy",
]
