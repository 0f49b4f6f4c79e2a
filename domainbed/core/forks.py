"""Forks of DomainBed as plug-ins: a folder, or one of its files, that is used without an edit.

A fork's modules are imported under a root of their own, `domainbed_fork_NAME`, so that its
`domainbed` never takes this package's place and several forks live in one process. Each module has
its own `__import__`, which finds in the fork what the fork means, also in a function that imports
when it is called.
"""

from __future__ import annotations

import ast
import builtins
import contextlib
import importlib
import importlib.util
import inspect
import multiprocessing
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache, cached_property
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from pathlib import Path
from textwrap import dedent
from types import FrameType, ModuleType, SimpleNamespace
from typing import Any

from domainbed.errors import UserError, one_line

_OF_FORKS = "domainbed_fork_"

# The outermost packages that a file imports.
_IMPORTED = re.compile(r"^[ \t]*(?:from|import) +(\w+)", re.MULTILINE)

ALGORITHMS = ("algorithms.py", "objectives.py", "algorithms/__init__.py")


def is_fork(path: Path) -> bool:
    """Whether a path is a folder, or a file of algorithms or of a package."""
    is_inside = path.name in ALGORITHMS or (path.parent / "__init__.py").exists()
    return path.is_dir() or (is_inside and path.exists())


