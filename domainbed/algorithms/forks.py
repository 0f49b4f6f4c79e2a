"""The algorithms of forks, and the search spaces that the forks' own registries declare."""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import suppress
from functools import cache, partial
from types import ModuleType
from typing import Any

from domainbed.algorithms.base import ALGORITHMS, Algorithm
from domainbed.algorithms.foreign import adapt
from domainbed.algorithms.handed import script_hparams
from domainbed.config.dimensions import DatasetFacts, Foreign
from domainbed.core.fork_calls import arguments, by_name
from domainbed.core.forks import SPACES, Fork


def register(fork: Fork) -> None:
    """Registers the classes of a fork that have `update` and `predict`.

    Raises:
        UserError: its file of algorithms cannot be imported.
    """
    fork.load()
    registry = fork.module_of(SPACES)
    adapted = []
    for cls in filter(_is_algorithm, fork.classes()):
        adapted.append(adapt(cls, fork.folder))
        if registry is not None and not (issubclass(cls, Algorithm) and cls.search_space):
            adapted[-1].search_space = partial(_space, fork, registry, cls.__name__)
    fork.register(ALGORITHMS, adapted)


def _is_algorithm(cls: type) -> bool:
    """Whether a class has what is trained and evaluated, and says how."""
    methods = [getattr(cls, name, None) for name in ("update", "predict")]
    codes = [getattr(method, "__code__", None) for method in methods]
    return all(map(callable, methods)) and not any(
        code is not None and code.co_names == ("NotImplementedError",) for code in codes
    )


def _space(
    fork: Fork, registry: ModuleType, algorithm: str, facts: DatasetFacts
) -> dict[str, Foreign]:
    """The hyper-parameters of an algorithm as the fork's registry has them."""
    dataset = facts.name.removeprefix(f"{fork.name}-")
    if facts.small_images and dataset not in ("ColoredMNIST", "Debug28"):
        dataset = "RotatedMNIST"  # registries know small images by their names
    names = ("algorithm", "algorithm_name", "objective_name", "objective")
    known: dict[str, Any] = dict.fromkeys(names, algorithm)
    known |= dict.fromkeys(("dataset", "dataset_name"), dataset)
    known["args"] = arguments(fork.folder, known)
    defaults = {**script_hparams(fork.folder), **_hparams(registry, known, 0, False)}
    draw = cache(partial(_hparams, registry, known))

    def drawn(name: str, seed: int) -> Any:
        return draw(seed, True).get(name, defaults[name])

    return {name: Foreign(value, partial(drawn, name)) for name, value in defaults.items()}


def _hparams(
    registry: ModuleType, known: Mapping[str, Any], seed: int, is_random: bool
) -> dict[str, Any]:
    """What a registry's functions return."""
    own = getattr(registry, "random_hparams" if is_random else "default_hparams", None)
    names = [name for name in vars(registry) if re.fullmatch(r"get_\w+_hparams", name)]
    known = {**known, "seed": seed, "random_seed": seed, "sample": is_random}
    found: dict[str, Any] = {}
    for function in [own] if own else [getattr(registry, name) for name in names]:
        with suppress(NotImplementedError):  # of datasets that it does not know
            found |= by_name(function, known)
    return {
        name: value.item() if hasattr(value, "item") else value for name, value in found.items()
    }
