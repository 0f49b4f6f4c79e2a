"""The whole state of an algorithm as plain values, found by inspection.

An algorithm may keep state anywhere: parameters and buffers, optimizers under any name,
counters, moving averages, queues, helper objects with attributes of their own. `capture` walks
all of it into tensors, numbers, strings and containers, which load without running code from
the file; `restore` puts them back into a freshly constructed algorithm. So a class that never
heard of this package resumes as exactly as the package's own.

What inspection cannot see (an iterator, an object with slots, a helper that an update made) is
refused by name when a run goes on, unless it is as the constructor makes it. A file never makes
the program import anything: it may name classes that the algorithm's own modules know already.
"""

from __future__ import annotations

import enum
import functools
import hashlib
import logging
import pickle
import random
import re
import sys
import threading
import types
import weakref
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Iterator
from pathlib import PurePath
from typing import Any

import numpy as np
import torch
from torch import nn

from domainbed.errors import UserError

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
    *(functools.partial, weakref.ref, logging.Logger, type(threading.Lock()), re.Pattern),
)
_CONSTANTS = (
    *(torch.device, torch.dtype, torch.Size, torch.layout, torch.memory_format, np.dtype),
    *(range, slice, enum.Enum, PurePath),
)
_CONTAINERS = (list, tuple, dict, set, frozenset, deque, bytearray, memoryview, Iterator)
_BIT_GENERATORS: dict[str, Any] = {
    kind.__name__: kind
    for kind in (
        *(np.random.MT19937, np.random.PCG64, np.random.PCG64DXSM),
        *(np.random.Philox, np.random.SFC64),
    )
}
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


def unseen(algorithm: nn.Module) -> list[str]:
    """Attributes with state that `capture` cannot see, each as "name (class)".

    A run whose updates change one of them cannot go on from a checkpoint.
    """
    capturing = _Capture(algorithm)
    capturing.attributes()
    return capturing.unseen


def restore(algorithm: nn.Module, state: State) -> None:
    """Puts `state` into an algorithm that was constructed with the same arguments.

    Raises:
        UserError: it has parts that were not captured or cannot be made anew, or names a class
            that the algorithm does not use.
    """
    device = next((p.device for p in algorithm.parameters()), torch.device("cpu"))
    classes = _Classes(algorithm)
    _create_missing(algorithm, state["modules"], state["tensors"], classes, device)
    modules = dict(algorithm.named_modules())
    _restore_tensors(modules, state["tensors"], device)
    restorer = _Restore(dict(algorithm.named_parameters()), classes, device)
    for path, attributes in state["attributes"].items():
        restorer.attributes(modules[path], attributes, path)


def _refusal(where: str, class_name: str, reason: str) -> UserError:
    return UserError(
        f"the run cannot go on: the algorithm's {where!r} ({class_name}) {reason}; remove its "
        "checkpoint.pt to begin it again"
    )


def _below(where: str, name: str) -> str:
    return f"{where}.{name}" if where else name


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
    algorithm: nn.Module,
    layouts: State,
    tensors: dict[str, Any],
    classes: _Classes,
    device: torch.device,
) -> None:
    """Makes the modules, parameters and buffers anew that updates brought into being."""
    modules = dict(algorithm.named_modules())
    for path, layout in layouts.items():  # owners come before what they own
        if path and (path not in modules or _class_name(modules[path]) != layout["class"]):
            owner, _, leaf = path.rpartition(".")
            modules = {p: m for p, m in modules.items() if not f"{p}.".startswith(f"{path}.")}
            modules[path] = _new_module(classes.find(layout["class"], nn.Module, path))
            modules[owner].__dict__.pop(leaf, None)  # it may have been None
            modules[owner].add_module(leaf, modules[path])
        _register_missing(modules[path], path, layout, tensors, device)


def _new_module(cls: type[nn.Module]) -> nn.Module:
    """Without calling its constructor, whose arguments nobody knows."""
    module = cls.__new__(cls)
    nn.Module.__init__(module)
    return module


def _register_missing(
    module: nn.Module, path: str, layout: State, tensors: dict[str, Any], device: torch.device
) -> None:
    def made(name: str) -> torch.Tensor | None:
        module.__dict__.pop(name, None)
        value = tensors.get(_below(path, name))
        return None if value is None else value.to(device).clone()

    for name, trained in layout["parameters"].items():
        if module._parameters.get(name) is None:
            value = made(name)
            parameter = None if value is None else nn.Parameter(value, trained)
            module.register_parameter(name, parameter)
    for name, persistent in layout["buffers"].items():
        if module._buffers.get(name) is None:
            module.register_buffer(name, made(name), persistent)


def _class_name(value: Any) -> str:
    return _name_of(type(value))


