"""The ways to statistics of per-sample gradients: a closed form, and gradients that are stored.

Of a linear layer the gradient of sample n is an outer product δ_n ⊗ a_n of the gradient δ_n with
respect to the layer's output and the layer's input a_n. Its elementwise square is δ_n² ⊗ a_n², so
sums over samples are products of matrices with n rows, and δ comes for all samples and layers from
one backward pass through the head.

For networks that have no closed form there are three ways to the gradients of all samples, (B, P),
of which all are differentiable once more.
"""

import copy
import importlib.util
import warnings
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

PerSampleLoss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""From logits and labels of B samples to (B,) losses."""

# Layers that treat every sample alone, element by element, and have no parameters.
_ELEMENTWISE = (nn.ReLU, nn.LeakyReLU, nn.ELU, nn.GELU, nn.SiLU, nn.Tanh, nn.Sigmoid, nn.Identity)


def summed(losses: torch.Tensor, samples: int) -> torch.Tensor:
    """The sum of (B,) losses, whose gradient holds the gradient of every sample.

    Raises:
        ValueError: they are not one number a sample.
    """
    if losses.shape != (samples,):
        raise ValueError(
            f"the loss has the shape {tuple(losses.shape)} for {samples} sample(s): it must give "
            "one number a sample"
        )
    return losses.sum()


def is_linear_stack(head: nn.Module) -> bool:
    """Whether `head` is a linear layer, or a sequence of different linear and elementwise ones."""
    layers = flat_layers(head)
    # Exact types: a subclass (a parametrized Linear, say) may compute something else.
    known = all(type(layer) in (nn.Linear, *_ELEMENTWISE) for layer in layers)
    return known and are_plain(layers) and not has_hooks(head)


def flat_layers(head: nn.Module) -> list[nn.Module]:
    """The layers of nested sequences, one after the other."""
    if type(head) is not nn.Sequential:
        return [head]
    return [layer for part in head for layer in flat_layers(part)]


def are_plain(layers: list[nn.Module]) -> bool:
    """Whether layers compute what their types say, each used once and sharing no parameters.

    A layer that works in place would overwrite the output whose gradient is needed. Weight norm
    and pruning replace the weight by other parameters.
    """
    parameters = [id(p) for layer in layers for p in layer.parameters()]
    different = len(set(layers)) == len(layers) and len(set(parameters)) == len(parameters)
    usual = all(set(layer._parameters) <= {"weight", "bias"} for layer in layers)
    in_place = any(getattr(layer, "inplace", False) for layer in layers)
    return different and usual and not in_place and not any(map(has_hooks, layers))


def has_hooks(network: nn.Module) -> bool:
    """Whether any module has a forward hook, which may change what it computes."""
    return any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())


class _LinearPass(NamedTuple):
    """One linear layer in a pass: its names, input (B, in) and δ (B, out)."""

    weight: str
    bias: str | None
    a: torch.Tensor
    delta: torch.Tensor


def closed_form_statistic(
    kind: str,
    head: nn.Module,
    features: torch.Tensor,
    labels: torch.Tensor,
    domain_sizes: list[int],
    loss: PerSampleLoss,
    names: list[str],
) -> torch.Tensor:
    """(E, P): "mean", "second_moment" or "variance" of the gradients of the named parameters."""
    columns = []
    for layer in _linear_passes(head, features, labels, loss):
        wanted = [name for name in (layer.weight, layer.bias) if name in names]
        if not wanted:
            continue
        moments = _LAYER_MOMENTS[kind](layer.delta, layer.a, domain_sizes, layer.bias is not None)
        weights = layer.delta.size(1) * layer.a.size(1)
        start = 0 if layer.weight in wanted else weights
        stop = moments.size(1) if layer.bias in wanted else weights
        # Narrowing costs a copy of its own in the backward pass.
        whole = (start, stop) == (0, moments.size(1))
        columns.append(moments if whole else moments[:, start:stop])
    return columns[0] if len(columns) == 1 else torch.cat(columns, dim=1)


def closed_form_gradients(
    head: nn.Module,
    features: torch.Tensor,
    labels: torch.Tensor,
    loss: PerSampleLoss,
    names: list[str],
) -> torch.Tensor:
    """(B, P): the gradients themselves, where they are needed after all."""
    columns = []
    for layer in _linear_passes(head, features, labels, loss):
        if layer.weight in names:
            columns.append((layer.delta.unsqueeze(2) * layer.a.unsqueeze(1)).flatten(1))
        if layer.bias in names:
            columns.append(layer.delta)
    return torch.cat(columns, dim=1)


def _linear_passes(
    head: nn.Module, features: torch.Tensor, labels: torch.Tensor, loss: PerSampleLoss
) -> list[_LinearPass]:
    """Forward, and back to the output of every linear layer."""
    names = {id(parameter): name for name, parameter in head.named_parameters()}
    passes: list[tuple[nn.Linear, torch.Tensor, torch.Tensor]] = []
    x = features if features.requires_grad else features.detach().requires_grad_()
    for layer in flat_layers(head):
        output = layer(x)
        if isinstance(layer, nn.Linear):
            passes.append((layer, x, output))
        x = output
    # Samples do not mix, so the gradient of the sum holds the gradient of every sample.
    total = summed(loss(x, labels), len(features))
    deltas = torch.autograd.grad(total, [output for *_, output in passes], create_graph=True)
    return [
        _LinearPass(
            names[id(linear.weight)],
            None if linear.bias is None else names[id(linear.bias)],
            a,
            delta,
        )
        for (linear, a, _), delta in zip(passes, deltas)
    ]


def _layer_means(
    delta: torch.Tensor, a: torch.Tensor, sizes: list[int], bias: bool
) -> torch.Tensor:
    """(E, out·in [+ out]) means of δ_n ⊗ a_n."""
    rows = []
    for d, x in zip(delta.split(sizes), a.split(sizes)):
        weight = (d.T @ x / len(x)).flatten()
        rows.append(torch.cat([weight, d.mean(dim=0)]) if bias else weight)
    return torch.stack(rows)


class _LayerVariances(torch.autograd.Function):
    """Variances of δ_n ⊗ a_n over each domain's samples, for a weight and, if there is one, a bias.

    What autograd would keep of the formula is several matrices of the size of the weight for
    each domain; all that the backward pass needs is δ and a, with n rows.

    With δ = δ̄ + δ' and a = ā + a', the gradient's deviation from its mean is
    δ̄ a' + δ' a − K, K = E[δ' a']. E[g²] − E[g]² would be shorter, but loses a variance that is
    small beside the mean.
    """

    @staticmethod
    def forward(
        ctx: Any, delta: torch.Tensor, a: torch.Tensor, sizes: list[int], bias: bool
    ) -> torch.Tensor:
        ctx.save_for_backward(delta, a)
        ctx.sizes = sizes
        weights = delta.size(1) * a.size(1)
        out = delta.new_empty(len(sizes), weights + (delta.size(1) if bias else 0))
        for row, d, x in zip(out, delta.split(sizes), a.split(sizes)):
            n, mean = len(x), d.mean(dim=0)
            d_c, x_c = d - mean, x - x.mean(dim=0)
            variance = row[:weights].view(d.size(1), x.size(1))
            left = torch.cat([2 * mean * d_c, d_c.square()]).div_(n)
            torch.mm(left.T, torch.cat([x * x_c, x.square()]), out=variance)
            variance.addr_(mean.square(), x_c.square().mean(dim=0))
            variance.sub_((d_c.T @ (x_c / n)).square_())
            if bias:
                row[weights:] = d_c.square().mean(dim=0)
        return out

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        delta, a = ctx.saved_tensors
        weights = delta.size(1) * a.size(1)
        parts = zip(gradient, delta.split(ctx.sizes), a.split(ctx.sizes))
        pairs = [_variance_backward(g[:weights], g[weights:], d, x) for g, d, x in parts]
        d_delta, d_a = (torch.cat(column) for column in zip(*pairs))
        return d_delta, d_a, None, None


def _variance_backward(
    g_weight: torch.Tensor, g_bias: torch.Tensor, d: torch.Tensor, x: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """What one domain's variances send back to δ (n, out) and a (n, in).

    The derivative of the variance with respect to g_n is 2/n (g_n − ḡ), and g_n = δ_n ⊗ a_n.
    """
    n, mean = len(x), d.mean(dim=0)
    d_c, x_c = d - mean, x - x.mean(dim=0)
    g = g_weight.view(d.size(1), x.size(1))
    g_k = g * (d_c.T @ (x_c / n))
    to_mean, to_d_c = (torch.cat([x * x_c, x.square()]) @ g.T).split(n)
    to_x_c, to_x = (torch.cat([d * mean, d * d_c]) @ g).split(n)
    d_delta = mean * to_mean + d_c * to_d_c - x @ g_k.T
    d_a = x_c * to_x_c + x * to_x - d @ g_k
    if len(g_bias):
        d_delta = d_delta + g_bias * d_c
    return 2 / n * d_delta, 2 / n * d_a


_LAYER_MOMENTS = {
    "mean": _layer_means,
    "second_moment": lambda delta, a, *rest: _layer_means(delta.square(), a.square(), *rest),
    "variance": _LayerVariances.apply,
}


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
    x = features.view_as(features) if features.requires_grad else features.detach().requires_grad_()
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
    gradient, chosen = _sample_gradient(head, loss, names)
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
    gradient, chosen = _sample_gradient(head, loss, names)
    rows = []
    with _Decomposed():
        for x, y in zip(features, labels):
            gradients = gradient(chosen, x, y)
            rows.append(torch.cat([gradients[name].flatten() for name in chosen]))
    return torch.stack(rows)


def _sample_gradient(
    head: nn.Module, loss: PerSampleLoss, names: list[str]
) -> tuple[Callable[..., dict[str, torch.Tensor]], dict[str, nn.Parameter]]:
    """The gradient of the loss of one sample, a function of the named parameters and of x and y
    without a batch; and these parameters."""

    def sample_loss(
        parameters: Mapping[str, torch.Tensor], x: torch.Tensor, y: torch.Tensor
    ) -> torch.Tensor:
        logits = torch.func.functional_call(head, dict(parameters), (x.unsqueeze(0),))
        return summed(loss(logits, y.unsqueeze(0)), 1)

    chosen = {name: parameter for name, parameter in head.named_parameters() if name in names}
    return torch.func.grad(sample_loss), chosen


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
