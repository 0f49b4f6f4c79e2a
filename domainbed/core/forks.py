"""Forks of DomainBed as plug-ins: a folder, or one of its files, that is used without an edit.

A fork's modules are imported under a root of their own, `domainbed_fork_NAME`, so that its
`domainbed` never takes this package's place and several forks live in one process. Each module has
its own `__import__`, which finds in the fork what the fork means, also in a function that imports
when it is called.
"""

from __future__ import annotations

import ast
import builtins
import importlib
import importlib.util
import json
import os
import sys
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache, cached_property
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np

from domainbed.errors import UserError, one_line

_OF_FORKS = "domainbed_fork_"
_KNOWN = "DOMAINBED_FORKS"
"""The environment variable with the paths of forks, by module: for processes that are spawned."""

ALGORITHMS = ("algorithms.py", "objectives.py", "algorithms/__init__.py")
SPACES = ("hparams_registry.py", "hyperparams.py")
DATASETS = ("datasets.py", "datasets/__init__.py")


def nearest(folder: Path, names: Sequence[str]) -> Path | None:
    """The file of one of these names that is nearest to the top of `folder`."""
    found = [file for name in names for file in folder.rglob(name)]
    return min(found, key=lambda file: (len(file.parts), str(file)), default=None)


def is_fork(path: Path) -> bool:
    """Whether a path is a folder, or a file of a package that has algorithms."""
    package = path.parent
    while (package.parent / "__init__.py").exists():
        package = package.parent
    is_inside = (package / "__init__.py").exists() and nearest(package, ALGORITHMS) is not None
    return path.is_dir() or path.name in ALGORITHMS or is_inside


class Missing:
    """Stands for what a fork imports and the environment lacks; to use it is an error.

    So what does not need it runs all the same.
    """

    def __init__(self, fork: Fork, name: str, reason: str) -> None:
        self._fork, self._name, self._reason = fork, name, reason

    def __getattr__(self, name: str) -> Missing:
        if name.startswith("__"):
            raise AttributeError(name)
        return Missing(self._fork, f"{self._name}.{name}", self._reason)

    def __call__(self, *args: Any, **settings: Any) -> Missing:
        if self._fork.loading:  # a decorator, say
            return self
        raise UserError(
            f"{self._fork.name} needs {self._name} ({self._reason}): install what provides it"
        )

    def __mro_entries__(self, bases: tuple[Any, ...]) -> tuple[type, ...]:
        return (type(self._name, (), {"__new__": self._missing_base}),)

    def _missing_base(self, cls: type, *args: Any, **settings: Any) -> Any:
        return self(*args, **settings)


