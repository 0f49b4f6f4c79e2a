"""What a fork's train script hands to its algorithms: arguments by name, and hyper-parameters.

Train scripts add to the hyper-parameters what their methods read there, so that all of it is here
under the names that forks use.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from domainbed.config.run_facts import Handed, RunFacts
from domainbed.core.fork_calls import arguments, by_name

T = TypeVar("T")


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
