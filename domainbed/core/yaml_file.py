"""Reads YAML with the line of each value, and refuses files that could do harm."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from domainbed.core.files import CHANGED, has_its_digest
from domainbed.errors import UserError

Where = tuple[str | int, ...]
"""Keys and positions that lead to a value: ("algorithms", 1)."""

_MOST_BYTES = 10_000_000
_MOST_VALUES = 100_000  # as counted with every alias written out

# 010 is 8 in YAML 1.1, and 1:30 is 90.
_MISLEADING = re.compile(r"[-+]?0[0-9_]+|[-+]?[0-9][0-9_]*(:[0-5]?[0-9])+")


class _Loader(yaml.SafeLoader):
    """Reads 1e-3 as a number, which YAML 1.1 would write 1.0e-3."""

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        is_plain = isinstance(node, yaml.ScalarNode) and node.style is None
        if is_plain and _MISLEADING.fullmatch(node.value):
            raise _refusal(
                node,
                f"{node.value} can be read in two ways: write a number without leading zeros and "
                f"colons, or the text '{node.value}' in quotes",
            )
        try:
            return super().construct_object(node, deep)
        except (ValueError, OverflowError) as error:  # a 13th month, a number of 5000 digits
            raise _refusal(node, str(error)) from error


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?\d+\.?\d*[eE][-+]?\d+$"), list("-+0123456789")
)


def _refusal(node: yaml.Node, reason: str) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=reason, problem_mark=node.start_mark)


def parse_value(text: str) -> Any:
    """The value of a text in YAML.

    Raises:
        UserError: `text` is no YAML, or is more than plain data.
    """
    try:
        return _parse(text)[0]
    except yaml.YAMLError as error:
        raise UserError(f"{text[:80]!r} is no valid YAML or JSON ({_reason(error)})") from error


def read_yaml(file: str | Path) -> tuple[Any, dict[Where, int]]:
    """A YAML file's value, and the line of each value in it.

    Raises:
        UserError: the file cannot be read, is no YAML, gives a field twice, or holds more than
            plain data, such as a reference to itself.
    """
    text = _read(Path(file))
    try:
        return _parse(text)
    except yaml.YAMLError as error:
        raise UserError(_complaint(str(file), text, error)) from error


def _parse(text: str) -> tuple[Any, dict[Where, int]]:
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None, {}
        lines: dict[Where, int] = {}
        for count, (where, line, each) in enumerate(_located(node, (), node.start_mark.line, ())):
            if count == _MOST_VALUES:
                raise _refusal(each, f"more than {_MOST_VALUES:,} values, with aliases written out")
            lines.setdefault(where, line + 1)
        return loader.construct_document(node), lines
    except RecursionError as error:
        raise yaml.YAMLError("it is nested too deeply") from error


def _located(
    node: yaml.Node, where: Where, line: int, outer: tuple[yaml.Node, ...]
) -> Iterator[tuple[Where, int, yaml.Node]]:
    """Each value inside a node, with its place and line; a key's line is its value's."""
    if any(node is each for each in outer):
        raise _refusal(node, "a value that contains itself")
    yield where, line, node
    inside = (*outer, node)
    if isinstance(node, yaml.SequenceNode):
        for position, item in enumerate(node.value):
            yield from _located(item, (*where, position), item.start_mark.line, inside)
    if isinstance(node, yaml.MappingNode):
        names = set()
        for key, value in node.value:
            if key.tag not in ("tag:yaml.org,2002:str", "tag:yaml.org,2002:merge"):
                said = key.value if isinstance(key, yaml.ScalarNode) else "a list or mapping"
                raise _refusal(key, f"{said} as a name: expected a text, in quotes if need be")
            if key.value in names:
                raise _refusal(key, f"{key.value!r} is given twice: remove one")
            names.add(key.value)
            yield from _located(value, (*where, key.value), key.start_mark.line, inside)


def _read(file: Path) -> str:
    """The text of a regular file: a pipe would block, and a device may never end."""
    try:
        size = file.stat().st_size
        if not file.is_file():
            raise UserError(f"{str(file)!r} is not a file: name a YAML file")
        if size > _MOST_BYTES:
            raise UserError(
                f"file {str(file)!r} has {size:,} bytes: expected at most {_MOST_BYTES:,}"
            )
        content = file.read_bytes()
        text = content.decode("utf-8")
    except OSError as error:
        raise UserError(f"file {str(file)!r} cannot be read: {error.strerror}") from error
    except ValueError as error:  # no UTF-8, or a NUL in the file's name
        raise UserError(f"file {str(file)!r} cannot be read: {error}") from error
    if not has_its_digest(content):
        raise UserError(
            f"{file} is damaged ({CHANGED}): restore it, or launch the sweep again by your own "
            "config; if you changed it yourself, remove its first line"
        )
    return text


def _complaint(file: str, text: str, error: yaml.YAMLError) -> str:
    line = getattr(getattr(error, "problem_mark", None), "line", -1) + 1
    if isinstance(error, yaml.reader.ReaderError):
        line = text.count("\n", 0, error.position) + 1
    place = f"{file}, line {line}" if line else file
    return f"{place}: no valid YAML ({_reason(error)})"


def _reason(error: yaml.YAMLError) -> str:
    if isinstance(error, yaml.reader.ReaderError):
        return f"the character #x{error.character:02x} is not allowed"
    if isinstance(error, yaml.MarkedYAMLError) and error.problem:
        return error.problem
    return " ".join(str(error).split())
