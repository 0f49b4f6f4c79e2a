"""Launchers: where the runs of a sweep are done. A new one: its file, and its import here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from domainbed.errors import UserError
from domainbed.launchers.base import LAUNCHERS, Event, Job, Launcher, OnEvent, perform
from domainbed.launchers.debug import DebugLauncher
from domainbed.launchers.local import LocalLauncher
from domainbed.settings import make

WITH_FLAGS: tuple[type[Launcher], ...] = (DebugLauncher, LocalLauncher)
"""The launchers whose options are flags of a sweep."""


def create_launcher(name: str, options: Mapping[str, Any]) -> Launcher:
    """The launcher `name` with its options.

    Raises:
        UserError: no such launcher; options that it does not have, with all that it has; or a
            value that cannot be. Its `where` is the option.
    """
    valid = list(LAUNCHERS[name].model_fields)
    unknown = [option for option in options if option not in valid]
    if unknown:
        raise UserError(
            f"the launcher {name!r} has no option {', '.join(map(repr, unknown))}. "
            f"Known: {', '.join(valid) or 'none'}",
            unknown[0],
        )
    return make(LAUNCHERS[name], options)


__all__ = [
    "LAUNCHERS",
    "WITH_FLAGS",
    "DebugLauncher",
    "Event",
    "Job",
    "Launcher",
    "LocalLauncher",
    "OnEvent",
    "create_launcher",
    "perform",
]