class Missing:
    """Stands for what a fork imports and cannot have; to use it is an error.

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
            f"{self._fork.name} needs {self._name}, which cannot be imported ({self._reason})"
        )

    # Copies of CLIP compare versions by a package that is gone.
    __lt__ = __le__ = __gt__ = __ge__ = lambda self, other: False

    def __mro_entries__(self, bases: tuple[Any, ...]) -> tuple[type, ...]:
        return (type("Missing", (), {"__new__": lambda cls, *args, **settings: self()}),)


class Fork:
    """A fork as a plug-in.

    Args:
        path: its folder, or one of its files.

    Attributes:
        file: the one with its algorithms: the nearest to the top of its folder.
        folder: what it imports from, which has its outermost package.
        name: that of its folder; of a second one of that name, with the parent's folder's.
        module: the name of the root of its modules.
        loading: whether one of its modules is being executed.

    Raises:
        UserError: the folder has no file of algorithms.
    """

    def __init__(self, path: Path) -> None:
        self.path = path = path.resolve()
        found = [file for name in ALGORITHMS for file in path.rglob(name)]
        self.file = min(found, key=lambda file: (len(file.parts), str(file)), default=path)
        if self.file.is_dir():
            raise UserError(f"{path} has no algorithms.py: give the file with its algorithms")
        outer = next(p for p in self.file.parents if not (p / "__init__.py").exists())
        # A package without __init__.py is a folder whose name its own files import.
        names = {"domainbed", *_IMPORTED.findall(self.file.read_text("utf-8", "replace"))}
        self.folder = next((p.parent for p in self.file.parents if p.name in names), outer)
        self.name = (path if path in self.folder.parents else self.folder).name
        if self.name in [fork.name for fork in FORKS.values() if fork.folder != self.folder]:
            self.name = f"{self.folder.parent.name}-{self.name}"
        self.module = _OF_FORKS + self.name.replace(".", "_")
        self.loading = False
        self._inside = cache(self._find_inside)

    @cached_property
    def files(self) -> list[Path]:
        """Its Python files; of a file that is in no package, those beside it."""
        is_alone = self.path.is_file() and self.folder == self.path.parent
        found = sorted(self.folder.glob("*.py" if is_alone else "**/*.py"))
        return [file for file in found if "/." not in f"/{file.relative_to(self.folder)}"]

    def load(self, *names: str) -> ModuleType | None:
        """Imports its algorithms, or the file of one of these names that is nearest to them.

        Returns:
            the module; None, with a warning, where there is no other one that can be imported.
        """
        near = [file for file in self.files if str(file).endswith(names)]
        near.sort(key=lambda f: (-len(os.path.commonpath([f, self.file])), len(f.parts), f))
        for file in near[:1] if names else [self.file]:
            module = ".".join([self.module, *file.relative_to(self.folder).with_suffix("").parts])
            try:
                return importlib.import_module(module.removesuffix(".__init__"))
            except (Exception, SystemExit) as error:
                if not names:
                    raise
                reason = f"{type(error).__name__}: {one_line(error)}"
                warnings.warn(f"{file} of {self.name} cannot be imported ({reason})", stacklevel=2)
        return None

    def modules(self) -> dict[str, ModuleType]:
        """Its modules by their names, as far as they are imported."""
        own = f"{self.module}."
        return {name: each for name, each in sys.modules.items() if f"{name}.".startswith(own)}

    def classes(self) -> list[type]:
        """The classes that its modules define, as far as they are imported."""
        modules = self.modules().items()
        values = [(name, value) for name, each in modules for value in [*vars(each).values()]]
        return [v for name, v in values if isinstance(v, type) and v.__module__ == name]

    def register(self, registry: Any, entries: Iterable[type]) -> None:
        """Registers classes under their own names, or with a prefix where these are taken."""
        renamed: list[str] = []
        for entry in entries:
            place = entry.__module__.rpartition(".")[2]
            for prefix in ("", f"{self.name}-", f"{self.name}-{place}-"):
                with contextlib.suppress(ValueError):
                    registry.register(entry, name=prefix + entry.__name__)
                    renamed += [prefix + entry.__name__] * bool(prefix)
                    break
        if renamed and multiprocessing.parent_process() is None:  # workers need not say it again
            said = f"{registry.kind}s of {self.name} whose names are taken have a prefix: "
            warnings.warn(said + ", ".join(renamed[:3]) + ", …" * (len(renamed) > 3), stacklevel=2)

    def import_(
        self,
        name: str,
        of: Mapping[str, Any] | None = None,
        local: Mapping[str, Any] | None = None,
        wanted: Sequence[str] | None = (),
        level: int = 0,
    ) -> Any:
        """`__import__` for its modules: what a module cannot have, it has as `Missing`.

        That does not hold for imports in functions, or where the fork itself tries them.
        """
        first, _, rest = name.partition(".")
        inside = None if level else self._inside(first)
        try:
            if inside is None:
                found = builtins.__import__(name, of, local, wanted or (), level)
            else:
                top = f"{self.module}.{inside}".rstrip(".")
                found = builtins.__import__(
                    f"{top}.{rest}".rstrip("."), fromlist=wanted or ("__name__",)
                )
                found = found if wanted else sys.modules[top]
            for part in {*(wanted or ())} - {"*", *dir(found)}:
                if f"{found.__name__}.{part}" not in sys.modules:  # which circular imports find
                    raise ImportError(f"{found.__name__} has no {part}")
        except Exception as error:
            if "*" in (wanted or ()) or _must_have(sys._getframe(1)):
                raise
            return Missing(self, name if wanted else first, one_line(error))
        return found

    def _find_inside(self, first: str) -> str | None:
        """The name below its root of what it imports as `first`; None of what is not its own."""
        depth = len(self.file.relative_to(self.folder).parts)
        places = [*self.file.parents][:depth][::-1]
        is_elsewhere = first != "domainbed" and importlib.util.find_spec(first) is not None
        # The folders of a package are not searched before those of Python.
        for place in places[:1] if is_elsewhere else places:
            here = place / first
            is_there = here.with_suffix(".py").is_file() or (here / "__init__.py").is_file()
            if is_there or (not is_elsewhere and any(here.glob("**/*.py"))):
                return ".".join(here.relative_to(self.folder).parts)
        is_renamed = first == "domainbed" and (places[-1] / "networks.py").is_file()
        return ".".join(places[-1].relative_to(self.folder).parts) if is_renamed else None


def _must_have(place: FrameType) -> bool:
    """Whether an import there must fail, where it does: in a function, or where it is tried."""
    nodes = ast.walk(code_of(Path(place.f_code.co_filename)))
    tried = [each for node in nodes if isinstance(node, ast.Try) for each in node.body]
    is_tried = any(each.lineno <= place.f_lineno <= (each.end_lineno or 0) for each in tried)
    return is_tried or place.f_code.co_name != "<module>"


# Names of Python's types that NumPy had once.
_OLD_TYPES = re.compile(rb"\b(?:np|numpy)\.(bool|complex|float|int|object|str)\b")


class _Loader(SourceFileLoader):
    """Executes a fork's file with the fork's `__import__`; writes no bytecode beside it."""

    def get_code(self, fullname: str) -> Any:
        text = _OLD_TYPES.sub(rb"\1", self.get_data(self.path))
        return compile(text, self.path, "exec", dont_inherit=True)

    def exec_module(self, module: ModuleType) -> None:
        fork = FORKS[module.__name__.partition(".")[0]]
        vars(module)["__builtins__"] = {**vars(builtins), "__import__": fork.import_}
        before, fork.loading = fork.loading, True
        try:
            super().exec_module(module)
        finally:
            fork.loading = before


class _Finder:
    """Finds the modules of forks, also in a process that unpickles one of their objects."""

    @staticmethod
    def find_spec(name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        root = name.partition(".")[0]
        if not root.startswith(_OF_FORKS):
            return None
        if root not in FORKS and root in os.environ:
            FORKS[root] = Fork(Path(os.environ[root]))
        if name == root and root in FORKS:
            spec = ModuleSpec(root, None, is_package=True)
            spec.submodule_search_locations = [str(FORKS[root].folder)]
            return spec
        found = PathFinder.find_spec(name, path)
        if found is not None and isinstance(found.loader, SourceFileLoader):
            found.loader = _Loader(name, found.loader.path)
        return found


# By the name of the root of their modules.
FORKS: dict[str, Fork] = {}
_VISITORS: list[Callable[[Fork], None]] = []

sys.meta_path.insert(0, _Finder)


def on_fork(visit: Callable[[Fork], None]) -> None:
    """Calls a function with each fork, those that are here and those that will be."""
    _VISITORS.append(visit)
    for fork in [*FORKS.values()]:
        visit(fork)


def announce(fork: Fork) -> None:
    """Makes a fork known to what registers its classes; an earlier version is forgotten."""
    for name in fork.modules():
        del sys.modules[name]
    FORKS[fork.module] = fork
    os.environ[fork.module] = str(fork.path)  # for processes that are spawned
    for visit in _VISITORS:
        visit(fork)


@cache
def code_of(source: Any) -> ast.AST:
    """Parsed; empty of what was made at run time, or is no Python of today."""
    try:
        is_file = isinstance(source, Path)
        return ast.parse(source.read_bytes() if is_file else dedent(inspect.getsource(source)))
    except (OSError, SyntaxError, TypeError, ValueError):
        return ast.Module([], [])


VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


def required(parameters: Iterable[inspect.Parameter]) -> set[str]:
    """The names of those without a default."""
    return {p.name for p in parameters if p.default is p.empty and p.kind not in VARIADIC}


def arguments(folder: Path | None, known: Mapping[str, Any]) -> SimpleNamespace:
    """The `args` of a fork's train script: what the script sets, and what is known of the run."""
    return SimpleNamespace(**{**(set_by_scripts(folder) if folder else {}), **known})


