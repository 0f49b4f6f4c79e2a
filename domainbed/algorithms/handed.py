"""What a fork's train script hands to its classes: arguments by their names, and hyper-parameters.

Train scripts add to the hyper-parameters what their methods read there, so that all of it is here
under the names that forks use.
"""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar

from domainbed.config.run_facts import HParams, RunFacts

T = TypeVar("T")


class Handed(HParams):
    """Hyper-parameters that are also attributes."""

    def __getattr__(self, name: str) -> Any:
        if name not in self:
            raise AttributeError(name)
        return self[name]

    def __reduce__(self) -> tuple[Any, ...]:
        return Handed, (dict(self), self.facts)


def by_name(function: Callable[..., T], known: Mapping[str, Any], *first: Any) -> T:
    """Calls a function with what is known of its parameters, after its first ones."""
    parameters = list(inspect.signature(function).parameters)[len(first) :]
    return function(*first, **{name: known[name] for name in parameters if name in known})


def construct(
    cls: Callable[..., T],
    folder: Path | None,
    input_shape: Sequence[int],
    num_classes: int,
    num_domains: int,
    hparams: Mapping[str, Any],
    facts: RunFacts,
) -> T:
    """An object of a fork's class of algorithms, as the fork's train script makes it.

    Args:
        cls: the class. Its first four arguments are DomainBed's; others go by their names.
        folder: of the fork, whose train scripts say which `args` there are.
        input_shape, num_classes, num_domains, hparams: as `Algorithm` has them.
        facts: of the run.
    """
    of_run = _of_run(facts, num_classes, num_domains)
    handed = Handed({**of_run, **hparams}, facts)
    known = {**of_run, "hparams": handed, "input_shape": input_shape}
    known["args"] = arguments(folder, {**of_run, "hparams": handed})
    usual = (input_shape, num_classes, num_domains, handed)
    names = list(inspect.signature(cls).parameters)
    if names[: len(usual)] == ["input_shape", "num_classes", "num_domains", "hparams"]:
        return by_name(cls, known, *usual)
    required = [p for p in inspect.signature(cls).parameters.values() if p.default is p.empty]
    if all(p.name in known for p in required if p.kind is p.POSITIONAL_OR_KEYWORD):
        return by_name(cls, known)
    return cls(*usual)


def _of_run(facts: RunFacts, num_classes: int, num_domains: int) -> dict[str, Any]:
    """The facts of a run, under the names that forks give them."""
    named: dict[tuple[str, ...], Any] = {
        ("class_names", "classnames", "classes"): list(facts.class_names),
        ("steps", "n_steps", "num_steps", "max_steps", "iters", "total_steps"): facts.steps,
        ("dataset", "dataset_name"): facts.dataset,
        ("test_envs", "test_env", "target_env"): list(facts.test_envs),
        ("group_sizes", "data_sizes", "num_examples", "env_sizes"): list(facts.group_sizes),
        ("domain_names", "env_names"): list(facts.domain_names),
        ("num_classes", "n_classes", "class_num"): num_classes,
        ("num_domains", "n_domains", "num_envs", "domain_num"): num_domains,
    }
    return {name: value for names, value in named.items() for name in names}


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
