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
from domainbed.core.forks import Fork, arguments, by_name


def register(fork: Fork) -> None:
    """Registers the classes of a fork that have `update` and `predict`.

    Raises:
        Exception: its file of algorithms cannot be imported.
    """
    fork.load()
    registry, adapted = fork.load("/hparams_registry.py", "/hyperparams.py"), []
    for cls in filter(_is_algorithm, fork.classes()):
        adapted.append(adapt(cls, fork.folder))
        if registry is not None and not (issubclass(cls, Algorithm) and cls.search_space):
            adapted[-1].search_space = partial(_space, fork, registry, cls.__name__)
    fork.register(ALGORITHMS, adapted)


def _is_algorithm(cls: type) -> bool:
    """Whether a class has what is trained and evaluated, and says how."""
    methods = [getattr(cls, name, None) for name in ("update", "predict")]
    names = [getattr(getattr(each, "__code__", None), "co_names", ()) for each in methods]
    return all(map(callable, methods)) and ("NotImplementedError",) not in names


def _space(
    fork: Fork, registry: ModuleType, algorithm: str, facts: DatasetFacts
) -> dict[str, Foreign]:
    """The hyper-parameters of an algorithm as the fork's registry has them."""
    dataset = facts.name.removeprefix(f"{fork.name}-")
    if facts.small_images and dataset not in ("ColoredMNIST", "Debug28"):
        dataset = "RotatedMNIST"  # registries know small images by their names
    known: dict[str, Any] = {
        **dict.fromkeys(("algorithm", "algorithm_name", "objective", "objective_name"), algorithm),
        **dict.fromkeys(("dataset", "dataset_name"), dataset),
        "test_envs": [],  # of any run
    }
    args = arguments(fork.folder, known)
    known = {**vars(args), **known, "args": args}
    draw = cache(partial(_hparams, registry, known))
    defaults = {**script_hparams(fork.folder), **draw(0, False)}

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
    return {n: value.item() if hasattr(value, "item") else value for n, value in found.items()}
