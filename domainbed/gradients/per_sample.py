"""The gradients of all samples, stored, for networks that have no closed form.

Three ways to (B, P) gradients, of which all are differentiable once more.
"""

from __future__ import annotations

import copy
import importlib.util
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from domainbed.gradients.closed_form import PerSampleLoss, are_plain, flat_layers, summed

# Layers with parameters whose per-sample gradients BackPACK knows. Batch norm mixes samples
# unless it is in eval mode, where torch.func serves as well.
_BACKPACK_LAYERS = (
    *(nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d),
    *(nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d),
)


def backpack_suits(head: nn.Module, names: list[str]) -> bool:
    """Whether BackPACK is installed and `head` a sequence of different layers that it knows."""
    layers, parameters = flat_layers(head), dict(head.named_parameters())
    known = all(type(layer) in _BACKPACK_LAYERS or not list(layer.parameters()) for layer in layers)
    leaves = not any(list(layer.children()) for layer in layers)
    trained = all(parameters[name].requires_grad for name in names)
    installed = importlib.util.find_spec("backpack") is not None
    return installed and known and leaves and trained and are_plain(layers)


def backpack_gradients(
    head: nn.Module,
    features: torch.Tensor,
    labels: torch.Tensor,
    loss: PerSampleLoss,
    names: list[str],
) -> torch.Tensor:
    """(B, P), through BackPACK's BatchGrad.

    Raises:
        ValueError: a layer that BackPACK does not know, or that is used more than once.
    """
    from backpack import backpack, extend
    from backpack.extensions import BatchGrad

    if len(list(head.named_parameters(remove_duplicate=False))) > len(list(head.parameters())):
        raise ValueError("BackPACK cannot do a head whose layers share a parameter")
    # BackPACK leaves hooks in the modules and results at the parameters. A copy of the modules
    # that holds the same tensors takes the hooks.
    tensors = [*head.parameters(), *head.buffers()]
    twin = extend(copy.deepcopy(head, {id(tensor): tensor for tensor in tensors}))
    # A view: the hooks that users have on the features are not for this pass.
    x = features.view_as(features) if features.requires_grad else features.detach()
    x = x if x.requires_grad else x.requires_grad_()
    chosen: list[Any] = [p for name, p in head.named_parameters() if name in names]
    try:
        with backpack(BatchGrad()):
            total = summed(loss(twin(x), labels), len(features))
            # Its hooks fire only where the input of a module is among the targets.
            torch.autograd.grad(total, [*chosen, x], create_graph=True, allow_unused=True)
        return torch.cat([parameter.grad_batch.flatten(1) for parameter in chosen], dim=1)
    except (NotImplementedError, AttributeError) as error:
        raise ValueError(f"BackPACK cannot do this head: {error}") from error
    finally:
        for parameter in head.parameters():
            if hasattr(parameter, "grad_batch"):
                del parameter.grad_batch


def func_gradients(
    head: nn.Module,
    features: torch.Tensor,
    labels: torch.Tensor,
    loss: PerSampleLoss,
    names: list[str],
) -> torch.Tensor:
    """(B, P), through torch.func: vmap of grad; through a loop where vmap does not know a layer."""
    gradient = torch.func.grad(_sample_loss(head, loss))
    chosen = _chosen(head, names)
    try:
        with _Decomposed():
            gradients = torch.func.vmap(gradient, in_dims=(None, 0, 0), randomness="different")(
                chosen, features, labels
            )
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        warnings.warn(f"per-sample gradients in a loop, because vmap fails: {reason}", stacklevel=2)
        return loop_gradients(head, features, labels, loss, names)
    return torch.cat([gradients[name].flatten(1) for name in chosen], dim=1)


def loop_gradients(
    head: nn.Module,
    features: torch.Tensor,
    labels: torch.Tensor,
    loss: PerSampleLoss,
    names: list[str],
) -> torch.Tensor:
    """(B, P), with one backward pass a sample: slow, and right for whatever runs."""
    gradient = torch.func.grad(_sample_loss(head, loss))
    chosen = _chosen(head, names)
    rows = []
    with _Decomposed():
        for x, y in zip(features, labels):
            gradients = gradient(chosen, x, y)
            rows.append(torch.cat([gradients[name].flatten() for name in chosen]))
    return torch.stack(rows)


def _chosen(head: nn.Module, names: list[str]) -> dict[str, torch.Tensor]:
    return {name: parameter for name, parameter in head.named_parameters() if name in names}


def _sample_loss(
    head: nn.Module, loss: PerSampleLoss
) -> Callable[[Mapping[str, torch.Tensor], torch.Tensor, torch.Tensor], torch.Tensor]:
    """The loss of one sample, x and y without a batch, as a function of the parameters."""

    def sample_loss(
        parameters: Mapping[str, torch.Tensor], x: torch.Tensor, y: torch.Tensor
    ) -> torch.Tensor:
        logits = torch.func.functional_call(head, dict(parameters), (x.unsqueeze(0),))
        return summed(loss(logits, y.unsqueeze(0)), 1)

    return sample_loss


class _Decomposed(TorchFunctionMode):
    """Computes from elementary operations what PyTorch 2.15 cannot differentiate twice.

    `vmap` gets the derivative of the gradient of `layer_norm` wrong by up to some percent, and
    that of `hardsigmoid` does not exist.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func in (F.layer_norm, torch.layer_norm):
            return _layer_norm(*args, **(kwargs or {}))
        if func is F.hardsigmoid:
            return F.relu6(args[0] + 3) / 6
        return func(*args, **(kwargs or {}))


def _layer_norm(
    input: torch.Tensor,
    normalized_shape: Any,
    weight: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    eps: float = 1e-5,
    cudnn_enable: bool = True,
) -> torch.Tensor:
    """As `torch.layer_norm`: argument for argument."""
    over = (
        tuple(range(-len(normalized_shape), 0)) if not isinstance(normalized_shape, int) else (-1,)
    )
    centred = input - input.mean(over, keepdim=True)
    normal = centred * torch.rsqrt(centred.square().mean(over, keepdim=True) + eps)
    scaled = normal if weight is None else normal * weight
    return scaled if bias is None else scaled + bias
