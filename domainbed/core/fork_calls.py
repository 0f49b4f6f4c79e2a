"""Calls of a fork's code: arguments by their names, and the `args` of its train script."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar

T = TypeVar("T")


def by_name(function: Callable[..., T], known: Mapping[str, Any], *first: Any) -> T:
    """Calls a function with what is known of its parameters, after its first ones."""
    parameters = list(inspect.signature(function).parameters)[len(first) :]
    return function(*first, **{name: known[name] for name in parameters if name in known})


def arguments(folder: Path | None, known: Mapping[str, Any]) -> SimpleNamespace:
    """The `args` of a fork's train script: its own defaults, and what is known of the run."""
    return SimpleNamespace(**{**(_defaults(folder) if folder else {}), **known})


@cache
def _defaults(folder: Path) -> dict[str, Any]:
    """The defaults of the arguments that the train scripts of a fork declare."""
    found: dict[str, Any] = {}
    for file in sorted(folder.rglob("train*.py")):
        for call in ast.walk(ast.parse(file.read_bytes())):
            if not isinstance(call, ast.Call) or getattr(call.func, "attr", "") != "add_argument":
                continue
            settings = {word.arg: word.value for word in call.keywords}
            flags = [flag.value for flag in call.args if isinstance(flag, ast.Constant)]
            is_switch = "action" in settings and "store" in ast.unparse(settings["action"])
            name = str(flags[-1]).lstrip("-").replace("-", "_") if flags else ""
            found[name] = False if is_switch else None
            with suppress(KeyError, ValueError):  # of what only a running script knows
                found[name] = ast.literal_eval(settings["default"])
    return found
