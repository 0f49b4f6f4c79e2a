"""Weights of a network from a user's file."""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from domainbed.errors import UserError

_WRAPPERS = ("state_dict", "model")


def load_weights(network: nn.Module, path: str, name: str, removed: Sequence[str]) -> None:
    """Loads a state dict of model `name` from `path`; reading it runs no code from it.

    It may lie under a key "state_dict" or "model", and its names may all begin with "module.".
    With the layers that were removed from the network or without them: they are left out.

    Args:
        network: the model without its last layer.
        path: written by `torch.save`, or ending in `.safetensors`.
        name: the model's name, for messages.
        removed: names of the modules that the network no longer has.

    Raises:
        UserError: the file cannot be read, or its names or shapes are not the network's.
    """
    state = _unwrapped(_read(path), path, name)
    if state and all(key.startswith("module.") for key in state):
        state = {key.removeprefix("module."): value for key, value in state.items()}
    own = network.state_dict()
    of_removed = tuple(f"{module}." for module in removed)
    state = {k: v for k, v in state.items() if k in own or not k.startswith(of_removed)}
    _compare(own, state, path, name)
    network.load_state_dict(state, strict=False)


def _read(path: str) -> Any:
    try:
        if path.endswith(".safetensors"):
            from safetensors.torch import load_file  # comes with timm

            return load_file(path)
        return load_plain(path)
    except Exception as error:  # unpickling what is no state dict raises anything
        # PyTorch's own words advise to read such a file without care.
        refused = isinstance(error, pickle.UnpicklingError)
        reason = "it holds more than tensors, or is damaged" if refused else _first_line(error)
        raise UserError(
            f"hyper-parameter 'weights': {path!r} cannot be read ({reason}): give 'imagenet', "
            "'none' or the path of a state dict"
        ) from error


def load_plain(file: Any) -> Any:
    """What `torch.save` wrote, on the CPU: tensors and plain values; runs no code from the file.

    Args:
        file: a path or a binary stream.

    Raises:
        Exception: it holds anything else, or is damaged.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that no `torch.save` wrote a file is told by an error
        return torch.load(file, map_location="cpu", weights_only=True)


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]


def _unwrapped(content: Any, path: str, name: str) -> dict[str, torch.Tensor]:
    if isinstance(content, Mapping):
        inner = [content[w] for w in _WRAPPERS if isinstance(content.get(w), Mapping)]
        content = inner[0] if len(inner) == 1 else content
    if not isinstance(content, Mapping) or not all(map(torch.is_tensor, content.values())):
        raise UserError(
            f"hyper-parameter 'weights': {path!r} holds no state dict of {name}: expected tensors "
            "by name, alone or under the key 'state_dict'"
        )
    return dict(content)


def _compare(
    own: Mapping[str, torch.Tensor], state: Mapping[str, torch.Tensor], path: str, name: str
) -> None:
    # Files from before PyTorch 0.4.1 have no counters of batches, which nothing here reads.
    missing = [k for k in own if k not in state and not k.endswith("num_batches_tracked")]
    unexpected = [k for k in state if k not in own]
    reshaped = [
        f"{k}, {tuple(state[k].shape)} instead of {tuple(own[k].shape)}"
        for k in own
        if k in state and state[k].shape != own[k].shape
    ]
    found = {"missing": missing, "unexpected": unexpected, "of another shape": reshaped}
    problems = [f"{len(k)} {what} (first {k[0]})" for what, k in found.items() if k]
    if problems:
        raise UserError(
            f"hyper-parameter 'weights': {path!r} holds no state dict of {name}: "
            f"{'; '.join(problems)}. Give a file of that model, or name its model as 'backbone'"
        )