def _name_of(cls: type) -> str:
    # A worker process sees its parent's script under another name.
    module = "__main__" if cls.__module__ == "__mp_main__" else cls.__module__
    return f"{module}:{cls.__qualname__}"


class _Classes:
    """The classes that a checkpoint may name: nothing is imported for its sake.

    They are PyTorch's modules and optimizers, this package's networks, and what the modules can
    see that define the algorithm, its parents and its networks.
    """

    def __init__(self, algorithm: nn.Module) -> None:
        own = {cls for module in algorithm.modules() for cls in type(module).__mro__}
        self._known = {_name_of(cls): cls for cls in own}
        for module in {cls.__module__ for cls in own}:
            self._known |= _classes_in(module)

    def find(self, name: str, base: type, where: str) -> Any:
        """The class of a captured object, a subclass of `base`.

        Raises:
            UserError: no such class is known here.
        """
        module = name.partition(":")[0]
        trusted = f"{module}.".startswith(("torch.nn.", "torch.optim.", "domainbed.networks."))
        known = {**self._known, **_classes_in(module)} if trusted else self._known
        found = _find_class(name, known)
        if found is None or not issubclass(found, base):
            raise _refusal(where, name, "is of a class that the algorithm's modules do not know")
        return found


def _find_class(name: str, known: dict[str, type]) -> type | None:
    """The class of that full name: one of `known`, or one that stands inside another's body."""
    if name in known:
        return known[name]
    outer = name.rpartition(".")[0]
    owner = _find_class(outer, known) if ":" in outer else None
    members = vars(owner).values() if owner else ()
    return next((m for m in members if isinstance(m, type) and _name_of(m) == name), None)


def _classes_in(module: str) -> dict[str, type]:
    """The classes in the namespace of a module that is imported already, by their full names."""
    namespace = vars(sys.modules[module]) if module in sys.modules else {}
    return {_name_of(cls): cls for cls in namespace.values() if isinstance(cls, type)}


def _restore_tensors(
    modules: dict[str, nn.Module], tensors: dict[str, torch.Tensor], device: torch.device
) -> None:
    for name, value in tensors.items():
        path, _, leaf = name.rpartition(".")
        module = modules.get(path)
        if module is None:  # the second name of a module that has two
            continue
        own = module._parameters.get(leaf, module._buffers.get(leaf))
        if own is not None and own.shape == value.shape:
            with torch.no_grad():
                own.copy_(value)
        elif leaf in module._buffers:  # one that was empty, or has grown
            module._buffers[leaf] = value.to(device if own is None else own.device, copy=True)
        elif own is not None:
            raise _refusal(name, _class_name(own), "has taken another shape in an update")


class _Capture:
    def __init__(self, algorithm: nn.Module) -> None:
        self._modules = dict(algorithm.named_modules())
        self._parameters = {id(p): name for name, p in algorithm.named_parameters()}
        self._seen = {id(module) for module in self._modules.values()}
        self.unseen: list[str] = []

    def attributes(self) -> dict[str, State]:
        found = {path: self._attributes_of(m, path) for path, m in self._modules.items()}
        return {path: attributes for path, attributes in found.items() if attributes}

    def _attributes_of(self, owner: Any, where: str) -> State:
        encoded = {
            name: self._encode(value, _below(where, name))
            for name, value in vars(owner).items()
            if not (isinstance(owner, nn.Module) and name in _MODULE_INTERNALS)
        }
        return {name: e for name, e in encoded.items() if e is not _SKIP}

    def _encode(self, value: Any, where: str) -> State:
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
        if type(value) in _SEQUENCES.values():
            return self._encode_sequence(value, where)
        if type(value) in _MAPPINGS.values() and all(map(_is_plain, value)):
            return self._encode_mapping(value, where)
        self._seen.add(id(value))
        return self._encode_object(value, where)

    def _encode_sequence(self, value: Any, where: str) -> State:
        return {
            "kind": "sequence",
            "type": type(value).__name__,
            "maxlen": getattr(value, "maxlen", None),
            "items": [self._encode(item, f"{where}[{n}]") for n, item in enumerate(value)],
        }

    def _encode_mapping(self, value: Any, where: str) -> State:
        return {
            "kind": "mapping",
            "type": type(value).__name__,
            "keys": list(value),
            "items": [self._encode(item, f"{where}[{key!r}]") for key, item in value.items()],
        }

    def _encode_object(self, value: Any, where: str) -> State:
        if isinstance(value, torch.optim.Optimizer):
            return self._encode_optimizer(value, where)
        if isinstance(value, nn.Module):  # one that its owner hides from PyTorch, in a list say
            inner = {
                path: self._attributes_of(m, _below(where, path) if path else where)
                for path, m in value.named_modules()
            }
            name = _class_name(value)
            return {"kind": "module", "class": name, "tensors": _tensors(value), "inner": inner}
        if isinstance(value, torch.Generator):
            return {"kind": "generator", "value": value.get_state()}
        if isinstance(value, random.Random):
            return {"kind": "random", "class": _class_name(value), "value": value.getstate()}
        if isinstance(value, np.random.RandomState):
            state = plain_numpy_state(value)
            return {"kind": "random", "class": _class_name(value), "value": state}
        if isinstance(value, np.random.Generator):
            inner = self._encode(value.bit_generator.state, where)
            return {"kind": "numpy_generator", "value": inner}
        if isinstance(value, (*_CODE, *_CONSTANTS)):
            return _SKIP
        if hasattr(value, "state_dict") and hasattr(value, "load_state_dict"):
            inner = self._encode(value.state_dict(), where)
            return {"kind": "stateful", "class": _class_name(value), "value": inner}
        if _hides(value):
            return self._encode_unseen(value, where, _fingerprint(value))
        attributes = self._attributes_of(value, where)
        return {"kind": "object", "class": _class_name(value), "attributes": attributes}

    def _encode_unseen(self, value: Any, where: str, fingerprint: str | None) -> State:
        self.unseen.append(f"{where} ({_class_name(value)})")
        return {"kind": "unseen", "class": _class_name(value), "fingerprint": fingerprint}

    def _encode_optimizer(self, optimizer: torch.optim.Optimizer, where: str) -> State:
        if any(isinstance(v, torch.optim.Optimizer) for v in vars(optimizer).values()):
            # One around another: its state dict is without the other's moments.
            return self._encode_unseen(optimizer, where, None)
        groups = [
            [self._parameters.get(id(p)) for p in g["params"]] for g in optimizer.param_groups
        ]
        return {
            "kind": "optimizer",
            "class": _class_name(optimizer),
            "groups": groups,
            "value": optimizer.state_dict(),
        }


