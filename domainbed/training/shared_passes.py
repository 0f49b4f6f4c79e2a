"""Passes through a featurizer, and image files, that the processes of a run share out by rows.

All processes draw the same minibatches and hold the same weights. Of B inputs process r of W sends
the rows r·B/W to (r + 1)·B/W through the featurizer. The features are gathered. What follows
(classifier, penalties, statistics of the batch) is computed in each process, of all of them: the
loss is that of one process, and not a mean of losses of parts.

A tensor is either common, the same in all processes, or a process's own, a part of a common one or
of a sum. Each function here leads from one kind to the other. Its derivative is its counterpart,
which makes derivatives of any order those of one process:

    _OwnRows  common → own: some rows        _AllRows  own → common: the rows of all
    _Copied   common → own: the same         _Summed   own → common: the sum over all
"""

from collections.abc import Mapping
from functools import partial
from types import MethodType
from typing import Any

import torch
from torch import nn
from torch.autograd import Function
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._python_dispatch import TorchDispatchMode

from domainbed.core.minibatch import Nest, mapped, tensors_of
from domainbed.datasets.domain import AnyDomain, LoadedDomain
from domainbed.errors import UserError
from domainbed.training.ranks import add_up, count, own_rows

Gradients = tuple[torch.Tensor | None, ...]


def share_passes(algorithm: nn.Module) -> None:
    """Makes each process compute its own rows of the featurizers of an algorithm.

    These are the outermost modules with `n_outputs` and parameters, and their copies.

    Raises:
        UserError: one of them has batch norm layers that train, or the algorithm looks into it,
            which needs the whole batch.
    """
    if count() == 1:
        return
    if getattr(algorithm, "whole_batch_inside", False):
        raise UserError(
            f"{type(algorithm).__name__} looks into the network at all images of a batch, and "
            f"{count()} processes share them out: train without torchrun",
            "algorithm",
        )
    for module in algorithm.children():
        is_featurizer = hasattr(module, "n_outputs") and any(True for _ in module.parameters())
        if not is_featurizer:
            share_passes(module)
            continue
        if any(isinstance(layer, _BatchNorm) and layer.training for layer in module.modules()):
            raise UserError(
                "batch norm layers that train need all images of a batch, and "
                f"{count()} processes share them out: set the hyper-parameter 'freeze_bn' to true, "
                "or train without torchrun"
            )
        # A method, which a deep copy binds to the copied module.
        module.forward = MethodType(_shared_forward, module)


def _shared_forward(self: nn.Module, x: Nest) -> torch.Tensor:
    """(B, *input_shape), or a nest of inputs, to (B, d)."""
    n = len(tensors_of(x)[0])
    # Gradients of single samples are taken in each process of all samples.
    if n < count() or torch._C._are_functorch_transforms_active():
        return type(self).forward(self, x)
    trained = {name: p for name, p in self.named_parameters() if p.requires_grad}
    own = dict(zip(trained, _apply(_Copied, *trained.values())))
    names = {f"module.{name}": value for name, value in own.items()}
    rows = mapped(partial(_apply, _OwnRows), x)
    with _DrawsOfAll(n):
        z = functional_call(_Unshared(self), names, (rows,))
    return _apply(_AllRows, z, n)


