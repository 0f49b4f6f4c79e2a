"""Putting a captured state back into an algorithm, which then continues as the captured one would.

A file never makes the program import anything: it may name modules and optimizers of classes that
are imported already.
"""

import random
import sys
from collections import defaultdict, deque
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from domainbed.config.run_facts import HParams
from domainbed.errors import UserError
from domainbed.training.state import (
    MAPPINGS,
    SEQUENCES,
    State,
    below,
    class_name,
    fingerprint,
)


def restore(algorithm: nn.Module, state: State) -> None:
    """Puts `state` into an algorithm that was constructed with the same arguments.

    Raises:
        UserError: it has parts that were not captured or cannot be made again, or names a class
            that is not known.
    """
    device = next((p.device for p in algorithm.parameters()), torch.device("cpu"))
    classes = {class_name(module): type(module) for module in algorithm.modules()}
    _create_missing(algorithm, state["modules"], state["tensors"], classes, device)
    modules = dict(algorithm.named_modules())
    _restore_tensors(modules, state["tensors"], device)
    restorer = _Restore(dict(algorithm.named_parameters()), classes, device)
    for path, attributes in state["attributes"].items():
        restorer.attributes(modules[path], attributes, path)


def _refusal(where: str, kind: str, reason: str) -> UserError:
    return UserError(
        f"the run cannot resume: the algorithm's {where!r} ({kind}) {reason}; remove its "
        "checkpoint.pt to start it again"
    )


def _create_missing(
    algorithm: nn.Module,
    layouts: State,
    tensors: dict[str, Any],
    classes: Mapping[str, type],
    device: torch.device,
) -> None:
    """Makes the modules, parameters and buffers that updates had created."""
    modules = dict(algorithm.named_modules())
    for path, layout in layouts.items():  # owners come before what they own
        if path and (path not in modules or class_name(modules[path]) != layout["class"]):
            owner, _, leaf = path.rpartition(".")
            modules = {p: m for p, m in modules.items() if not f"{p}.".startswith(f"{path}.")}
            cls = _class_named(layout["class"], classes, nn.Module, path)
            # Without calling its constructor, whose arguments nobody knows.
            modules[path] = cls.__new__(cls)
            nn.Module.__init__(modules[path])
            modules[owner].__dict__.pop(leaf, None)  # it may have been None
            modules[owner].add_module(leaf, modules[path])
        _register_missing(modules[path], path, layout, tensors, device)


def _register_missing(
    module: nn.Module, path: str, layout: State, tensors: dict[str, Any], device: torch.device
) -> None:
    def made(name: str) -> torch.Tensor | None:
        module.__dict__.pop(name, None)
        value = tensors.get(below(path, name))
        return None if value is None else value.to(device).clone()

    for name, trained in layout["parameters"].items():
        if module._parameters.get(name) is None:
            value = made(name)
            module.register_parameter(name, None if value is None else nn.Parameter(value, trained))
    for name, persistent in layout["buffers"].items():
        if module._buffers.get(name) is None:
            module.register_buffer(name, made(name), persistent)


def _class_named(name: str, own: Mapping[str, type], base: type, where: str) -> Any:
    """The class of a captured object: one of the algorithm's `own`, or one that is imported here.

    Raises:
        UserError: there is no such class, or it is no subclass of `base`.
    """
    module, _, path = name.partition(":")
    found: Any = own.get(name, sys.modules.get(module))
    if name not in own:
        for part in path.split("."):
            found = getattr(found, "__dict__", {}).get(part)  # which imports nothing
    if not isinstance(found, type) or not issubclass(found, base):
        raise _refusal(where, name, "is of a class that is not known here")
    return found


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
            raise _refusal(name, class_name(own), "has taken another shape in an update")


_VALUES: dict[str, Any] = {  # what is replaced, whatever was there
    "value": lambda value: value,
    "scalar": lambda value: value.cpu().numpy()[()],
    "array": lambda value: value.cpu().numpy().copy(),
}


_FILLED = ("module", "random", "stateful", "object", "wrapper")
"""Kinds of objects that only their constructor can make: their state is put into them."""


