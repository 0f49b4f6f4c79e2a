"""Plug-ins: code from outside that registers more names, and the digests that tell its versions.

A plug-in is a `.py` file, a module that can be imported, an installed package that advertises
entry points, or somebody's fork of DomainBed (`domainbed.core.forks`). A file is known by its name
and the SHA-256 of its content; a module by its outermost package, and the SHA-256 of all Python
files in that; a fork by its name with a `/`, and the SHA-256 of its Python files.
"""

import importlib.util
import os
import sys
import warnings
from collections.abc import Iterable, Iterator
from functools import cache
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from domainbed.core import forks
from domainbed.core.files import digest_of, file_digest
from domainbed.errors import UserError, one_line

# By the name of the outermost module, the plug-in's name (of the file, or of the outermost package)
# and the digest, "sha256:…", of what was imported, whatever the files hold by now.
_imported: dict[str, tuple[str, str]] = {}

_OF_FILES = "domainbed_plugin_"
# By the name that was given, that of the outermost module.
_roots: dict[str, str] = {}


def import_plugins(names: Iterable[str]) -> None:
    """Imports modules by name, and `.py` files by path; a changed file is imported again.

    Raises:
        UserError: one cannot be imported, with the reason; or two files have the same name.
    """
    files: dict[str, str] = {}
    for name in names:
        is_fork = _is_path(name) and forks.is_fork(Path(name))
        first = name if is_fork else files.setdefault(Path(name).name, name)
        if name.endswith(".py") and first != name:
            raise UserError(
                f"plug-ins {first!r} and {name!r} are files of the same name: rename one"
            )
        load = _import_fork if is_fork else _import_file
        try:
            _roots[name] = load(Path(name)) if _is_path(name) else note(import_module(name))
        except UserError:
            raise
        except (Exception, SystemExit) as error:
            reason = f"{type(error).__name__}: {one_line(error)}"
            raise UserError(
                f"plug-in {name!r} cannot be imported ({reason}): {_remedy(name, error)}"
            ) from error


def _remedy(name: str, error: BaseException) -> str:
    """What to do about a plug-in that cannot be imported."""
    lacking = error.name if isinstance(error, ImportError) else None
    if isinstance(error, ModuleNotFoundError) and f"{name}.".startswith(f"{lacking}."):
        remedy = "give an importable module, or the path of a .py file or of a fork's folder"
        return remedy + f", or ./{name} for that folder" * os.path.isdir(name)
    if lacking and Path(name).with_name(f"{lacking}.py").exists():
        return (
            "files beside a plug-in are not searched: put both into one file, or into a package "
            "on PYTHONPATH"
        )
    return "repair it"


def _is_path(name: str) -> bool:
    """Whether a plug-in's name is a path, and not that of a module."""
    return name.endswith(".py") or "/" in name or name.startswith(".")


def _import_fork(path: Path) -> str:
    """Announces a fork, unless it is the same as before; returns the root of its modules."""
    fork = forks.Fork(path)
    plugin = (f"{fork.name}/", _digest_of((file, fork.folder) for file in fork.files))
    known = getattr(forks.FORKS.get(fork.module), "path", None)
    if (_imported.get(fork.module), known) != (plugin, fork.path):
        forks.announce(fork)
    _imported[fork.module] = plugin
    return fork.module


def _import_file(path: Path) -> str:
    if not path.is_file():
        raise UserError(
            f"plug-in {str(path)!r} does not exist: give a .py file, or a fork's folder"
        )
    path, module_name = path.resolve(), _OF_FILES + path.stem
    content = path.read_bytes()
    plugin = (path.name, f"sha256:{digest_of(content)}")
    loaded = getattr(sys.modules.get(module_name), "__file__", None)
    if loaded == str(path) and _imported.get(module_name) == plugin:
        return module_name
    module = sys.modules[module_name] = ModuleType(module_name)
    module.__file__ = str(path)
    try:
        # Not by the loader: of a file edited within a second it may run the bytecode of before.
        exec(compile(content, path, "exec"), vars(module))
    except BaseException:
        del sys.modules[module_name]
        raise
    _imported[module_name] = plugin
    return module_name


def note(module: ModuleType) -> str:
    """Notes that a module is a plug-in's, once it is imported; returns its outermost package."""
    root = module.__name__.partition(".")[0]
    if root not in _imported:
        _imported[root] = root, _digest(root)
    return root


def _digest(root: str) -> str:
    """Of a module's file, or of the names and contents of all Python files of a package."""
    spec = importlib.util.find_spec(root)
    folders = [Path(folder) for folder in (spec and spec.submodule_search_locations) or ()]
    files = sorted((file, folder) for folder in folders for file in folder.rglob("*.py"))
    if not files and spec and spec.origin:
        files = [(Path(spec.origin), Path(spec.origin).parent)]
    return _digest_of(files)


def _digest_of(files: Iterable[tuple[Path, Path]]) -> str:
    """Of files, each with the folder that its name starts from."""
    lines = (
        f"{file.relative_to(folder).as_posix()} {file_digest(file)}\n" for file, folder in files
    )
    return f"sha256:{digest_of(''.join(lines).encode())}"


def located(names: Any, folder: Path | str) -> Any:
    """Names of plug-ins with the paths of files made absolute: relative ones start at `folder`.

    What is no text or list of texts stays as it is.
    """
    several = [names] if isinstance(names, str) else names
    if not isinstance(several, (list, tuple)) or not all(isinstance(n, str) for n in several):
        return names
    return [os.path.abspath(Path(folder, n)) if _is_path(n) else n for n in several]


def named(names: Iterable[str]) -> dict[str, str]:
    """The digests of plug-ins that `import_plugins` imported by these names."""
    return dict(_imported[_roots[name]] for name in names)


def changed(made_with: Iterable[tuple[str, str]], missing: bool = True) -> list[str]:
    """The names of those plug-ins, given with digests, that are not the same in this process.

    Those that it does not have at all count as well, unless `missing` is false.
    """
    now = dict(_imported.values())
    for name, _ in made_with:
        if name not in now and not name.endswith((".py", "/")):  # it may be imported later
            now[name] = _digest(name)
    different = {name for name, digest in made_with if now.get(name) != digest}
    return sorted(different if missing else different & now.keys())


def plugins_of(objects: Iterable[Any]) -> dict[str, str]:
    """The digests of the plug-ins that define these objects, by name.

    Of an object it counts who defines its class, its base classes, and the classes and functions
    among its attributes.
    """
    roots = {module.partition(".")[0] for each in objects for module in _modules(each)}
    return dict(_imported[root] for root in sorted(roots & _imported.keys()))


@cache
def warn_once(message: str) -> None:
    """Warns once in a process, however often a command or a run meets the cause."""
    warnings.warn(message, stacklevel=2)


def _modules(thing: Any) -> Iterator[str]:
    """The names of the modules that define an object and its attributes."""
    for each in (thing, *getattr(thing, "__dict__", {}).values()):
        for definition in getattr(each, "__mro__", (each, *type(each).__mro__)):
            yield str(getattr(definition, "__module__", ""))
