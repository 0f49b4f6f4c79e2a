"""What a field of a config may hold: each check takes a raw value and returns the clean one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from domainbed.errors import UserError

Check = Callable[[Any], Any]


class Wrong(Exception):
    """A value is not what it should be.

    Attributes:
        message: what was expected instead, or the whole complaint.
        inside: where in the field's value the fault lies: keys and positions.
    """

    def __init__(self, message: str, *inside: str | int) -> None:
        super().__init__(message)
        self.message, self.inside = message, inside


def expected(what: str, value: Any, *inside: str | int) -> Wrong:
    """The complaint that `value` is not `what`."""
    return Wrong(f"expected {what}, found {value!r}", *inside)


def text(value: Any) -> str:
    """A string; numbers and the like are not quietly turned into one."""
    if not isinstance(value, str) or not value:
        raise expected("a text", value)
    return value


def flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise expected("true or false", value)
    return value


def whole(least: int) -> Check:
    """A whole number from `least` on."""

    def check(value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise expected(f"a whole number from {least} on", value)
        return value

    return check


def fraction(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < 1:
        raise expected("a number from 0 on, below 1", value)
    return float(value)


def one_of(*choices: str) -> Check:
    def check(value: Any) -> str:
        if value not in choices:
            raise expected(f"one of {', '.join(choices)}", value)
        return str(value)

    return check


def listed(item: Check) -> Check:
    """A list without repetitions, or one item in its stead."""

    def check(value: Any) -> tuple[Any, ...]:
        if not isinstance(value, (list, tuple)):
            return (item(value),)
        if not value:
            raise expected("at least one", value)
        return tuple(dict.fromkeys(_each(item, value)))

    return check


def seeds(value: Any) -> tuple[int, ...]:
    """A count n, which means the seeds 0 … n-1, or a list of seeds."""
    if isinstance(value, (list, tuple)):
        return tuple(listed(whole(0))(value))
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise expected("a count from 1 on or a list of seeds", value)
    return tuple(range(value))


def test_env_sets(value: Any) -> tuple[tuple[int, ...], ...]:
    """A list of lists of domains; a number stands for a list of one."""
    if not isinstance(value, (list, tuple)) or not value:
        raise expected("a list of lists of domain numbers, such as [[0], [0, 1]]", value)
    sets = _each(_test_envs, value)
    return tuple(dict.fromkeys(sets))


def _test_envs(value: Any) -> tuple[int, ...]:
    envs = value if isinstance(value, (list, tuple)) else [value]
    if len(set(map(str, envs))) < len(envs):
        raise expected("each domain once", value)
    return tuple(sorted(listed(whole(0))(envs)))


def mapping(value: Any) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise expected("names with values", value)
    for name in value:
        if not isinstance(name, str):
            raise expected("names with values", value)
    return dict(value)


def _each(check: Check, values: Any) -> list[Any]:
    clean = []
    for position, value in enumerate(values):
        try:
            clean.append(check(value))
        except Wrong as wrong:
            raise Wrong(wrong.message, position, *wrong.inside) from wrong
        except UserError as error:
            raise Wrong(str(error), position) from error
    return clean