class Fork:
    """A fork as a plug-in.

    Args:
        path: its folder, or one of its files.
        name: what it is called.

    Attributes:
        file: the one with its algorithms.
        folder: what it imports from: the folder of its outermost package.
        module: the name of the root of its modules.
        loading: whether its modules are being executed.
        names: of the classes that are registered.
        failures: why a module beside its algorithms could not be imported, by the module's name.

    Raises:
        UserError: the folder has no file of algorithms.
    """

    def __init__(self, path: Path, name: str) -> None:
        file = nearest(path, ALGORITHMS) if path.is_dir() else path
        if file is None:
            raise UserError(
                f"plug-in {str(path)!r} has no algorithms.py: give the path of the file with its "
                "algorithms"
            )
        self.name, self.file, self.module = name, file, _OF_FORKS + name.replace(".", "_")
        self.loading, self.failures = False, dict[str, str]()
        self.names: dict[str, type] = {}
        folder = file.parent
        while (folder / "__init__.py").exists():
            folder = folder.parent
        # A package without __init__.py is a folder whose name its own files import.
        imported = {"domainbed", *_imported(file)}
        folder = next((p.parent for p in file.parents if p.name in imported), folder)
        self.folder, self.path = folder, path
        self._inside = cache(self._find_inside)

    @cached_property
    def files(self) -> list[Path]:
        """All its Python files, or those beside a file that is in no package."""
        if self.path.is_file() and self.folder == self.file.parent:
            return sorted(self.folder.glob("*.py"))
        found = sorted(self.folder.rglob("*.py"))
        return [file for file in found if "/." not in f"/{file.relative_to(self.folder)}"]

    @property
    def package(self) -> Path:
        """The folder of its outermost package."""
        inside = self.file.relative_to(self.folder).parts
        return self.folder / inside[0] if len(inside) > 1 else self.folder

    def name_of(self, file: Path) -> str:
        """The name of a file as a module."""
        parts = file.relative_to(self.folder).with_suffix("").parts
        return ".".join([self.module, *parts]).removesuffix(".__init__")

    def module_of(self, names: Sequence[str]) -> ModuleType | None:
        """Its module of one of these file names, imported; None where it has none that can be."""
        file = nearest(self.package, names)
        if file is None or (module := self.name_of(file)) in self.failures:
            return None
        try:
            return self.load(module)
        except (Exception, SystemExit) as error:
            self.failures[module] = f"{type(error).__name__}: {one_line(error)}"
        return None

    def load(self, module: str = "") -> ModuleType:
        """Imports one of its modules: by default that of its algorithms."""
        for alias in (bool, complex, float, int, object, str):  # NumPy had these names once
            vars(np).setdefault(alias.__name__, alias)
        before, self.loading = self.loading, True
        try:
            return importlib.import_module(module or self.name_of(self.file))
        finally:
            self.loading = before

    def classes(self) -> list[type]:
        """The classes that its modules define, as far as they are imported."""
        modules = [m for name, m in sys.modules.items() if f"{name}.".startswith(f"{self.module}.")]
        return [
            value
            for module in modules
            for value in [*vars(module).values()]
            if isinstance(value, type) and value.__module__ == module.__name__
        ]

    def register(self, registry: Any, entries: Iterable[type]) -> None:
        """Registers classes under their own names, or with a prefix where these are taken."""
        renamed = []
        for entry in entries:
            name = entry.__name__
            try:
                registry.register(entry)
            except ValueError:
                name = f"{self.name}-{entry.__name__}"
                registry.register(entry, name=name)
                renamed.append(name)
            self.names[name] = entry
        if renamed:
            more = f" and {len(renamed) - 3} more" if len(renamed) > 3 else ""
            warnings.warn(
                f"{registry.kind}s of {self.name} whose names are taken have a prefix: "
                f"{', '.join(renamed[:3])}{more}",
                stacklevel=2,
            )

    def forget(self) -> None:
        """Drops its modules, so that they are imported again."""
        for name in [name for name in sys.modules if f"{name}.".startswith(f"{self.module}.")]:
            del sys.modules[name]

    def import_(
        self,
        name: str,
        of: Mapping[str, Any] | None = None,
        local: Mapping[str, Any] | None = None,
        wanted: Sequence[str] = (),
        level: int = 0,
    ) -> Any:
        """`__import__` for its modules."""
        first, _, rest = name.partition(".")
        inside = None if level else self._inside(first)
        if inside is not None:
            top = f"{self.module}.{inside}".rstrip(".")
            module = importlib.import_module(f"{top}.{rest}".rstrip("."))
            if wanted:
                return builtins.__import__(module.__name__, of, local, wanted, 0)
            return sys.modules[top]
        frame = sys._getframe(1)
        may_lack = level == 0 and frame.f_code.co_name == "<module>"
        may_lack = may_lack and frame.f_lineno not in _guarded(frame.f_code.co_filename)
        try:
            found = builtins.__import__(name, of, local, wanted, level)
        except ImportError as error:
            if not may_lack or (error.name or "").startswith(self.module):
                raise
            return Missing(self, name if wanted else first, one_line(error))
        if may_lack and any(each != "*" and not hasattr(found, each) for each in wanted or ()):
            reason = f"{name} has none"
            parts = {w: getattr(found, w, Missing(self, f"{name}.{w}", reason)) for w in wanted}
            return SimpleNamespace(**parts)
        return found

    def _find_inside(self, first: str) -> str | None:
        """The name below its root of what it imports as `first`; None of what is not its own."""
        places = [self.folder]
        for part in self.file.relative_to(self.folder).parts[:-1]:
            places.append(places[-1] / part)
        if _is_module(self.folder, first):
            return first
        if first == "domainbed":
            is_there = any((self.folder / first).rglob("*.py"))
            return first if is_there else ".".join(places[-1].relative_to(self.folder).parts)
        if importlib.util.find_spec(first) is None:
            for place in places:
                if _is_module(place, first) or any((place / first).rglob("*.py")):
                    return ".".join((place / first).relative_to(self.folder).parts)
        return None


