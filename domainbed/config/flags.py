"""What follows from the declarations of settings: flags, their help, documentation and a schema."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from functools import cache
from typing import Any

from domainbed.config.settings import Schema, Settings, alternatives, describe
from domainbed.core.text_table import pipe_table
from domainbed.core.yaml_file import parse_value
from domainbed.errors import UserError


def add_flags(parser: Any, model: type[Settings], only: Iterable[str] | None = None) -> None:
    """Declares a flag --some_name for each field.

    What is not given is not in the namespace; `read_flags` reads what is.

    Args:
        parser: an `argparse` parser or group.
        only: the fields that get one; by default all.
    """
    fields = _fields(model)
    for name in fields if only is None else only:
        parser.add_argument(f"--{name}", **_flag_options(model, name, fields[name]))


def read_flags(arguments: argparse.Namespace, model: type[Settings]) -> dict[str, Any]:
    """The values that flags gave, by field; a text stands for what it means in YAML.

    Raises:
        UserError: a text is no YAML.
    """
    said = vars(arguments)
    fields = {name: schema for name, schema in _fields(model).items() if name in said}
    return {name: _meant(name, schema, model, said[name]) for name, schema in fields.items()}


def _fields(model: type[Settings]) -> dict[str, Schema]:
    """The JSON schema of each field, by its name."""
    return _schema(model).get("properties", {})


@cache
def _schema(model: type[Settings]) -> dict[str, Any]:
    """To make it takes longer than to read all flags from it. It is not to be changed."""
    return model.model_json_schema()


def _flag_options(model: type[Settings], name: str, schema: Schema) -> dict[str, Any]:
    shown = default_text(model, name)
    text = schema.get("description", "") + (f" (default: {shown})" if shown else "")
    options: dict[str, Any] = {"help": text.replace("%", "%%"), "default": argparse.SUPPRESS}
    kinds = _kinds(model, schema)
    if kinds == {"boolean"}:
        return {**options, "action": argparse.BooleanOptionalAction}
    if _is_list(kinds) or schema.get("several_words"):
        options["nargs"] = "+"
    if values := _named_values(model, schema):
        return {**options, "metavar": "{" + ",".join(values) + "}"}
    return {**options, "metavar": "NAME" if _is_text(kinds) else "VALUE"}


def _meant(name: str, schema: Schema, model: type[Settings], value: Any) -> Any:
    kinds = _kinds(model, schema)
    if _is_text(kinds) or kinds == {"boolean"}:
        return value
    words = value if isinstance(value, list) else [value]
    try:
        values = [parse_value(word) for word in words]
    except UserError as error:
        raise UserError(f"--{name}: {error}", name) from error
    return values if _is_list(kinds) or len(values) > 1 else values[0]


def _kinds(model: type[Settings], schema: Schema) -> set[str]:
    """The JSON types that a field's value may have; of a list's items as "list of integer"."""
    definitions = _schema(model).get("$defs", {})
    kinds = set()
    for each in alternatives(schema, definitions):
        items = alternatives(each.get("items", {}), definitions)
        of = {str(item.get("type")) for item in items}
        kinds |= {f"list of {kind}" for kind in of} if "items" in each else {each.get("type", "")}
    return kinds


def _named_values(model: type[Settings], schema: Schema) -> list[str]:
    """All that a value, or an item of a list, may be; nothing where that is not a few names."""
    definitions = _schema(model).get("$defs", {})
    single = [
        one
        for each in alternatives(schema, definitions)
        for one in (alternatives(each["items"], definitions) if "items" in each else [each])
    ]
    if not all("enum" in one for one in single):
        return []
    return list(dict.fromkeys(str(value) for one in single for value in one["enum"]))


def _is_text(kinds: set[str]) -> bool:
    return kinds <= {"string", "list of string"}


def _is_list(kinds: set[str]) -> bool:
    """Whether words of the command line are items; else one word is the whole value, in YAML."""
    lists = {kind for kind in kinds if kind.startswith("list of ")}
    return bool(lists) and (_is_text(kinds) or (lists == kinds and kinds != {"list of array"}))


def default_text(model: type[Settings], name: str) -> str:
    """A field's default as people write it; nothing where it has none."""
    schema = _fields(model)[name]
    shown = schema.get("default_text", schema.get("default"))
    if shown in (None, [], {}):
        return ""
    if isinstance(shown, bool):
        return str(shown).lower()
    return ", ".join(map(str, shown)) if isinstance(shown, (list, tuple)) else str(shown)


def docs_table(model: type[Settings]) -> str:
    """All fields as a Markdown table: name, what it may be, default, help."""
    definitions = _schema(model).get("$defs", {})
    rows = [("field", "value", "default", "meaning")]
    for name, schema in _fields(model).items():
        expected, meaning = describe(schema, definitions), schema.get("description", "")
        rows.append((f"`{name}`", expected, default_text(model, name), meaning))
    return "\n".join(pipe_table(rows, text_columns=4)) + "\n"


def json_schema(model: type[Settings]) -> dict[str, Any]:
    """The JSON schema of a model's YAML files, by which editors complete and check them."""
    schema = model.model_json_schema()
    for properties in schema.get("properties", {}).values():
        for ours in ("default_text", "several_words"):
            properties.pop(ours, None)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}