def _is_plain(key: Any) -> bool:
    """Whether a key of a mapping means the same in another process."""
    return all(map(_is_plain, key)) if type(key) is tuple else isinstance(key, _PLAIN)


def _hides(value: Any) -> bool:
    """Whether an object has state beside its `__dict__`."""
    slots = any(vars(cls).get("__slots__") for cls in type(value).__mro__)
    return slots or not hasattr(value, "__dict__") or isinstance(value, _CONTAINERS)


def _fingerprint(value: Any) -> str | None:
    """A digest of the pickled value; None of what cannot be pickled, such as a generator."""
    try:
        return hashlib.sha256(pickle.dumps(value)).hexdigest()
    except Exception:  # classes refuse in their own ways
        return None


_VALUES: dict[str, Any] = {  # what is replaced, whatever was there
    "value": lambda value: value,
    "scalar": lambda value: value.cpu().numpy()[()],
    "array": lambda value: value.cpu().numpy().copy(),
}


class _Restore:
    def __init__(
        self, parameters: dict[str, nn.Parameter], classes: _Classes, device: torch.device
    ) -> None:
        self._parameters, self._classes, self._device = parameters, classes, device
        self._names = {id(parameter): name for name, parameter in parameters.items()}

    def attributes(self, owner: Any, encoded: State, where: str) -> None:
        for name, value in encoded.items():
            old = vars(owner).get(name)
            new = self._decode(old, value, _below(where, name))
            if new is not old:
                vars(owner)[name] = new

    def _decode(self, old: Any, encoded: State, where: str) -> Any:
        kind = encoded["kind"]
        if kind == "skip":
            return old
        if kind in _VALUES:
            return _VALUES[kind](encoded["value"])
        return getattr(self, f"_decode_{kind}")(old, encoded, where)

    def _decode_tensor(self, old: Any, encoded: State, where: str) -> Any:
        value = encoded["value"]
        if not isinstance(old, torch.Tensor):
            return value.to(self._device, copy=True).requires_grad_(encoded["trained"])
        if old.requires_grad and old.is_leaf and old.shape == value.shape:
            with torch.no_grad():  # an optimizer may hold this very tensor
                return old.copy_(value).requires_grad_()
        return value.to(old.device, copy=True).requires_grad_(encoded["trained"])

    # Containers are refilled, not replaced: another object may hold the same one.
    def _decode_sequence(self, old: Any, encoded: State, where: str) -> Any:
        known: list[Any] = list(old) if isinstance(old, (list, tuple, set, deque)) else []
        known += [None] * (len(encoded["items"]) - len(known))
        items = [
            self._decode(o, item, f"{where}[{n}]")
            for n, (o, item) in enumerate(zip(known, encoded["items"]))
        ]
        kind, maxlen = _SEQUENCES[encoded["type"]], encoded["maxlen"]
        if kind is tuple or type(old) is not kind or getattr(old, "maxlen", None) != maxlen:
            return deque(items, maxlen) if kind is deque else kind(items)
        old.clear()
        old.update(items) if kind is set else old.extend(items)
        return old

    def _decode_mapping(self, old: Any, encoded: State, where: str) -> Any:
        kind = _MAPPINGS[encoded["type"]]
        if kind is defaultdict and type(old) is not kind:
            raise _refusal(where, "defaultdict", "was made by an update")  # its factory is lost
        items = {
            key: self._decode(_item(old, key), item, f"{where}[{key!r}]")
            for key, item in zip(encoded["keys"], encoded["items"])
        }
        if type(old) is not kind:
            return kind(items)
        old.clear()
        old.update(items)
        return old

    def _decode_optimizer(self, old: Any, encoded: State, where: str) -> Any:
        optimizer = old if self._fits(old, encoded) else self._new_optimizer(old, encoded, where)
        optimizer.load_state_dict(encoded["value"])
        return optimizer

    def _fits(self, old: Any, encoded: State) -> bool:
        if not isinstance(old, torch.optim.Optimizer) or _class_name(old) != encoded["class"]:
            return False
        groups = [[self._names.get(id(p)) for p in g["params"]] for g in old.param_groups]
        return groups == encoded["groups"]

    def _new_optimizer(self, old: Any, encoded: State, where: str) -> torch.optim.Optimizer:
        """One that replaced the constructor's, with other parameters or of another class."""
        name = encoded["class"]
        if any(p not in self._parameters for group in encoded["groups"] for p in group):
            raise _refusal(where, name, "was made by an update, over parameters without a name")
        same = _class_name(old) == name
        cls = type(old) if same else self._classes.find(name, torch.optim.Optimizer, where)
        groups = [{"params": [self._parameters[p] for p in group]} for group in encoded["groups"]]
        return cls(groups, lr=encoded["value"]["param_groups"][0]["lr"])

    def _decode_module(self, old: Any, encoded: State, where: str) -> Any:
        _require_class(old, encoded, where)
        modules = dict(old.named_modules())
        _restore_tensors(modules, encoded["tensors"], self._device)
        for path, attributes in encoded["inner"].items():
            inner = _below(where, path) if path else where
            if path not in modules:
                raise _refusal(inner, "a module", "was made by an update")
            self.attributes(modules[path], attributes, inner)
        return old

    def _decode_generator(self, old: Any, encoded: State, where: str) -> Any:
        generator = old if isinstance(old, torch.Generator) else torch.Generator()
        generator.set_state(encoded["value"].cpu())
        return generator

    def _decode_random(self, old: Any, encoded: State, where: str) -> Any:
        _require_class(old, encoded, where)
        if isinstance(old, random.Random):
            old.setstate(encoded["value"])
        else:
            old.set_state(encoded["value"])
        return old

    def _decode_numpy_generator(self, old: Any, encoded: State, where: str) -> Any:
        state = self._decode(None, encoded["value"], where)
        kind = _BIT_GENERATORS.get(state["bit_generator"])
        if kind is None:
            raise _refusal(where, state["bit_generator"], "is no bit generator of NumPy")
        if not isinstance(old, np.random.Generator) or type(old.bit_generator) is not kind:
            old = np.random.Generator(kind())
        old.bit_generator.state = state
        return old

    def _decode_stateful(self, old: Any, encoded: State, where: str) -> Any:
        _require_class(old, encoded, where)
        old.load_state_dict(self._decode(old.state_dict(), encoded["value"], where))
        return old

    def _decode_object(self, old: Any, encoded: State, where: str) -> Any:
        _require_class(old, encoded, where)
        self.attributes(old, encoded["attributes"], where)
        return old

    def _decode_unseen(self, old: Any, encoded: State, where: str) -> Any:
        """What was not captured: fine where it is still as the constructor makes it."""
        if encoded["fingerprint"] is None or encoded["fingerprint"] != _fingerprint(old):
            raise _refusal(where, encoded["class"], "has state that inspection cannot see")
        return old


def _require_class(old: Any, encoded: State, where: str) -> None:
    """Only what the constructor makes can be filled."""
    if _class_name(old) != encoded["class"]:
        raise _refusal(where, encoded["class"], "was made by an update")


def _item(container: Any, key: Any) -> Any:
    """What a mapping holds, or would make, under a key; None where it has nothing."""
    if not isinstance(container, dict):
        return None
    if key not in container and isinstance(container, defaultdict) and container.default_factory:
        return container.default_factory()
    return container.get(key)


def plain_numpy_state(source: Any) -> tuple[Any, ...]:
    """A NumPy random state as numbers and strings."""
    name, keys, *others = source.get_state()
    return (name, keys.tolist(), *others)