def _is_module(folder: Path, name: str) -> bool:
    return (folder / f"{name}.py").is_file() or (folder / name / "__init__.py").is_file()


def _imported(file: Path) -> set[str]:
    """The outermost packages that a file imports."""
    nodes = list(ast.walk(ast.parse(file.read_bytes())))
    plain = [name.name for node in nodes if isinstance(node, ast.Import) for name in node.names]
    parts = [n.module for n in nodes if isinstance(n, ast.ImportFrom) and n.module and not n.level]
    return {name.partition(".")[0] for name in (*plain, *parts)}


@cache
def _guarded(file: str) -> set[int]:
    """The lines of a file that are tried, so that it says itself what happens if they fail."""
    tried = [n for n in ast.walk(ast.parse(Path(file).read_bytes())) if isinstance(n, ast.Try)]
    spans = [(s.lineno, s.end_lineno or s.lineno) for node in tried for s in node.body]
    return {line for first, last in spans for line in range(first, last + 1)}


class _Loader(SourceFileLoader):
    """Executes a fork's file with the fork's `__import__`; writes no bytecode beside it."""

    def get_code(self, fullname: str) -> Any:
        return compile(self.get_data(self.path), self.path, "exec", dont_inherit=True)

    def exec_module(self, module: ModuleType) -> None:
        fork = _FORKS[module.__name__.partition(".")[0]]
        module.__dict__["__builtins__"] = {**vars(builtins), "__import__": fork.import_}
        super().exec_module(module)


class _Finder:
    """Finds the modules of forks, also in a process that unpickles one of their objects."""

    @staticmethod
    def find_spec(name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        root = name.partition(".")[0]
        if not root.startswith(_OF_FORKS):
            return None
        if root not in _FORKS and (place := json.loads(os.environ.get(_KNOWN, "{}")).get(root)):
            _FORKS[root] = Fork(Path(place), root.removeprefix(_OF_FORKS))
        if name == root and root in _FORKS:
            spec = ModuleSpec(root, None, is_package=True)
            spec.submodule_search_locations = [str(_FORKS[root].folder)]
            return spec
        found = PathFinder.find_spec(name, path)
        if found is not None and isinstance(found.loader, SourceFileLoader):
            found.loader = _Loader(name, found.loader.path)
        return found


_FORKS: dict[str, Fork] = {}
"""By the name of the root of their modules."""
_VISITORS: list[Callable[[Fork], None]] = []

sys.meta_path.insert(0, _Finder)


def on_fork(visit: Callable[[Fork], None]) -> None:
    """Calls a function with each fork, those that are here and those that will be."""
    _VISITORS.append(visit)
    for fork in [*_FORKS.values()]:
        visit(fork)


def fork_at(path: Path) -> Fork:
    """The fork of this folder or file. A second one of the same name is called after its parent's
    folder, too.

    Raises:
        UserError: there is no such path, or it has no algorithms.
    """
    if not path.exists():
        raise UserError(f"plug-in {str(path)!r} does not exist: give the path of a fork")
    path = path.resolve()
    fork = Fork(path, "fork")
    name = path.name if path in (fork.folder, *fork.folder.parents) else fork.folder.name
    if (known := _FORKS.get(_OF_FORKS + name)) and known.folder != fork.folder:
        name = f"{fork.folder.parent.name}-{name}"
    return Fork(path, name)


def announce(fork: Fork) -> None:
    """Makes a fork known to what registers its classes, after an earlier version is forgotten."""
    fork.forget()
    _FORKS[fork.module] = fork
    os.environ[_KNOWN] = json.dumps({name: str(each.path) for name, each in _FORKS.items()})
    for visit in _VISITORS:
        visit(fork)
