"""The algorithms of forks, and the search spaces that the forks' own registries declare."""

from __future__ import annotations

import ast
import re
from contextlib import suppress
from functools import cache, partial
from pathlib import Path
from types import ModuleType
from typing import Any

import yaml

from domainbed.algorithms.base import ALGORITHMS, Algorithm
from domainbed.algorithms.foreign import adapt
from domainbed.algorithms.foreign_code import needs_of
from domainbed.config.dimensions import DatasetFacts, Foreign
from domainbed.core import forks
from domainbed.core.forks import Fork, arguments, by_name, code_of

_REGISTRIES = ("/hparams_registry.py", "/hyperparams.py")
# What an option of this package means otherwise than a fork's registry.
_OF_IMAGES = {"image_size", "orientation", "window"}


def register(fork: Fork) -> None:
    """Registers the classes of a fork that have `update` and `predict`.

    Raises:
        Exception: its file of algorithms cannot be imported.
    """
    fork.load()
    registry, adapted = fork.load(*_REGISTRIES), []
    for cls in filter(_is_algorithm, fork.classes()):
        made: Any = adapt(cls, fork.folder)
        adapted.append(made)
        if registry is not None and not (issubclass(cls, Algorithm) and cls.search_space):
            made.search_space = partial(_space, fork, registry, cls.__name__)
            names = tuple(base.__name__ for base in cls.__mro__)
            made.elsewhere = partial(_elsewhere, fork.module, names)
    fork.register(ALGORITHMS, adapted)


def _is_algorithm(cls: Any) -> bool:
    """Whether a class has what is trained and evaluated, and says how.

    One whose constructor needs what those of its subclasses give is abstract.
    """
    methods = [getattr(cls, name, None) for name in ("update", "predict")]
    names = [getattr(getattr(each, "__code__", None), "co_names", ()) for each in methods]
    is_whole = all(map(callable, methods)) and ("NotImplementedError",) not in names
    return is_whole and not any(needs_of(cls) - needs_of(each) for each in cls.__subclasses__())


def _space(
    fork: Fork, registry: ModuleType, algorithm: str, facts: DatasetFacts
) -> dict[str, Foreign]:
    """The hyper-parameters of an algorithm as the fork's registry has them."""
    dataset = facts.name.removeprefix(f"{fork.name}-")
    if facts.small_images and dataset not in ("ColoredMNIST", "Debug28"):
        dataset = "RotatedMNIST"  # registries know small images by their names
    draw = cache(partial(_hparams, fork, registry, algorithm, dataset))
    defaults = draw(0, False)

    def drawn(name: str, seed: int) -> Any:
        return draw(seed, True).get(name, defaults[name])

    names = [name for name in defaults if name not in _OF_IMAGES]
    return {name: Foreign(defaults[name], partial(drawn, name)) for name in names}


@cache
def _elsewhere(root: str, names: tuple[str, ...]) -> dict[str, tuple[Any, str]]:
    """What a fork has for hyper-parameters that its registry does not give an algorithm.

    Args:
        root: the name of the root of the fork's modules.
        names: of the algorithm and its bases.

    Returns:
        values with their places: of the bases, of the other algorithms and datasets that the
        registry compares names with, and of the arguments of scripts and `config.yaml`.
    """
    fork = forks.FORKS[root]
    registry = fork.load(*_REGISTRIES)
    assert registry is not None
    nodes = ast.walk(code_of(Path(str(registry.__file__))))
    names_there = [n.value for n in nodes if isinstance(n, ast.Constant)]
    others = [value for value in dict.fromkeys(names_there) if isinstance(value, str)]
    pairs = [(name, "PACS", name) for name in [*names, *others]]
    found: dict[str, tuple[Any, str]] = {}
    for algorithm, dataset, of in pairs + [(names[0], other, other) for other in others]:
        with suppress(Exception):  # of names that are neither
            place = "" if of == names[0] else f"which the fork's registry has for {of}"
            values = _hparams(fork, registry, algorithm, dataset, 0, False)
            found = {**{name: (value, place) for name, value in values.items()}, **found}
    of_scripts = vars(arguments(fork.folder, {}))
    for file in sorted(fork.folder.rglob("config.yaml"), key=lambda file: len(file.parts))[:1]:
        of_scripts |= yaml.safe_load(file.read_text()) or {}
    place = "the default of the fork's scripts"
    return {n: (v, place) for n, v in of_scripts.items() if v is not None} | found


def _hparams(
    fork: Fork, registry: ModuleType, algorithm: str, dataset: str, seed: int, is_random: bool
) -> dict[str, Any]:
    """What a registry's functions return."""
    own = getattr(registry, "random_hparams" if is_random else "default_hparams", None)
    names = [name for name in vars(registry) if re.fullmatch(r"get_\w+_hparams", name)]
    known: dict[str, Any] = {
        **dict.fromkeys(("algorithm", "algorithm_name", "objective", "objective_name"), algorithm),
        **dict.fromkeys(("dataset", "dataset_name"), dataset),
        "test_envs": [],  # of any run
    }
    args = arguments(fork.folder, known)
    known |= {"args": args, "seed": seed, "random_seed": seed, "sample": is_random}
    known = {**vars(args), **known}
    found: dict[str, Any] = {}
    for function in [own] if own else [getattr(registry, name) for name in names]:
        with suppress(NotImplementedError):  # of datasets that it does not know
            found |= by_name(function, known)
    return {n: value.item() if hasattr(value, "item") else value for n, value in found.items()}
