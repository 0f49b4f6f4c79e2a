"""What a fork's train script hands to its algorithms: arguments by name, and hyper-parameters.

Train scripts add to the hyper-parameters what their methods read there, so that all of it is here
under the names that forks use.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

import torch
import yaml

from domainbed.config.run_facts import Handed, RunFacts
from domainbed.core.forks import arguments
from domainbed.errors import UserError

T = TypeVar("T")

_USUAL = ("input_shape", "num_classes", "num_domains", "hparams")
"""What DomainBed's constructors take, in this order, under whatever names."""


_SET_FROM_ARGS = re.compile(
    r"""^\s*hparams\[["'](\w+)["']\] *=.*?\bargs\.(\w+)|^\s*["'](\w+)["']: *args\.(\w+)""",
    re.MULTILINE,
)


def construct(
    cls: type[T],
    folder: Path | None,
    input_shape: Sequence[int],
    num_classes: int,
    num_domains: int,
    hparams: Mapping[str, Any],
    facts: RunFacts,
    more: Mapping[str, Any] = MappingProxyType({}),
) -> T:
    """An object of a fork's class of algorithms, as the fork's train script makes it.

    Args:
        cls: the class. Arguments go by their names; the first four are else DomainBed's.
        folder: of the fork, whose train scripts say which `args` there are.
        input_shape, num_classes, num_domains, hparams: as `Algorithm` has them.
        facts: of the run.
        more: what else is known, by name.
    """
    of_run = _of_run(facts, num_classes, num_domains)
    handed = Handed({**of_run, **dict(facts.data_options), **hparams}, facts)
    passed = _passed(folder) if folder else {}
    known = {**passed, **of_run, **more, "hparams": handed, "input_shape": input_shape}
    known["args"] = arguments(folder, {**of_run, "hparams": handed})
    parameters = inspect.signature(cls).parameters
    if any(each.kind is each.VAR_POSITIONAL for each in parameters.values()):
        of_bases = [p for base in cls.__mro__ for p in inspect.signature(base).parameters.values()]
        taken = {p.name for p in of_bases if p.kind is p.POSITIONAL_OR_KEYWORD}
        by_name = {name: value for name, value in passed.items() if name in taken - {*_USUAL}}
        return cls(*(known[name] for name in _USUAL), **by_name)
    given, lacking = {}, []
    for place, (name, parameter) in enumerate(parameters.items()):
        usual = [each for each in _USUAL[place : place + 1] if each not in parameters]
        if name in known or usual:
            given[name] = known[name] if name in known else known[usual[0]]
        elif parameter.default is parameter.empty and parameter.kind is not parameter.VAR_KEYWORD:
            lacking.append(repr(name))
    if lacking:
        raise UserError(
            f"the constructor of {cls.__name__} needs {', '.join(lacking)}, which nothing here "
            "gives: take a subclass that does"
        )
    return cls(**given)


@cache
def _passed(folder: Path) -> dict[str, Any]:
    """What a fork's train scripts hand on by name, as in `weights=args.weights`."""
    scripts = "".join(file.read_text() for file in sorted(folder.rglob("train*.py")))
    args = vars(arguments(folder, {}))
    return {name: args.get(arg) for name, arg in re.findall(r"\b(\w+) *= *args\.(\w+)", scripts)}


def _of_run(facts: RunFacts, num_classes: int, num_domains: int) -> dict[str, Any]:
    """The facts of a run, under the names that forks give them."""
    named: dict[tuple[str, ...], Any] = {
        ("class_names", "classnames", "classes"): list(facts.class_names),
        ("steps", "n_steps", "num_steps", "max_steps", "iters", "total_steps"): facts.steps,
        ("dataset", "dataset_name"): facts.dataset,
        ("device",): torch.device(facts.device),
        ("test_envs", "test_env", "target_env"): list(facts.test_envs),
        ("group_sizes", "data_sizes", "num_examples", "env_sizes"): list(facts.group_sizes),
        ("domain_names", "env_names"): list(facts.domain_names),
        ("num_classes", "n_classes", "class_num"): num_classes,
        ("num_domains", "n_domains", "num_envs", "domain_num"): num_domains,
    }
    return {name: value for names, value in named.items() for name in names}


@cache
def script_hparams(folder: Path) -> dict[str, Any]:
    """Hyper-parameters that a fork's registry lacks: of `config.yaml`, or of a train script that
    sets `hparams["name"] = args.name`, or updates them with `"name": args.name`."""
    found: dict[str, Any] = {}
    for file in sorted(folder.rglob("config.yaml"), key=lambda file: len(file.parts))[:1]:
        found = yaml.safe_load(file.read_text()) or {}
    args = vars(arguments(folder, {}))
    for file in folder.rglob("train*.py"):
        for match in _SET_FROM_ARGS.finditer(file.read_text()):
            name, argument = filter(None, match.groups())
            if args.get(argument) is not None:
                found.setdefault(name, args[argument])
    return found
