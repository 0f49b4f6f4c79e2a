"""The whole state of an algorithm as plain values, found by inspection.

An algorithm may keep state anywhere: parameters and buffers, optimizers under any name,
counters, moving averages, queues, helper objects with attributes of their own. `capture` walks
all of it into tensors, numbers, strings and containers, which load without running code from
the file; `restore` puts them back into a freshly constructed algorithm. So a class that never
heard of this package resumes as exactly as the package's own.
"""

from __future__ import annotations

import functools
import importlib
import random
import types
from collections import Counter, OrderedDict, defaultdict, deque
from typing import Any

import numpy as np
import torch
from torch import nn

State = dict[str, Any]

_PLAIN = (type(None), bool, int, float, complex, str, bytes)
_SEQUENCES: dict[str, Any] = {"list": list, "tuple": tuple, "set": set, "deque": deque}
_MAPPINGS: dict[str, Any] = {
    "dict": dict,
    "OrderedDict": OrderedDict,
    "defaultdict": defaultdict,
    "Counter": Counter,
}
_CODE = (
    *(type, types.ModuleType, types.FunctionType, types.BuiltinFunctionType, types.MethodType),
    functools.partial,
)
_MODULE_INTERNALS = set(vars(nn.Module()))
_SKIP = {"kind": "skip"}


def capture(algorithm: nn.Module) -> State:
    """All state of `algorithm` that its next update could depend on.

    Its tensors are the algorithm's own: save them before the next update.
    """
    return {
        "modules": {path: _layout(module) for path, module in algorithm.named_modules()},
        "tensors": _tensors(algorithm),
        "attributes": _Capture(algorithm).attributes(),
    }


def restore(algorithm: nn.Module, state: State) -> None:
    """Puts `state` into an algorithm that was constructed with the same arguments."""
    device = next((p.device for p in algorithm.parameters()), torch.device("cpu"))
    _create_missing(algorithm, state["modules"], state["tensors"], device)
    modules = dict(algorithm.named_modules())
    _restore_tensors(modules, state["tensors"], device)
    restorer = _Restore(dict(algorithm.named_parameters()), device)
    for path, attributes in state["attributes"].items():
        if path in modules:
            restorer.attributes(modules[path], attributes)


def _tensors(module: nn.Module) -> dict[str, Any]:
    """The state dict, and the buffers that are not meant to be saved but decide the next step."""
    return {**dict(module.named_buffers()), **module.state_dict()}


def _layout(module: nn.Module) -> State:
    """What it takes to make a module anew that an update brought into being."""
    return {
        "class": _class_name(module),
        "parameters": {n: p is not None and p.requires_grad for n, p in module._parameters.items()},
        "buffers": {n: n not in module._non_persistent_buffers_set for n in module._buffers},
    }


def _create_missing(
    algorithm: nn.Module, layouts: State, tensors: dict[str, Any], device: torch.device
) -> None:
    modules = dict(algorithm.named_modules())
    for path, layout in layouts.items():  # owners come before what they own
        owner, _, leaf = path.rpartition(".")
        if path in modules or owner not in modules or "<locals>" in layout["class"]:
            continue
        cls = _import_class(layout["class"], nn.Module)
        module = cls.__new__(cls)
        nn.Module.__init__(module)
        for name, trained in layout["parameters"].items():
            value = tensors.get(f"{path}.{name}")
            value = None if value is None else nn.Parameter(value.to(device).clone(), trained)
            module.register_parameter(name, value)
        for name, persistent in layout["buffers"].items():
            value = tensors.get(f"{path}.{name}")
            value = None if value is None else value.to(device).clone()
            module.register_buffer(name, value, persistent)
        modules[owner].__dict__.pop(leaf, None)  # it may have been None
        modules[owner].add_module(leaf, module)
        modules[path] = module


def _class_name(value: Any) -> str:
    return f"{type(value).__module__}:{type(value).__qualname__}"


def _import_class(name: str, base: type) -> Any:
    """The class of a captured object; a file may name no other kind of thing."""
    module, _, qualified = name.partition(":")
    cls = functools.reduce(getattr, qualified.split("."), importlib.import_module(module))
    if not (isinstance(cls, type) and issubclass(cls, base)):
        raise TypeError(f"a checkpoint names {name!r}, which is no {base.__name__}")
    return cls


