"""The algorithms, one file per paper. A new one: its file, and its import here.

The order of the imports is the order of every list of algorithms.
"""

# ruff: noqa: I001

from typing import Any

from domainbed.algorithms.base import ALGORITHMS, Algorithm, register_algorithm
from domainbed.algorithms.erm import ERM
from domainbed.algorithms.coral import CORAL
from domainbed.algorithms.irm import IRM
from domainbed.algorithms.vrex import VREx
from domainbed.algorithms.fish import Fish
from domainbed.algorithms.fishr import Fishr
from domainbed.algorithms.dann import DANN
from domainbed.algorithms.fishr_add_on import PREFIX, with_fishr


def get_algorithm_class(name: str) -> Any:
    """The class registered under `name`, or for `Fishr+NAME` that with Fishr's penalty added.

    Raises:
        UserError: no such algorithm; the message suggests the nearest name and lists all.
    """
    if name.startswith(PREFIX) and name not in ALGORITHMS:
        base = name.removeprefix(PREFIX)
        return with_fishr(ALGORITHMS[base], base)
    return ALGORITHMS[name]


__all__ = [
    "ALGORITHMS",
    "CORAL",
    "DANN",
    "ERM",
    "IRM",
    "Algorithm",
    "Fish",
    "Fishr",
    "VREx",
    "get_algorithm_class",
    "register_algorithm",
]
