"""Minibatches, and inputs that are nests of tensors.

A nest is a tensor, or a dict, list or tuple of nests. Each of its tensors has one row per sample.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from typing import Any

import torch
from torch.nn import functional as F

Nest = Any
"""A tensor (B, …), or a dict, list or tuple of nests."""

Join = Callable[[Sequence[Nest]], Nest]
"""From the inputs of each domain to those of all of them, in the same order."""


class Minibatch(tuple[Nest, torch.Tensor]):
    """The samples of one domain in a step. It unpacks as the pair `(x, y)`.

    Args:
        x: inputs (B, …), or a nest of them.
        y: (B, …) labels.
        extras: what else the dataset gives: by name a tensor (B, …), or a list of B values.
        index: (B,) positions in the domain, on the CPU.
        domain: its number in the dataset.
        join: how inputs of several domains are joined; None for `joined`.

    The attributes are the arguments; any but x and y may be None.

    Examples:
        >>> minibatch = Minibatch(torch.zeros(2, 3), torch.tensor([0, 1]), {"group": ["a", "b"]})
        >>> x, y = minibatch
        >>> minibatch.extras["group"]
        ['a', 'b']
    """

    extras: Mapping[str, Any] | None
    index: torch.Tensor | None  # type: ignore[assignment]  # in place of the tuple's method
    domain: int | None
    join: Join | None

    def __new__(
        cls,
        x: Nest,
        y: torch.Tensor,
        extras: Mapping[str, Any] | None = None,
        *,
        index: torch.Tensor | None = None,
        domain: int | None = None,
        join: Join | None = None,
    ) -> Minibatch:
        made = super().__new__(cls, (x, y))
        made.extras, made.index, made.domain, made.join = extras, index, domain, join
        return made

    def __getnewargs__(self) -> tuple[Any, ...]:
        return tuple(self)


def mapped(function: Callable[..., Any], *nests: Nest) -> Nest:
    """A nest of what `function` makes of the tensors in the same place of each of `nests`.

    All have the structure of the first. What is no tensor (a text, say) stays as it is there.
    """
    first = nests[0]
    if isinstance(first, torch.Tensor):
        return function(*nests)
    if isinstance(first, Mapping):
        return {name: mapped(function, *(nest[name] for nest in nests)) for name in first}
    if isinstance(first, (list, tuple)):
        parts = [mapped(function, *those) for those in zip(*nests)]
        return type(first)(*parts) if hasattr(first, "_fields") else type(first)(parts)
    return first


def tensors_of(nest: Nest) -> list[torch.Tensor]:
    """The tensors of a nest, in its order."""
    found: list[torch.Tensor] = []
    mapped(found.append, nest)
    return found


def taken(nest: Nest, rows: Any) -> Nest:
    """The samples at `rows`, a slice or positions."""
    return mapped(lambda tensor: tensor[rows], nest)


def split(nest: Nest, sizes: Sequence[int]) -> list[Nest]:
    """The first `sizes[0]` samples, the next `sizes[1]`, and so on."""
    if isinstance(nest, torch.Tensor):
        return list(nest.split(list(sizes)))
    ends = [sum(sizes[: number + 1]) for number in range(len(sizes))]
    return [taken(nest, slice(end - size, end)) for end, size in zip(ends, sizes)]


def joined(nests: Sequence[Nest]) -> Nest:
    """The samples of all nests, one nest after the other.

    Where tensors differ in another dimension than the first, as sequences padded to the longest of
    their own domain do, they are padded at its end with zeros.
    """
    return mapped(lambda *tensors: torch.cat(_padded(tensors)), *nests)


def _padded(tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    if len({tensor.shape[1:] for tensor in tensors}) == 1:
        return list(tensors)
    longest = [max(sizes) for sizes in zip(*(tensor.shape for tensor in tensors))]
    added = [
        [0 if dim == 0 else longest[dim] - size for dim, size in enumerate(tensor.shape)]
        for tensor in tensors
    ]
    # F.pad takes the last dimension first, of each what is added before and after.
    return [
        F.pad(tensor, [n for size in reversed(sizes) for n in (0, size)])
        for tensor, sizes in zip(tensors, added)
    ]


def joined_extras(minibatches: Sequence[Any]) -> dict[str, Any] | None:
    """By name the extras of all samples, those that each minibatch has; None where one has none."""
    given: list[Any] = [getattr(minibatch, "extras", None) for minibatch in minibatches]
    if None in given:
        return None
    shared = [name for name in given[0] if all(name in extras for extras in given)]
    parts = {name: [extras[name] for extras in given] for name in shared}
    return {
        name: joined(values) if isinstance(values[0], torch.Tensor) else list(chain(*values))
        for name, values in parts.items()
    }
