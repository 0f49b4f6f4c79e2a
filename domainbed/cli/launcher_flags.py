"""The options of launchers as flags, for the commands that launch runs."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Any

from domainbed.config.flags import add_flags, read_flags
from domainbed.config.settings import Settings
from domainbed.launchers import WITH_FLAGS, Resources


def add_launcher_flags(parser: Any) -> None:
    """Declares a flag for each option of the built-in launchers, and for a run's resources."""
    for model, names in _flags():
        add_flags(parser, model, only=names)


def launcher_flags(args: argparse.Namespace) -> dict[str, Any]:
    """The options that flags gave."""
    given: dict[str, Any] = {}
    for model, _ in _flags():
        given |= read_flags(args, model)
    known = {name for _, names in _flags() for name in names}
    return {name: value for name, value in given.items() if name in known}


def _flags() -> Iterator[tuple[type[Settings], list[str]]]:
    """Which fields of which settings are flags; each name once."""
    yield Resources, list(dict.fromkeys(n for kind in WITH_FLAGS for n in kind.resource_options))
    named: set[str] = set()
    for kind in WITH_FLAGS:
        yield kind, [name for name in kind.model_fields if name not in named]
        named |= set(kind.model_fields)