class _Restore:
    def __init__(
        self, parameters: dict[str, nn.Parameter], classes: Mapping[str, type], device: torch.device
    ) -> None:
        self._parameters, self._classes, self._device = parameters, classes, device
        self._names = {id(parameter): name for name, parameter in parameters.items()}

    def attributes(self, owner: Any, encoded: State, where: str) -> None:
        for name, value in encoded.items():
            old = vars(owner).get(name)
            new = self._decode(old, value, below(where, name))
            if new is not old:
                vars(owner)[name] = new

    def _decode(self, old: Any, encoded: State, where: str) -> Any:
        kind = encoded["kind"]
        if kind == "skip":
            return old
        if kind in _FILLED and class_name(old) != encoded["class"]:
            raise _refusal(where, encoded["class"], "was made by an update")
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
        kind, maxlen = SEQUENCES[encoded["type"]], encoded["maxlen"]
        if kind is tuple or type(old) is not kind or getattr(old, "maxlen", None) != maxlen:
            return deque(items, maxlen) if kind is deque else kind(items)
        old.clear()
        old.update(items) if kind is set else old.extend(items)
        return old

    def _decode_mapping(self, old: Any, encoded: State, where: str) -> Any:
        kind = MAPPINGS[encoded["type"]]
        if kind is defaultdict and type(old) is not kind:
            raise _refusal(where, "defaultdict", "was made by an update")  # its factory is lost
        items = {
            key: self._decode(_item(old, key), item, f"{where}[{key!r}]")
            for key, item in zip(encoded["keys"], encoded["items"])
        }
        if type(old) is not kind and not isinstance(old, HParams):
            return kind(items)
        old.clear()
        old.update(items)
        return old

    def _decode_optimizer(self, old: Any, encoded: State, where: str) -> Any:
        fits = isinstance(old, torch.optim.Optimizer) and class_name(old) == encoded["class"]
        if fits:
            groups = [[self._names.get(id(p)) for p in g["params"]] for g in old.param_groups]
            fits = groups == encoded["groups"]
        optimizer = old if fits else self._new_optimizer(old, encoded, where)
        optimizer.load_state_dict(encoded["value"])
        return optimizer

    def _decode_wrapper(self, old: Any, encoded: State, where: str) -> Any:
        self.attributes(old, encoded["attributes"], where)
        old.load_state_dict(self._decode(None, encoded["value"], where))
        for name in encoded["shared"]:  # loading has given each groups of its own
            vars(old)[name].param_groups = old.param_groups
        return old

    def _new_optimizer(self, old: Any, encoded: State, where: str) -> torch.optim.Optimizer:
        """An optimizer that replaced the constructor's: of another class, or other parameters."""
        name = encoded["class"]
        if any(p not in self._parameters for group in encoded["groups"] for p in group):
            raise _refusal(where, name, "was made by an update, over parameters without a name")
        same = class_name(old) == name
        cls = type(old) if same else _class_named(name, self._classes, torch.optim.Optimizer, where)
        groups = [{"params": [self._parameters[p] for p in group]} for group in encoded["groups"]]
        optimizer = cls(groups, lr=encoded["value"]["param_groups"][0]["lr"])
        if rule := getattr(old, "rule", None):  # of one that `new_optimizer` made
            rule.attach(optimizer)
        return optimizer

    def _decode_module(self, old: Any, encoded: State, where: str) -> Any:
        modules = dict(old.named_modules())
        _restore_tensors(modules, encoded["tensors"], self._device)
        for path, attributes in encoded["inner"].items():
            inner = below(where, path) if path else where
            if path not in modules:
                raise _refusal(inner, "a module", "was made by an update")
            self.attributes(modules[path], attributes, inner)
        return old

    def _decode_generator(self, old: Any, encoded: State, where: str) -> Any:
        generator = old if isinstance(old, torch.Generator) else torch.Generator()
        generator.set_state(encoded["value"].cpu())
        return generator

    def _decode_random(self, old: Any, encoded: State, where: str) -> Any:
        put = old.setstate if isinstance(old, random.Random) else old.set_state
        put(encoded["value"])
        return old

    def _decode_numpy_generator(self, old: Any, encoded: State, where: str) -> Any:
        state = self._decode(None, encoded["value"], where)
        kind: Any = getattr(np.random, state["bit_generator"], None)
        if not (isinstance(kind, type) and issubclass(kind, np.random.BitGenerator)):
            raise _refusal(where, state["bit_generator"], "is no bit generator of NumPy")
        if not isinstance(old, np.random.Generator) or type(old.bit_generator) is not kind:
            old = np.random.Generator(kind())
        old.bit_generator.state = state
        return old

    def _decode_stateful(self, old: Any, encoded: State, where: str) -> Any:
        old.load_state_dict(self._decode(old.state_dict(), encoded["value"], where))
        return old

    def _decode_object(self, old: Any, encoded: State, where: str) -> Any:
        self.attributes(old, encoded["attributes"], where)
        return old

    def _decode_unseen(self, old: Any, encoded: State, where: str) -> Any:
        """What was not captured: fine if it is still as the constructor makes it."""
        if encoded["fingerprint"] is None or encoded["fingerprint"] != fingerprint(old):
            raise _refusal(where, encoded["class"], "has state that inspection cannot see")
        return old


def _item(container: Any, key: Any) -> Any:
    """What a mapping holds, or would make, under a key; None if it has nothing."""
    if not isinstance(container, dict):
        return None
    if key not in container and isinstance(container, defaultdict) and container.default_factory:
        return container.default_factory()
    return container.get(key)
