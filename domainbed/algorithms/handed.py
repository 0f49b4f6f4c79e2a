"""What a fork's train script hands to its algorithms: arguments by name, and hyper-parameters.

Train scripts add to the hyper-parameters what their methods read there, so that all of it is here
under the names that forks use.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import torch

from domainbed.algorithms.foreign_code import role
from domainbed.config.run_facts import Handed, RunFacts
from domainbed.core.forks import arguments
from domainbed.errors import UserError

T = TypeVar("T")

# What DomainBed's constructors take, in this order, under whatever names.
_USUAL = ("input_shape", "num_classes", "num_domains", "hparams")


def construct(
    cls: type[T],
    folder: Path | None,
    input_shape: Sequence[int],
    num_classes: int,
    num_domains: int,
    hparams: Mapping[str, Any],
    facts: RunFacts,
    more: Mapping[str, Any],
    elsewhere: Callable[[], Mapping[str, tuple[Any, str]]],
) -> T:
    """An object of a fork's class of algorithms, as the fork's train script makes it.

    Args:
        cls: the class. Arguments go by their names; the first four are else DomainBed's.
        folder: of the fork, whose train scripts say which `args` there are.
        input_shape, num_classes, num_domains, hparams: as `Algorithm` has them.
        facts: of the run.
        more: what else is known, by name.
        elsewhere: see `Handed`.
    """
    of_run = _of_run(facts, num_classes, num_domains)
    handed = Handed({**of_run, **dict(facts.data_options), **hparams}, facts, elsewhere)
    passed = _passed(folder) if folder else {}
    args = vars(arguments(folder, {}))
    needed = {name: args[name] for name in required(cls) & args.keys()}
    known = {**needed, **passed, **of_run, **more, "hparams": handed, "input_shape": input_shape}
    known["args"] = arguments(folder, {**of_run, "hparams": handed})
    needs = f"the constructor of {cls.__name__} needs {{}}, which nothing here gives: take a "
    values = given(parameters_of(cls), known, _USUAL, needs + "subclass that does")
    takes_all = any(p.kind is p.VAR_POSITIONAL for p in inspect.signature(cls).parameters.values())
    first = [values.pop(name) for name in list(values)[: len(_USUAL) * takes_all]]
    return cls(*first, **values)


def parameters_of(cls: Any) -> list[inspect.Parameter]:
    """Those of its constructor, or of the one that this hands `*args` to."""
    found = list(inspect.signature(cls).parameters.values())
    takes_all = any(each.kind is each.VAR_POSITIONAL for each in found)
    return parameters_of(cls.__mro__[1]) if takes_all else found


def required(cls: Any) -> set[str]:
    """What a constructor needs beside DomainBed's four arguments."""
    others = parameters_of(cls)[4:]
    return {p.name for p in others if p.default is p.empty and p.kind is not p.VAR_KEYWORD}


def given(
    parameters: Iterable[inspect.Parameter],
    known: Mapping[str, Any],
    first: Sequence[str],
    needs: str,
) -> dict[str, Any]:
    """What a function is called with, by name.

    Args:
        parameters: of the function.
        known: by name, or by what a name means.
        first: what the first ones are where their names say nothing.
        needs: the error where nothing is known of others without a default; `{}` are their names.
    """
    named = {each.name: each for each in parameters}
    found, lacking = {}, []
    for place, (name, parameter) in enumerate(named.items()):
        usual = [each for each in first[place : place + 1] if each not in named]
        names = [each for each in (name, role(name), *usual) if each in known]
        if names and parameter.kind is not parameter.VAR_KEYWORD:
            found[name] = known[names[0]]
        elif parameter.default is parameter.empty and parameter.kind < parameter.VAR_KEYWORD:
            lacking.append(repr(name))
    if lacking:
        raise UserError(needs.format(", ".join(lacking)))
    return found


@cache
def _passed(folder: Path) -> dict[str, Any]:
    """What a fork's train scripts hand on by name, as in `weights=args.weights`."""
    args = vars(arguments(folder, {}))
    files = sorted(folder.rglob("train*.py"))
    scripts = "".join(file.read_text("utf-8", "replace") for file in files)
    return {name: args.get(arg) for name, arg in re.findall(r"\b(\w+) *= *args\.(\w+)", scripts)}


def _of_run(facts: RunFacts, num_classes: int, num_domains: int) -> dict[str, Any]:
    """The facts of a run, under the names that forks give them."""
    named: dict[tuple[str, ...], Any] = {
        ("class_names", "classnames", "classes"): list(facts.class_names),
        (
            "steps",
            "n_steps",
            "n_step",
            "num_steps",
            "max_steps",
            "iters",
            "total_steps",
        ): facts.steps,
        ("dataset", "dataset_name"): facts.dataset,
        ("device",): torch.device(facts.device),
        ("test_envs", "test_env", "target_env"): list(facts.test_envs),
        ("group_sizes", "data_sizes", "num_examples", "env_sizes"): list(facts.group_sizes),
        ("domain_names", "env_names"): list(facts.domain_names),
        ("num_classes", "n_classes", "class_num"): num_classes,
        ("num_domains", "n_domains", "num_envs", "domain_num"): num_domains,
    }
    return {name: value for names, value in named.items() for name in names}
