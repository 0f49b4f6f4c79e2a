"""The whole state of an algorithm as plain values, found by inspection.

An algorithm may keep state anywhere: parameters and buffers, optimizers under any name,
counters, moving averages, queues, helper objects with attributes of their own. `capture` walks
all of it into tensors, numbers, strings and containers, which load without running code from
the file; `restoring.restore` puts them back into a freshly constructed algorithm. So a class that
never heard of this package resumes as exactly as the package's own.

What inspection cannot see (an iterator, an object with slots, a helper that an update made) is
refused by name when a run is resumed, unless it is as the constructor makes it.
"""

import enum
import functools
import logging
import pickle
import random
import re
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

from domainbed.config.run_facts import HParams, RunFacts
from domainbed.core.files import digest_of

State = dict[str, Any]

_PLAIN = (type(None), bool, int, float, complex, str, bytes)
SEQUENCES: dict[str, Any] = {"list": list, "tuple": tuple, "set": set, "deque": deque}
MAPPINGS: dict[str, Any] = {
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
    *(range, slice, enum.Enum, PurePath, RunFacts),
)
_CONTAINERS = (list, tuple, dict, set, frozenset, deque, bytearray, memoryview, Iterator)
_MODULE_INTERNALS = set(vars(nn.Module()))
_SKIP = {"kind": "skip"}


def capture(algorithm: nn.Module) -> State:
    """All state of `algorithm` that its next update could depend on.

    Its tensors are the algorithm's own: save them before the next update.
    """
    return {
        "modules": {  # what it takes to make those that an update has created
            path: {
                "class": class_name(module),
                "parameters": {
                    n: p is not None and p.requires_grad for n, p in module._parameters.items()
                },
                "buffers": {
                    n: n not in module._non_persistent_buffers_set for n in module._buffers
                },
            }
            for path, module in algorithm.named_modules()
        },
        "tensors": _tensors(algorithm),
        "attributes": _Capture(algorithm).attributes(),
    }


def unseen(algorithm: nn.Module) -> list[str]:
    """Attributes with state that `capture` cannot see, each as "name (class)".

    A run whose updates change one of them cannot resume from a checkpoint.
    """
    capturing = _Capture(algorithm)
    capturing.attributes()
    return capturing.unseen


def below(where: str, name: str) -> str:
    return f"{where}.{name}" if where else name


def _tensors(module: nn.Module) -> dict[str, Any]:
    """The state dict, and buffers that it leaves out but that the next step depends on."""
    return {**dict(module.named_buffers()), **module.state_dict()}


def class_name(value: Any) -> str:
    cls = type(value)
    # A worker process sees its parent's script under another name.
    module = "__main__" if cls.__module__ == "__mp_main__" else cls.__module__
    return f"{module}:{cls.__qualname__}"


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
            name: self._encode(value, below(where, name))
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
        if isinstance(value, HParams):
            value = dict(value)
        # Containers may be shared; anything else is captured where it is met first.
        if type(value) in SEQUENCES.values():
            return {
                "kind": "sequence",
                "type": type(value).__name__,
                "maxlen": getattr(value, "maxlen", None),
                "items": [self._encode(item, f"{where}[{n}]") for n, item in enumerate(value)],
            }
        if type(value) in MAPPINGS.values() and all(map(_is_plain, value)):
            return {
                "kind": "mapping",
                "type": type(value).__name__,
                "keys": list(value),
                "items": [self._encode(item, f"{where}[{key!r}]") for key, item in value.items()],
            }
        self._seen.add(id(value))
        return self._encode_object(value, where)

    def _encode_object(self, value: Any, where: str) -> State:
        if isinstance(value, torch.optim.Optimizer):
            return self._encode_optimizer(value, where)
        name = class_name(value)
        if isinstance(value, nn.Module):  # one that its owner hides from PyTorch, in a list say
            inner = {
                path: self._attributes_of(m, below(where, path) if path else where)
                for path, m in value.named_modules()
            }
            return {"kind": "module", "class": name, "tensors": _tensors(value), "inner": inner}
        if isinstance(value, torch.Generator):
            return {"kind": "generator", "value": value.get_state()}
        if isinstance(value, random.Random):
            return {"kind": "random", "class": name, "value": value.getstate()}
        if isinstance(value, np.random.RandomState):
            return {"kind": "random", "class": name, "value": plain_numpy_state(value)}
        if isinstance(value, np.random.Generator):
            return {
                "kind": "numpy_generator",
                "value": self._encode(value.bit_generator.state, where),
            }
        if isinstance(value, (*_CODE, *_CONSTANTS)):
            return _SKIP
        if hasattr(value, "state_dict") and hasattr(value, "load_state_dict"):
            inner = self._encode(value.state_dict(), where)
            return {"kind": "stateful", "class": name, "value": inner}
        if _hides(value):
            self.unseen.append(f"{where} ({name})")
            return {"kind": "unseen", "class": name, "fingerprint": fingerprint(value)}
        return {"kind": "object", "class": name, "attributes": self._attributes_of(value, where)}

    def _encode_optimizer(self, optimizer: torch.optim.Optimizer, where: str) -> State:
        named = vars(optimizer).items()
        inner = {name: value for name, value in named if isinstance(value, torch.optim.Optimizer)}
        if inner:  # its state dict is without their moments
            internals = vars(torch.optim.SGD([torch.zeros(1)], lr=1.0))
            own = {name: value for name, value in named if name not in internals}
            return {
                "kind": "wrapper",
                "class": class_name(optimizer),
                "shared": [
                    n for n, o in inner.items() if o.param_groups[0] is optimizer.param_groups[0]
                ],
                "attributes": {n: self._encode(v, below(where, n)) for n, v in own.items()},
                "value": self._encode(optimizer.state_dict(), where),
            }
        groups = [
            [self._parameters.get(id(p)) for p in g["params"]] for g in optimizer.param_groups
        ]
        return {
            "kind": "optimizer",
            "class": class_name(optimizer),
            "groups": groups,
            "value": optimizer.state_dict(),
        }


def _is_plain(key: Any) -> bool:
    """Whether a key of a mapping means the same in another process."""
    return all(map(_is_plain, key)) if type(key) is tuple else isinstance(key, _PLAIN)


def _hides(value: Any) -> bool:
    """Whether an object has state outside its `__dict__`."""
    slots = any(vars(cls).get("__slots__") for cls in type(value).__mro__)
    return slots or not hasattr(value, "__dict__") or isinstance(value, _CONTAINERS)


def fingerprint(value: Any) -> str | None:
    """A digest of the pickled value; None of what cannot be pickled, such as a generator."""
    try:
        return digest_of(pickle.dumps(value))
    except Exception:  # classes refuse in their own ways
        return None


def plain_numpy_state(source: Any) -> tuple[Any, ...]:
    """A NumPy random state as numbers and strings."""
    name, keys, *others = source.get_state()
    return (name, keys.tolist(), *others)