@cache
def set_by_scripts(folder: Path) -> dict[str, Any]:
    """What a fork's scripts set before they train; a train script's values come first.

    These are the defaults of their arguments, what they put into variables and hyper-parameters, as
    in `hparams["temperature"] = args.t`, and what `config.yaml` has. None is a value of these.
    """
    import yaml  # for forks alone

    scripts = [file for file in folder.rglob("*.py") if b"add_argument" in file.read_bytes()]
    scripts.sort(key=lambda file: (file.name.startswith("train"), file))
    nodes = [node for file in scripts for node in ast.walk(code_of(file))]
    found: dict[str, Any] = {}
    for file in sorted(folder.rglob("config.yaml"), key=lambda file: -len(file.parts)):
        found |= yaml.safe_load(file.read_text()) or {}
    for call in [n for n in nodes if isinstance(n, ast.Call)]:
        flags = [flag.value for flag in call.args if isinstance(flag, ast.Constant)]
        if getattr(call.func, "attr", "") == "add_argument" and flags:
            settings = {word.arg: word.value for word in call.keywords}
            name = str(flags[-1]).lstrip("-").replace("-", "_")
            found[name] = False if "action" in settings else None
            with contextlib.suppress(KeyError, ValueError):  # what only a running script knows
                found[name] = ast.literal_eval(settings["default"])
    args = SimpleNamespace(**found)
    for node in [n for n in nodes if isinstance(n, ast.Assign)]:
        target = node.targets[0]
        key = target.slice if isinstance(target, ast.Subscript) else target
        if isinstance(target, ast.Name) or "hparams[" in ast.unparse(target):
            for value in evaluated(node.value, {**found, "args": args}):
                found.setdefault(ast.unparse(key).strip("'"), value)
    return found


_BUILTINS = {each.__name__: each for each in (bool, dict, float, int, len, list, max, min, str)}


def evaluated(node: ast.expr, names: Mapping[str, Any]) -> list[Any]:
    """The value of an expression in a script; none where only the running script knows it."""
    with contextlib.suppress(Exception):
        return [eval(ast.unparse(node), {"__builtins__": _BUILTINS}, names)]
    return []
