"""What the code of a fork's class says about how its train script calls it."""

from __future__ import annotations

import ast
import inspect
import sys
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from domainbed.core.forks import code_of

_NAMES = {
    "x": ("x", "xs", "image", "images", "img", "imgs", "input", "inputs", "data"),
    "y": ("y", "ys", "label", "labels", "target", "targets"),
    "domain": ("d", "e", "env", "envs", "domain", "domains", "domain_label", "domain_labels"),
    "attribute": ("a", "attr", "attrs", "attribute", "attributes"),
    "index": ("i", "idx", "index", "indices"),
    "step": ("step", "global_step", "current_step", "iteration", "iter", "it"),
}
_ROLES = {name: role for role, names in _NAMES.items() for name in names}
# What a method calls that trains; and what stands for setting an attribute.
_STEPS, _STORES = {"step", "backward"}, "="
_STANDARD = {"update", "predict", "forward", "train", "eval", "clone"}


def role(name: str) -> str:
    """What a fork means by a name: a part of a minibatch, "step", or just that name.

    Example:
        >>> role("all_x"), role("env"), role("depth")
        ('x', 'domain', 'depth')
    """
    name = name.removeprefix("all_")
    return _ROLES.get(name, name)


class Batch(NamedTuple):
    """What an `update` unpacks of the minibatches that it is called with.

    Attributes:
        parts: the role of each.
        pooled: whether it is called with one minibatch of all domains, and not with one of each.
    """

    parts: tuple[str, ...] = ("x", "y")
    pooled: bool = False


@cache
def batch_of(cls: Any) -> Batch:
    """As a class unpacks its minibatches in `update`, in a loop or an assignment.

    They are the first argument, or the first that is called a batch.
    """
    names = list(inspect.signature(cls.update).parameters)[1:]
    first = next((name for name in names if "batch" in name), "".join(names[:1]))
    methods, used = _methods(cls)
    reached = {"update", *_reaches("update", used)}
    for code in [code for name, code in methods.items() if name in reached]:
        for node in ast.walk(code):
            if isinstance(node, (ast.For, ast.comprehension)):
                source, target = node.iter, node.target
            elif isinstance(node, ast.Assign):
                source, target = node.value, node.targets[0]
            else:
                continue
            text = ast.unparse(source)
            if text == f"enumerate({first})" and isinstance(target, ast.Tuple):
                text, target = first, target.elts[-1]
            if text in (first, f"zip(*{first})") and isinstance(target, ast.Tuple):
                parts = tuple(role(ast.unparse(each)) for each in target.elts)
                if not any(isinstance(each, ast.Tuple) for each in target.elts):
                    return Batch(parts, isinstance(node, ast.Assign) and text == first)
    return Batch()


def undriven(cls: Any, folder: Path | None) -> list[str]:
    """Methods of a class that train, and that only its train script calls.

    Args:
        cls: the class.
        folder: of the fork with its scripts, in which a method that sets attributes counts too.
            Without any, those are meant that step an optimizer and that nothing in the file calls.
    """
    methods, used = _methods(cls)
    sources = {sys.modules[getattr(cls, name).__module__] for name in methods}
    called = set().union(*(_attributes(code_of(each)) for each in sources))
    by_scripts = _called_by_scripts(folder) if folder else set()
    marks = _STEPS | {_STORES} if by_scripts else _STEPS
    driven = methods.keys() & (by_scripts or methods.keys()) - _STANDARD - called
    return sorted(n for n in driven if not n.startswith("_") and _reaches(n, used) & marks)


def _reaches(name: str, used: dict[str, set[str]]) -> set[str]:
    """What a method uses, and the other methods of its class that it calls."""
    reached: set[str] = set()
    left = {name}
    while left:
        reached |= left
        left = set().union(*(used[each] & used.keys() for each in left)) - reached
    return set().union(*(used[each] for each in reached))


@cache
def _called_by_scripts(folder: Path) -> set[str]:
    """The methods that scripts call on what they call `update` of."""
    found: set[str] = set()
    for file in folder.rglob("*ain*.py"):  # train, trainer, main
        calls = [node for node in ast.walk(code_of(file)) if isinstance(node, ast.Call)]
        methods = [call.func for call in calls if isinstance(call.func, ast.Attribute)]
        objects = {ast.unparse(each.value) for each in methods if each.attr == "update"}
        found |= {each.attr for each in methods if ast.unparse(each.value) in objects}
    return found


def _attributes(code: ast.AST) -> set[str]:
    """The names of attributes, and `_STORES` where one is set."""
    found = [node for node in ast.walk(code) if isinstance(node, ast.Attribute)]
    stores = {_STORES for node in found if isinstance(node.ctx, ast.Store)}
    return {node.attr for node in found} | stores


def _methods(cls: Any) -> tuple[dict[str, ast.AST], dict[str, set[str]]]:
    """The code of the methods that are not PyTorch's, `update` first, and what each uses."""
    found = {"update": cls.update, **dict(inspect.getmembers(cls, inspect.isfunction))}
    foreign = {
        n: f for n, f in found.items() if not f.__module__.startswith(("torch.", "domainbed."))
    }
    codes = {name: code_of(function) for name, function in foreign.items()}
    return codes, {name: _attributes(code) for name, code in codes.items()}
