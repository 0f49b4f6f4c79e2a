"""What the actions of `domainbed sweep` share: which sweep is meant, and questions."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from domainbed.cli.common import add_flag
from domainbed.cli.launcher_flags import add_launcher_flags
from domainbed.config.flags import add_flags, read_flags
from domainbed.errors import UserError
from domainbed.sweeps.config import SweepConfig, load_config

if TYPE_CHECKING:
    from domainbed.sweeps.store import PlannedRun, Store

Actions = Any
"""What `argparse` calls subparsers, to which an action is added."""

FOLDER_OR_CONFIG = "the folder of a sweep, or its config"


def add_skip_flag(
    parser: argparse.ArgumentParser, elsewhere: str = "only a terminal is asked"
) -> None:
    """Declares `--skip_confirmation`; `elsewhere` says what is done where nobody can be asked."""
    add_flag(parser, "--skip_confirmation", action="store_true", help=f"do not ask ({elsewhere})")


def given_fields(args: argparse.Namespace) -> dict[str, Any]:
    """The fields of a config that flags gave."""
    return read_flags(args, SweepConfig)


def add_field_flags(parser: argparse.ArgumentParser) -> None:
    """One flag for each field of a config, and for each option of the launchers."""
    fields = parser.add_argument_group("fields of the config", "each wins over the file's value")
    add_flags(fields, SweepConfig)
    add_launcher_flags(fields)


def load(
    target: str | None, overrides: dict[str, Any], options: dict[str, Any] | None = None
) -> SweepConfig:
    """The config in a file, or of the last launch into a folder.

    Raises:
        UserError: there is no such file or folder, or it holds no config.
    """
    from domainbed.sweeps.store import Store

    if target is not None:
        _refuse_missing(target)
    if target is None or not (Path(target).is_dir() or _is_kept(Path(target))):
        return load_config(target, overrides, **(options or {}))
    store = Store(target if Path(target).is_dir() else Path(target).parent)
    for file in (store.config, store.plan):
        if not file.is_file():
            raise UserError(
                f"{target!r} holds no {file.name}: name the folder of a launched sweep, or a config"
            )
    # The folder may have been moved since it was launched.
    overrides = {"output_dir": str(store.root), **overrides}
    return load_config(store.config, overrides, **(options or {}))


def _refuse_missing(target: str) -> None:
    try:
        Path(target).stat()
    except FileNotFoundError as error:
        raise UserError(f"{target!r} does not exist: name a sweep folder or a config") from error
    except (OSError, ValueError):  # of which whoever reads it tells more
        pass


def refuse_reruns(target: str | None) -> None:
    """Makes sure that a config is meant: none says which runs were chosen to be done again.

    Raises:
        UserError: it is the folder of new trials of what was chosen.
    """
    folder = Path(target or "")
    if "rerun-" not in folder.name:
        return
    from domainbed.sweeps.reruns import is_rerun

    if is_rerun(folder):
        raise UserError(
            f"{str(folder)!r} holds new trials of what was chosen: `domainbed sweep rerun-best "
            f"{folder.parent}`, with the same --trials, goes on with them, and with --retry does "
            "again what failed"
        )


def store_and_runs(target: str, overrides: dict[str, Any]) -> tuple[Store, dict[str, PlannedRun]]:
    """A sweep's folder and its runs, given by the folder or by a config.

    Raises:
        UserError: `target` is neither a sweep's folder nor a config.
    """
    from domainbed.sweeps.grid import plan
    from domainbed.sweeps.store import Store

    if Path(target).is_dir():
        store = Store(target)
        return store, store.planned()
    config = load(target, overrides)
    return Store(config.output_dir), {run.run_id: run.planned() for run in plan(config)}


def root_of(target: str, overrides: dict[str, Any]) -> Path:
    """A sweep's folder, given as such or by a config."""
    return Path(target if not Path(target).is_file() else load(target, overrides).output_dir)


def _is_kept(file: Path) -> bool:
    """Whether a config is the one that a launch left in a sweep's folder."""
    from domainbed.sweeps.store import Store

    store = Store(file.parent)
    return file.name == store.config.name and store.plan.is_file()


def confirmed(question: str) -> bool:
    return input(f"{question} [y/N] ").strip().lower() in ("y", "yes")
