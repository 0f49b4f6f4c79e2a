"""The algorithms of forks, and the search spaces that the forks' own registries declare."""

import ast
import re
from contextlib import suppress
from functools import cache, partial
from inspect import signature
from pathlib import Path
from types import ModuleType
from typing import Any

from domainbed.algorithms.base import ALGORITHMS, Algorithm
from domainbed.algorithms.foreign import adapt
from domainbed.algorithms.foreign_code import needs_of
from domainbed.config.dimensions import DatasetFacts, Foreign
from domainbed.core import forks
from domainbed.core.forks import Fork, arguments, code_of

_REGISTRIES = ("/hparams_registry.py", "/hyperparams.py")
_COMPARED = re.compile(
    r"""hparams(?:\[["']|\.)(\w+)(?:["']\])? (?:==|(?:not )?in) [\[(]?["']([^"']+)["']"""
)
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
        names = tuple(base.__name__ for base in cls.__mro__)
        made.elsewhere = partial(_elsewhere, fork.module, names)
        if registry is not None and not (issubclass(cls, Algorithm) and cls.search_space):
            made.search_space = partial(_space, fork, registry, cls.__name__)
        adapted.append(made)
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

    return {
        name: Foreign(default, partial(drawn, name))
        for name, default in defaults.items()
        if name not in _OF_IMAGES
    }


@cache
def _elsewhere(root: str, names: tuple[str, ...]) -> dict[str, tuple[Any, str]]:
    """What a fork has for hyper-parameters that its registry does not give an algorithm.

    Args:
        root: the name of the root of the fork's modules.
        names: of the algorithm and its bases.

    Returns:
        values with their places: of the bases, of the other algorithms and datasets that the
        registry speaks of, and of the fork's scripts (see `core.forks.set_by_scripts`); else a
        text that its modules compare the hyper-parameter with.
    """
    fork = forks.FORKS[root]
    registry: Any = fork.load(*_REGISTRIES)
    constants = [n.value for n in ast.walk(code_of(registry)) if isinstance(n, ast.Constant)]
    others = [
        each for each in dict.fromkeys(constants) if isinstance(each, str) and each[:1].isupper()
    ]
    pairs = [(name, "PACS", name) for name in [*names, *others]]
    found: dict[str, tuple[Any, str]] = {}
    for algorithm, dataset, of in pairs + [(names[0], other, other) for other in others]:
        with suppress(Exception):  # of names that are neither
            place = "" if of == names[0] else f"which the fork's registry has for {of}"
            values = _hparams(fork, registry, algorithm, dataset, 0, False)
            found = {**{name: (value, place) for name, value in values.items()}, **found}
    of_scripts = vars(arguments(fork.folder, {})).items()
    found = {name: (value, "as the fork's scripts set it") for name, value in of_scripts} | found
    files = filter(None, [getattr(module, "__file__", None) for module in fork.modules().values()])
    compared = [
        pair
        for file in files
        for pair in _COMPARED.findall(Path(file).read_text("utf-8", "replace"))
    ]
    return {n: (text, "which the fork compares it with") for n, text in compared[::-1]} | found


def _hparams(
    fork: Fork, registry: ModuleType, algorithm: str, dataset: str, seed: int, is_random: bool
) -> dict[str, Any]:
    """What a registry's functions return."""
    of = "random" if is_random else "default"
    known: dict[str, Any] = {
        **dict.fromkeys(("algorithm", "algorithm_name", "objective", "objective_name"), algorithm),
        **dict.fromkeys(("dataset", "dataset_name"), dataset),
        "test_envs": [],  # of any run
    }
    args = arguments(fork.folder, known)
    known |= {"args": args, "seed": seed, "random_seed": seed, "sample": is_random}
    known = {**vars(args), **known}
    found: dict[str, Any] = {}
    for name in [n for n in vars(registry) if re.fullmatch(rf"{of}_hparams|get_\w+_hparams", n)]:
        function = getattr(registry, name)
        with suppress(NotImplementedError):  # of datasets that it does not know
            found |= function(**{n: known[n] for n in signature(function).parameters if n in known})
    return {n: value.item() if hasattr(value, "item") else value for n, value in found.items()}
