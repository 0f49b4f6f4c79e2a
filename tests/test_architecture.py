"""The shape of the package: few entries at its top, and no file in an import circle."""

from __future__ import annotations

import ast
from pathlib import Path

import domainbed

ROOT = Path(domainbed.__file__).parent
MOST_ENTRIES = 20


def modules() -> dict[str, Path]:
    found = {}
    for path in ROOT.rglob("*.py"):
        parts = path.relative_to(ROOT.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imported(path: Path, known: dict[str, Path]) -> set[str]:
    """What a file imports anywhere in it, inside functions and for type checking included."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                names.add(inner if inner in known else node.module)
    return names & set(known)


def on_circles(graph: dict[str, set[str]]) -> set[str]:
    """The files left when those that import nothing, or that nothing imports, are taken away."""
    graph = {name: set(targets) for name, targets in graph.items()}
    while True:
        targets = set().union(*graph.values())
        free = {name for name in graph if not graph[name] or name not in targets}
        if not free:
            return set(graph)
        graph = {name: to - free for name, to in graph.items() if name not in free}


def test_circles_are_found():
    line = {"a": {"b"}, "b": {"c"}, "c": set()}
    assert on_circles(line) == set()
    assert on_circles({**line, "c": {"b"}}) == {"b", "c"}


def test_no_file_is_in_an_import_circle():
    known = modules()
    assert on_circles({name: imported(path, known) for name, path in known.items()}) == set()


def test_few_entries_at_the_top():
    entries = {path.name for path in ROOT.iterdir()} - {"__pycache__"}
    assert len(entries - {"__init__.py", "__main__.py", "py.typed"}) <= MOST_ENTRIES
