"""Importing a user's own modules, so that what they register is known by its name."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Iterable
from pathlib import Path

from domainbed.errors import UserError


def import_plugins(names: Iterable[str]) -> None:
    """Imports modules by name, and `.py` files by path.

    Raises:
        UserError: one cannot be imported; the message has the reason.
    """
    for name in names:
        try:
            _import_file(Path(name)) if name.endswith(".py") else importlib.import_module(name)
        except UserError:
            raise
        except (Exception, SystemExit) as error:
            raise UserError(
                f"plug-in {name!r} cannot be imported ({type(error).__name__}: {error}): give an "
                "importable module or the path of a .py file"
            ) from error


def _import_file(path: Path) -> None:
    module_name = f"domainbed_plugin_{path.stem}"
    loaded = sys.modules.get(module_name)
    if loaded is not None and Path(str(loaded.__file__)) == path.resolve():
        return
    if not path.is_file():
        raise UserError(f"plug-in {str(path)!r} does not exist: give the path of a .py file")
    path = path.resolve()
    spec = importlib.util.spec_from_file_location(module_name, path)
    if spec is None or spec.loader is None:
        raise UserError(f"plug-in {str(path)!r} is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[module_name]
        raise