def _restore_tensors(
    modules: dict[str, nn.Module], tensors: dict[str, torch.Tensor], device: torch.device
) -> None:
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
            module._buffers[leaf] = value.to(device if own is None else own.device, copy=True)


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
        if isinstance(value, (np.number, np.bool_)):
            return {"kind": "scalar", "value": torch.from_numpy(np.asarray(value).copy())}
        if isinstance(value, _PLAIN):
            return {"kind": "value", "value": value}
        if id(value) in self._seen or id(value) in self._parameters:
            return _SKIP
        if isinstance(value, torch.Tensor):
            trained = value.requires_grad and value.is_leaf
            return {"kind": "tensor", "value": value.detach().clone(), "trained": trained}
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
            return {"kind": "module", "tensors": _tensors(value), "attributes": inner}
        if isinstance(value, torch.Generator):
            return {"kind": "generator", "value": value.get_state()}
        if isinstance(value, (np.random.RandomState, random.Random)):
            state = (
                value.getstate() if isinstance(value, random.Random) else plain_numpy_state(value)
            )
            return {"kind": "random", "value": state}
        if isinstance(value, np.random.Generator):
            return {"kind": "numpy_generator", "value": self._encode(value.bit_generator.state)}
        if isinstance(value, _CODE):
            return _SKIP
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
            "class": _class_name(optimizer),
            "groups": groups,
            "value": optimizer.state_dict(),
        }


class _Restore:
    def __init__(self, parameters: dict[str, nn.Parameter], device: torch.device) -> None:
        self._parameters, self._device = parameters, device
        self._names = {id(parameter): name for name, parameter in parameters.items()}

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

    def _decode_scalar(self, old: Any, encoded: State) -> Any:
        return encoded["value"].cpu().numpy()[()]

    def _decode_tensor(self, old: Any, encoded: State) -> Any:
        value = encoded["value"]
        if not isinstance(old, torch.Tensor):
            return value.to(self._device, copy=True).requires_grad_(encoded["trained"])
        if old.requires_grad and old.is_leaf and old.shape == value.shape:
            with torch.no_grad():  # an optimizer may hold this very tensor
                return old.copy_(value).requires_grad_()
        return value.to(old.device, copy=True).requires_grad_(encoded["trained"])

    def _decode_array(self, old: Any, encoded: State) -> Any:
        return encoded["value"].cpu().numpy().copy()

    # Containers are refilled, not replaced: another object may hold the same one.
    def _decode_sequence(self, old: Any, encoded: State) -> Any:
        known: list[Any] = list(old) if isinstance(old, (list, tuple, set, deque)) else []
        known += [None] * (len(encoded["items"]) - len(known))
        items = [self._decode(o, item) for o, item in zip(known, encoded["items"])]
        kind, maxlen = _SEQUENCES[encoded["type"]], encoded["maxlen"]
        if kind is tuple or type(old) is not kind or getattr(old, "maxlen", None) != maxlen:
            return deque(items, maxlen) if kind is deque else kind(items)
        old.clear()
        old.update(items) if kind is set else old.extend(items)
        return old

    def _decode_mapping(self, old: Any, encoded: State) -> Any:
        known = old if isinstance(old, dict) else {}
        items = {
            key: self._decode(known.get(key), item)
            for key, item in zip(encoded["keys"], encoded["items"])
        }
        kind = _MAPPINGS[encoded["type"]]
        if type(old) is not kind:
            return defaultdict(None, items) if kind is defaultdict else kind(items)
        old.clear()
        old.update(items)
        return old

    def _decode_optimizer(self, old: Any, encoded: State) -> Any:
        optimizer = old if self._fits(old, encoded) else self._new_optimizer(encoded)
        if optimizer is None:
            return old
        optimizer.load_state_dict(encoded["value"])
        return optimizer

    def _fits(self, old: Any, encoded: State) -> bool:
        if not isinstance(old, torch.optim.Optimizer) or _class_name(old) != encoded["class"]:
            return False
        groups = [[self._names.get(id(p)) for p in g["params"]] for g in old.param_groups]
        return groups == encoded["groups"]

    def _new_optimizer(self, encoded: State) -> torch.optim.Optimizer | None:
        """One that replaced the constructor's, with other parameters or of another class."""
        if any(p not in self._parameters for group in encoded["groups"] for p in group):
            return None  # over parameters that its own update makes anew
        groups = [{"params": [self._parameters[p] for p in group]} for group in encoded["groups"]]
        lr = encoded["value"]["param_groups"][0]["lr"]
        return _import_class(encoded["class"], torch.optim.Optimizer)(groups, lr=lr)

    def _decode_module(self, old: Any, encoded: State) -> Any:
        if isinstance(old, nn.Module):
            modules = dict(old.named_modules())
            _restore_tensors(modules, encoded["tensors"], self._device)
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

    def _decode_numpy_generator(self, old: Any, encoded: State) -> Any:
        state = self._decode(None, encoded["value"])
        if not isinstance(old, np.random.Generator):
            old = np.random.Generator(getattr(np.random, state["bit_generator"])())
        old.bit_generator.state = state
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


def unseen(algorithm: nn.Module) -> list[str]:
    return []
