"""One registry for everything that has a name; installed packages may advertise more."""

import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from importlib.metadata import EntryPoint, entry_points
from types import ModuleType
from typing import Any, Generic, TypeVar, overload

from domainbed.core import plugins
from domainbed.errors import FEW_NAMES, UnknownName, UserError, did_you_mean

T = TypeVar("T")
Entry = TypeVar("Entry")


# Kinds whose names a command lists.
_LISTED = ("algorithm", "dataset")


class Registry(Mapping[str, T], Generic[T]):
    """Names to objects, with errors that help.

    Args:
        kind: what is registered, in the singular, for messages: "algorithm".
        entry_point_group: installed packages that advertise an entry point in this group are
            listed beside the built-in names, and imported when first asked for.
        check: raises `ValueError` for what cannot be registered.

    Examples:
        >>> SHAPES = Registry("shape")
        >>> @SHAPES.register
        ... class Circle: ...
        >>> SHAPES["Circle"] is Circle
        True
    """

    def __init__(
        self,
        kind: str,
        entry_point_group: str | None = None,
        check: Callable[[Any], None] = lambda entry: None,
    ) -> None:
        self.kind, self._check, self._group = kind, check, entry_point_group or ""
        self._entries: dict[str, T] = {}
        self._modules: dict[str, ModuleType | None] = {}

    # What is registered keeps its own type: a decorated class stays that class.
    @overload
    def register(self, entry: Entry, *, name: str | None = None) -> Entry: ...
    @overload
    def register(self, *, name: str | None = None) -> Callable[[Entry], Entry]: ...
    def register(self, entry: Any = None, *, name: str | None = None) -> Any:
        """Registers `entry` under `name` (default: its `__name__`); works as a decorator.

        Raises:
            ValueError: the name is taken by another object, or this cannot be registered.
        """
        if entry is None:
            return lambda later: self.register(later, name=name)
        self._check(entry)
        key = name or entry.__name__
        taken = self._entries.get(key, entry)
        # A module that runs twice (a notebook cell, a script that its workers import again)
        # may register its class once more.
        if taken is not entry and _origin(taken) != _origin(entry):
            raise ValueError(
                f"{self.kind} {key!r} is registered already, by {_origin(taken)}: "
                f"choose another name for {_origin(entry)}"
            )
        module = sys.modules.get(getattr(_definition(entry), "__module__", ""))
        again = taken is not entry and module is self._modules.get(key)
        # Cells of a notebook run again, and so do functions that make a class.
        if again and module is not sys.modules["__main__"] and "<locals>" not in _origin(entry):
            said = f"{_origin(entry)} registers the {self.kind} {key!r} twice: the later counts"
            warnings.warn(said, stacklevel=2)
        self._entries[key], self._modules[key] = entry, module
        return entry

    def __getitem__(self, name: str) -> T:
        if name not in self._entries and name in self._advertised:
            self._import_plugin(name)
        if name not in self._entries:
            raise UnknownName(f"unknown {self.kind} {name!r}.{self._remedy(name)}")
        return self._entries[name]

    def _remedy(self, name: str) -> str:
        """The name that was meant; all names, where there are few or none is near."""
        titles = {key: str(getattr(entry, "title", key)) for key, entry in self._entries.items()}
        meant = [key for key, title in titles.items() if name and name.lower() in title.lower()]
        hint = did_you_mean(name, self) or did_you_mean(meant[0] if meant else "", meant[:1])
        if len(self) <= FEW_NAMES or self.kind not in _LISTED:
            return f"{hint} Known: {', '.join(self) or 'none'}"
        listed = f" `domainbed list {self.kind}s` lists the names that there are"
        return hint or f"{listed}, --plugins brings your own"

    def __contains__(self, name: object) -> bool:
        return name in self._entries or name in self._advertised

    def __iter__(self) -> Iterator[str]:
        return iter(dict.fromkeys([*self._entries, *self._advertised]))

    def __len__(self) -> int:
        return sum(1 for _ in self)

    @cached_property
    def _advertised(self) -> dict[str, EntryPoint]:
        return {point.name: point for point in entry_points(group=self._group)}

    def _import_plugin(self, name: str) -> None:
        point = self._advertised[name]
        values = {p.value for p in entry_points(group=self._group, name=name)}
        if len(values) > 1:
            raise UserError(
                f"{self.kind} {name!r} comes from several installed packages "
                f"({', '.join(sorted(values))}): uninstall all but one"
            )
        try:
            entry = point.load()
            plugins.note(sys.modules[point.module])
            if name not in self._entries:  # the module may have registered itself on import
                self.register(entry, name=name)
        except (Exception, SystemExit) as error:
            raise UserError(
                f"{self.kind} {name!r} comes from the plug-in {point.value!r}, which cannot be "
                f"imported ({type(error).__name__}: {error}): repair or uninstall that package"
            ) from error


def require_subclass(
    entry: Any, base: type, kind: str = "", attributes: Sequence[str] = ()
) -> None:
    """A `check` of registries of classes.

    Args:
        entry: what is registered.
        base: the class to inherit from.
        kind: what such classes are called; empty for the name of `base`.
        attributes: what each must have beside the methods.

    Raises:
        ValueError: `entry` is no subclass of `base`, or lacks some of its methods and attributes.
    """
    kind, shown = kind or base.__name__.lower(), getattr(entry, "__name__", repr(entry))
    if not (isinstance(entry, type) and issubclass(entry, base)):
        raise ValueError(f"{shown} is no {kind}: inherit from {base.__module__}.{base.__name__}")
    lacking = [name for name in attributes if not hasattr(entry, name)]
    lacking += sorted(getattr(entry, "__abstractmethods__", ()))
    if lacking:
        raise ValueError(f"{kind} {shown} has no {', '.join(lacking)}")


def require_callable(entry: Any, kind: str) -> None:
    """A `check` of registries of functions; raises `ValueError` for what cannot be called."""
    if not callable(entry):
        raise ValueError(f"{entry!r} is no {kind}: register a class or a function")


def _definition(entry: Any) -> Any:
    """The class or function; of an object the first that is among its attributes, or its class."""
    inside = getattr(entry, "__dict__", {}).values()
    found = (entry, *inside, getattr(entry, "func", type(entry)))
    return next(each for each in found if hasattr(each, "__qualname__"))


def _origin(entry: Any) -> str:
    definition = _definition(entry)
    module = getattr(definition, "__module__", "?")
    if module in ("__main__", "__mp_main__"):  # a worker sees its parent's script under a new name
        module = getattr(sys.modules.get("__main__"), "__file__", None) or "__main__"
    return f"{module}.{definition.__qualname__}"
