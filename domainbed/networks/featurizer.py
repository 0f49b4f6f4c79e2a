"""What a featurizer is, and which one suits the shape of the inputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from domainbed.config.dimensions import Option, with_defaults
from domainbed.core.registry import Registry
from domainbed.errors import UserError

CHOICE_OPTIONS: dict[str, Option] = {
    "featurizer": Option("", "a registered network; empty: by the shape of the input"),
    "backbone": Option(
        "", "a torchvision model, timm:NAME, or open_clip:NAME; empty: the protocol's ResNet"
    ),
}
"""What decides which network is built."""


class _Choosing(type):
    """Lets a call of `Featurizer` itself build the network that suits the inputs.

    Not `__new__`, after which Python would initialise the network a second time.
    """

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        if cls is Featurizer:
            return _chosen(*args, **kwargs)
        return super().__call__(*args, **kwargs)


class Featurizer(nn.Module, metaclass=_Choosing):
    """A network from (B, *input_shape) to (B, n_outputs) features.

    `Featurizer(input_shape, hparams)` builds one of the registered networks: vectors go through
    an `MLP`, images of at most 28×28 through `MNIST_CNN`, of at least 32×32 through a `Backbone`,
    and so do images of any size where `hparams["backbone"]` names one. `hparams["featurizer"]`
    names another registered network, and wins.

    Attributes:
        n_outputs: the width of the features.

    Raises:
        UserError: no network for that shape.
    """

    n_outputs: int

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError


NETWORKS: Registry[Callable[[Sequence[int], Mapping[str, Any]], nn.Module]] = Registry("network")
"""Featurizers: called with `(input_shape, hparams)`, they have `n_outputs`."""


def _chosen(input_shape: Sequence[int], hparams: Mapping[str, Any]) -> nn.Module:
    chosen = with_defaults(CHOICE_OPTIONS, hparams)
    name = chosen["featurizer"] or _suited(tuple(input_shape), chosen["backbone"])
    if name in ("MLP", "MNIST_CNN") and hparams.get("weights", "none") != "none":
        raise UserError(
            f"hyper-parameter 'weights' is {hparams['weights']!r}, but the network for inputs of "
            f"shape {tuple(input_shape)}, {name}, takes none: leave it out, or name a 'backbone'",
            *("hparams", "weights"),
        )
    try:
        build = NETWORKS[name]
    except UserError as error:
        raise UserError(f"hyper-parameter 'featurizer': {error}", "hparams", "featurizer") from None
    return build(input_shape, hparams)


def _suited(shape: tuple[int, ...], backbone: str) -> str:
    """The name of the network for inputs of `shape`, given the backbone that was named, if any."""
    if backbone and len(shape) != 3:
        raise UserError(
            f"backbone {backbone!r} takes images, but the inputs have the shape "
            f"{shape}: leave 'backbone' out"
        )
    if len(shape) == 1:
        return "MLP"
    if len(shape) == 3 and (backbone or min(shape[1:]) >= 32):
        return "Backbone"
    if len(shape) == 3 and max(shape[1:]) <= 28:
        return "MNIST_CNN"
    raise UserError(
        f"no featurizer for inputs of shape {shape}: expected (features,) or "
        "(channels, height, width); name a registered network in the hyper-parameter 'featurizer'"
    )
