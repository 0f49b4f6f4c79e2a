"""The whole state of an algorithm as plain values, found by inspection.

An algorithm may keep state anywhere: parameters and buffers, optimizers under any name,
counters, moving averages, queues, helper objects with attributes of their own. `capture` walks
all of it into tensors, numbers, strings and containers, which load without running code from
the file; `restore` puts them back into a freshly constructed algorithm. So a class that never
heard of this package resumes as exactly as the package's own.
"""

from __future__ import annotations

import importlib
import random
import types
from collections import OrderedDict, defaultdict, deque
from typing import Any

import numpy as np
import torch
from torch import nn

State = dict[str, Any]

_PLAIN = (type(None), bool, int, float, complex, str, bytes)
_SEQUENCES: dict[str, Any] = {"list": list, "tuple": tuple, "set": set, "deque": deque}
_MAPPINGS: dict[str, Any] = {"dict": dict, "OrderedDict": OrderedDict, "defaultdict": defaultdict}
_MODULE_INTERNALS = set(vars(nn.Module()))
_SKIP = {"kind": "skip"}


def capture(algorithm: nn.Module) -> State:
    """All state of `algorithm` that its next update could depend on."""
    return {"tensors": algorithm.state_dict(), "attributes": _Capture(algorithm).attributes()}


def restore(algorithm: nn.Module, state: State) -> None:
    """Puts `state` into an algorithm that was constructed with the same arguments."""
    names = dict(algorithm.named_parameters())
    modules = dict(algorithm.named_modules())
    _restore_tensors(modules, state["tensors"])
    device = next((p.device for p in names.values()), torch.device("cpu"))
    restorer = _Restore(names, device)
    for path, attributes in state["attributes"].items():
        # A module that came into being after construction is made anew by what made it.
        if path in modules:
            restorer.attributes(modules[path], attributes)


def _restore_tensors(modules: dict[str, nn.Module], tensors: dict[str, torch.Tensor]) -> None:
    for name, value in tensors.items():
        path, _, leaf = name.rpartition(".")
        module = modules.get(path)
        if module is None:
            continue
        own = module._parameters.get(leaf, module._buffers.get(leaf))
        if own is not None and own.shape == value.shape:
            with torch.no_grad():
                own.copy_(value)
        elif leaf in module._buffers:  # one that was empty, or has grown
            module._buffers[leaf] = value.clone()


class _Capture:
    def __init__(self, algorithm: nn.Module) -> None:
        self._modules = dict(algorithm.named_modules())
        self._parameters = {id(p): name for name, p in algorithm.named_parameters()}
        self._seen = {id(module) for module in self._modules.values()}

    def attributes(self) -> dict[str, State]:
        found = {path: self._attributes_of(m) for path, m in self._modules.items()}
        return {path: attributes for path, attributes in found.items() if attributes}

    def _attributes_of(self, owner: Any) -> State:
        encoded = {
            name: self._encode(value)
            for name, value in vars(owner).items()
            if not (isinstance(owner, nn.Module) and name in _MODULE_INTERNALS)
        }
        return {name: e for name, e in encoded.items() if e is not _SKIP}

    def _encode(self, value: Any) -> State:
        if isinstance(value, np.generic):
            value = value.item()
        if isinstance(value, _PLAIN):
            return {"kind": "value", "value": value}
        if id(value) in self._seen or id(value) in self._parameters:
            return _SKIP
        if isinstance(value, torch.Tensor):
            return {"kind": "tensor", "value": value.detach().clone()}
        if isinstance(value, np.ndarray):
            return {"kind": "array", "value": torch.from_numpy(value.copy())}
        # Containers may be shared; anything else is captured where it is met first.
        if type(value).__name__ in _SEQUENCES and type(value) in _SEQUENCES.values():
            return self._encode_sequence(value)
        if type(value) in _MAPPINGS.values():
            return self._encode_mapping(value)
        self._seen.add(id(value))
        return self._encode_object(value)

    def _encode_sequence(self, value: Any) -> State:
        return {
            "kind": "sequence",
            "type": type(value).__name__,
            "maxlen": getattr(value, "maxlen", None),
            "items": [self._encode(item) for item in value],
        }

    def _encode_mapping(self, value: Any) -> State:
        return {
            "kind": "mapping",
            "type": type(value).__name__,
            "keys": list(value),
            "items": [self._encode(item) for item in value.values()],
        }

    def _encode_object(self, value: Any) -> State:
        if isinstance(value, torch.optim.Optimizer):
            return self._encode_optimizer(value)
        if isinstance(value, nn.Module):  # one that its owner hides from PyTorch, in a list say
            inner = {path: self._attributes_of(m) for path, m in value.named_modules()}
            return {"kind": "module", "tensors": value.state_dict(), "attributes": inner}
        if isinstance(value, torch.Generator):
            return {"kind": "generator", "value": value.get_state()}
        if isinstance(value, (np.random.RandomState, random.Random)):
            state = (
                value.getstate() if isinstance(value, random.Random) else plain_numpy_state(value)
            )
            return {"kind": "random", "value": state}
        if isinstance(value, (type, types.ModuleType)) or callable(value):
            return _SKIP  # code, not state
        if hasattr(value, "state_dict") and hasattr(value, "load_state_dict"):
            return {"kind": "stateful", "value": self._encode(value.state_dict())}
        if hasattr(value, "__dict__"):
            return {"kind": "object", "attributes": self._attributes_of(value)}
        return _SKIP

    def _encode_optimizer(self, optimizer: torch.optim.Optimizer) -> State:
        groups = [
            [self._parameters.get(id(p)) for p in g["params"]] for g in optimizer.param_groups
        ]
        return {
            "kind": "optimizer",
            "class": f"{type(optimizer).__module__}:{type(optimizer).__qualname__}",
            "groups": groups,
            "value": optimizer.state_dict(),
        }


