"""Launchers: where the runs of a sweep are executed. A new one: its file, and its import here."""

from collections.abc import Mapping
from typing import Any

from domainbed.core.settings import make
from domainbed.errors import UserError
from domainbed.launchers.base import (
    LAUNCHERS,
    BlockingHandle,
    Event,
    Handle,
    Job,
    JobReport,
    Launcher,
    OnEvent,
    Resources,
    perform,
)
from domainbed.launchers.local import DebugLauncher, LocalLauncher
from domainbed.launchers.ray import RayLauncher
from domainbed.launchers.slurm import SlurmLauncher

WITH_FLAGS: tuple[type[Launcher], ...] = (
    *(DebugLauncher, LocalLauncher),
    *(SlurmLauncher, RayLauncher),
)
"""The launchers whose options are flags of a sweep."""


def create_launcher(name: str, options: Mapping[str, Any]) -> tuple[Launcher, Resources]:
    """The launcher `name` with its own options, and the resources of one task that they ask for.

    Raises:
        UserError: no such launcher; options that it does not have, with all that it has; or a
            value that cannot be. Its `where` is the option.
    """
    kind: type[Launcher] = LAUNCHERS[name]
    valid = [*kind.model_fields, *kind.resource_options]
    unknown = [option for option in options if option not in valid]
    if unknown:
        raise UserError(
            f"the launcher {name!r} has no option {', '.join(map(repr, unknown))}. "
            f"Known: {', '.join(valid) or 'none'}",
            unknown[0],
        )
    own = {option: v for option, v in options.items() if option in kind.model_fields}
    of_a_task = {option: v for option, v in options.items() if option not in own}
    return make(kind, own), make(Resources, of_a_task)


__all__ = [
    "LAUNCHERS",
    "WITH_FLAGS",
    "BlockingHandle",
    "DebugLauncher",
    "Event",
    "Handle",
    "Job",
    "JobReport",
    "Launcher",
    "LocalLauncher",
    "OnEvent",
    "RayLauncher",
    "Resources",
    "SlurmLauncher",
    "create_launcher",
    "perform",
]
