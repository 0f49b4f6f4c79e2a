"""Reading YAML such that every value's line is known."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from domainbed.errors import UserError

Where = tuple[str | int, ...]
"""Keys and positions that lead to a value: ("algorithms", 1)."""


class _Loader(yaml.SafeLoader):
    """Reads 1e-3 as the number that everybody means by it; YAML 1.1 wants 1.0e-3."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?\d+\.?\d*[eE][-+]?\d+$"), list("-+0123456789")
)


def parse_value(text: str) -> Any:
    """The value that `text` stands for in YAML.

    Raises:
        yaml.YAMLError: `text` is no YAML.
    """
    return yaml.load(text, Loader=_Loader)


def read_yaml(file: str | Path) -> tuple[Any, dict[Where, int]]:
    """A YAML file's value, and the line of each value in it.

    Raises:
        UserError: the file cannot be read, or is no YAML, or gives a field twice.
    """
    try:
        text = Path(file).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(f"file {str(file)!r} cannot be read: {reason}") from error
    lines: dict[Where, int] = {}
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None, lines
        _note_lines(node, (), lines, str(file))
        return loader.construct_document(node), lines
    except yaml.YAMLError as error:
        raise UserError(_complaint(str(file), error)) from error
    finally:
        loader.dispose()


def _note_lines(node: yaml.Node, where: Where, lines: dict[Where, int], file: str) -> None:
    lines.setdefault(where, node.start_mark.line + 1)
    if isinstance(node, yaml.SequenceNode):
        for position, item in enumerate(node.value):
            _note_lines(item, (*where, position), lines, file)
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            inside = (*where, key.value)
            if inside in lines:
                line = key.start_mark.line + 1
                raise UserError(f"{file}, line {line}: {key.value!r} is given twice: remove one")
            lines[inside] = key.start_mark.line + 1
            _note_lines(value, inside, lines, file)


def _complaint(file: str, error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    reason = getattr(error, "problem", None) or getattr(error, "reason", None) or str(error)
    place = f"{file}, line {mark.line + 1}" if mark else file
    return f"{place}: no valid YAML ({reason})"