class _Restore:
    def __init__(self, parameters: dict[str, nn.Parameter], device: torch.device) -> None:
        self._parameters, self._device = parameters, device

    def attributes(self, owner: Any, encoded: State) -> None:
        for name, value in encoded.items():
            old = vars(owner).get(name)
            new = self._decode(old, value)
            if new is not old:
                vars(owner)[name] = new

    def _decode(self, old: Any, encoded: State) -> Any:
        return getattr(self, f"_decode_{encoded['kind']}")(old, encoded)

    def _decode_skip(self, old: Any, encoded: State) -> Any:
        return old

    def _decode_value(self, old: Any, encoded: State) -> Any:
        return encoded["value"]

    def _decode_tensor(self, old: Any, encoded: State) -> Any:
        device = old.device if isinstance(old, torch.Tensor) else self._device
        return encoded["value"].to(device)

    def _decode_array(self, old: Any, encoded: State) -> Any:
        return encoded["value"].numpy()

    def _decode_sequence(self, old: Any, encoded: State) -> Any:
        known = list(old) if isinstance(old, (list, tuple, set, deque)) else []
        known += [None] * (len(encoded["items"]) - len(known))
        items = [self._decode(o, item) for o, item in zip(known, encoded["items"])]
        if encoded["type"] == "deque":
            return deque(items, encoded["maxlen"])
        return _SEQUENCES[encoded["type"]](items)

    def _decode_mapping(self, old: Any, encoded: State) -> Any:
        known = old if isinstance(old, dict) else {}
        items = {
            key: self._decode(known.get(key), item)
            for key, item in zip(encoded["keys"], encoded["items"])
        }
        if encoded["type"] == "defaultdict":
            return defaultdict(getattr(old, "default_factory", None), items)
        return _MAPPINGS[encoded["type"]](items)

    def _decode_optimizer(self, old: Any, encoded: State) -> Any:
        wanted = [len(group) for group in encoded["groups"]]
        fits = isinstance(old, torch.optim.Optimizer) and (
            [len(g["params"]) for g in old.param_groups] == wanted
            and encoded["class"] == f"{type(old).__module__}:{type(old).__qualname__}"
        )
        optimizer = old if fits else self._new_optimizer(encoded)
        optimizer.load_state_dict(encoded["value"])
        return optimizer

    def _new_optimizer(self, encoded: State) -> torch.optim.Optimizer:
        """One that replaced the constructor's, with other parameters or of another class."""
        module, _, name = encoded["class"].partition(":")
        cls = getattr(importlib.import_module(module), name)
        groups = [{"params": [self._parameters[p] for p in group]} for group in encoded["groups"]]
        return cls(groups, lr=encoded["value"]["param_groups"][0]["lr"])

    def _decode_module(self, old: Any, encoded: State) -> Any:
        if isinstance(old, nn.Module):
            modules = dict(old.named_modules())
            _restore_tensors(modules, encoded["tensors"])
            for path, attributes in encoded["attributes"].items():
                if path in modules:
                    self.attributes(modules[path], attributes)
        return old

    def _decode_generator(self, old: Any, encoded: State) -> Any:
        generator = old if isinstance(old, torch.Generator) else torch.Generator()
        generator.set_state(encoded["value"].cpu())
        return generator

    def _decode_random(self, old: Any, encoded: State) -> Any:
        if isinstance(old, random.Random):
            old.setstate(encoded["value"])
        elif isinstance(old, np.random.RandomState):
            old.set_state(encoded["value"])
        return old

    def _decode_stateful(self, old: Any, encoded: State) -> Any:
        if hasattr(old, "load_state_dict"):
            old.load_state_dict(self._decode(old.state_dict(), encoded["value"]))
        return old

    def _decode_object(self, old: Any, encoded: State) -> Any:
        if hasattr(old, "__dict__"):
            self.attributes(old, encoded["attributes"])
        return old


def plain_numpy_state(source: Any) -> tuple[Any, ...]:
    """A NumPy random state as numbers and strings."""
    name, keys, *others = source.get_state()
    return (name, keys.tolist(), *others)