class _Unshared(nn.Module):
    """A module as its class computes it."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Nest) -> torch.Tensor:
        return type(self.module).forward(self.module, x)


def _apply(function: type[Function], *values: Any) -> Any:
    return function.apply(*values)


class _OwnRows(Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        ctx.n = len(x)
        return x[own_rows(len(x))]

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> torch.Tensor:
        return _apply(_AllRows, gradients[0], ctx.n)


class _AllRows(Function):
    @staticmethod
    def forward(ctx: Any, own: torch.Tensor, n: int) -> torch.Tensor:
        rows = own.new_zeros(n, *own.shape[1:])
        rows[own_rows(n)] = own
        return add_up(rows)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Gradients:
        return _apply(_OwnRows, gradients[0]), None


class _Copied(Function):
    """Any number of tensors at once, so that their gradients are sent together."""

    @staticmethod
    def forward(ctx: Any, *values: torch.Tensor | None) -> Gradients:
        ctx.set_materialize_grads(False)  # a parameter that is not used has no gradient
        return tuple(None if value is None else value.view_as(value) for value in values)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor | None) -> Gradients:
        return _apply(_Summed, *gradients)


class _Summed(Function):
    @staticmethod
    def forward(ctx: Any, *values: torch.Tensor | None) -> Gradients:
        ctx.set_materialize_grads(False)
        given = [value for value in values if value is not None]
        if not given:
            return values
        total = add_up(torch.cat([value.reshape(-1) for value in given]))
        parts = iter(total.split([value.numel() for value in given]))
        return tuple(None if v is None else next(parts).view(v.shape).to(v.dtype) for v in values)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor | None) -> Gradients:
        return _apply(_Copied, *gradients)


class _DrawsOfAll(TorchDispatchMode):
    """Random draws for a process's own rows (dropout, stochastic depth) are made for all n.

    So it is what one process draws, and the sources of all processes stay the same.
    """

    def __init__(self, n: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._n, self._rows = n, own_rows(n)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if torch.Tag.nondeterministic_seeded not in func.tags or _drops_nothing(func, args, kwargs):
            return func(*args, **kwargs)
        if func is torch.ops.aten.bernoulli_.float:
            drawn = func(self._like(args[0]), *args[1:], **kwargs)
            return args[0].copy_(drawn[self._rows])
        if func is torch.ops.aten.native_dropout.default:
            scaled, kept = func(self._like(args[0]).fill_(1), *args[1:], **kwargs)
            return args[0] * scaled[self._rows], kept[self._rows]
        raise UserError(
            f"the featurizer draws random numbers ({func}) that several processes cannot share "
            "out: train without torchrun"
        )

    def _like(self, own: torch.Tensor) -> torch.Tensor:
        """An empty tensor for all rows, in the same layout, by which it is filled.

        Raises:
            UserError: `own` has other rows than samples, as of sequences with the samples second.
        """
        if len(own) != self._rows.stop - self._rows.start:
            raise UserError(
                f"the featurizer drops values of a tensor of {len(own)} rows that are no samples, "
                "which several processes cannot share out: train without torchrun"
            )
        shape, nhwc = (self._n, *own.shape[1:]), torch.channels_last
        of_images = own.dim() == 4 and own.is_contiguous(memory_format=nhwc)
        layout = nhwc if of_images and not own.is_contiguous() else torch.contiguous_format
        return torch.empty(shape, dtype=own.dtype, device=own.device, memory_format=layout)


def _drops_nothing(func: Any, args: Any, kwargs: Mapping[str, Any]) -> bool:
    """Whether an operation that may drop values, as attention, was told to drop none."""
    names = [argument.name for argument in func._schema.arguments]
    given = {**dict(zip(names, args)), **kwargs}
    return any(name in names and not given.get(name) for name in ("dropout_p", "dropout"))


def share_reading(domain: AnyDomain) -> AnyDomain:
    """The domain; if images are read one by one, each process reads its own part of every batch.

    Where samples have extras, or inputs are no single tensor or collated by the dataset, each
    process reads all: only a whole batch knows how long its longest sequence is.
    """
    if count() == 1 or not isinstance(domain, LoadedDomain) or domain.collate:
        return domain
    first = domain.first_sample()
    if first and isinstance(first[0], torch.Tensor) and first.extras is None:
        domain.own_rows, domain.all_rows = _rows_to_read, _rows_of_all
    return domain


def _rows_to_read(n: int) -> slice:
    return own_rows(n) if n >= count() else slice(None)


def _rows_of_all(own: torch.Tensor, n: int) -> torch.Tensor:
    if n < count():
        return own
    # As bytes, which add up to what was read, whatever its type.
    part = own.reshape(len(own), -1).contiguous().view(torch.uint8)
    rows = part.new_zeros(n, part.shape[1])
    rows[own_rows(n)] = part
    return add_up(rows).view(own.dtype).view(n, *own.shape[1:])
