"""Flags, their help, tables for the documentation and a schema, from declarations of settings."""

import argparse
from collections.abc import Iterable
from functools import cache
from typing import Any

from domainbed.core.settings import Schema, Settings, alternatives, describe
from domainbed.core.text_table import pipe_table
from domainbed.core.yaml_file import parse_value
from domainbed.errors import UserError


def add_flags(parser: Any, model: type[Settings], only: Iterable[str] | None = None) -> None:
    """Declares a flag --some_name for each field.

    Flags that are not given are absent from the namespace, which `read_flags` reads.

    Args:
        parser: an `argparse` parser or group.
        only: the fields that get one; by default all.
    """
    fields = _fields(model)
    for name in fields if only is None else only:
        parser.add_argument(f"--{name}", **_flag_options(model, name, fields[name]))


def read_flags(
    arguments: argparse.Namespace, model: type[Settings], only: Iterable[str] | None = None
) -> dict[str, Any]:
    """The values of the flags that were given, by field; words are read as YAML.

    Raises:
        UserError: a text is no YAML.
    """
    fields = _fields(model) if only is None else only
    names = [name for name in fields if name in arguments]
    return {name: _meant(model, name, getattr(arguments, name)) for name in names}


def _fields(model: type[Settings]) -> dict[str, Schema]:
    """The JSON schema of each field, by its name."""
    return _schema(model).get("properties", {})


@cache
def _schema(model: type[Settings]) -> dict[str, Any]:
    """The JSON schema, made once: that takes longer than reading all flags from it."""
    return model.model_json_schema()


def _flag_options(model: type[Settings], name: str, schema: Schema) -> dict[str, Any]:
    shown = default_text(model, name)
    text = schema.get("description", "") + (f" (default: {shown})" if shown else "")
    options: dict[str, Any] = {"help": text.replace("%", "%%"), "default": argparse.SUPPRESS}
    words = _words(model, name)
    if all(word.get("type") == "boolean" for word in words):
        return {**options, "action": argparse.BooleanOptionalAction}
    if _is_list(model, name) or schema.get("several_words"):
        options["nargs"] = "+"
    if all("enum" in word for word in words):
        values = dict.fromkeys(str(value) for word in words for value in word["enum"])
        return {**options, "metavar": "{" + ",".join(values) + "}"}
    return {**options, "metavar": "NAME" if _is_text(words) else "VALUE"}


def _meant(model: type[Settings], name: str, value: Any) -> Any:
    if _is_text(_words(model, name)) or isinstance(value, bool):
        return value
    texts = value if isinstance(value, list) else [value]
    try:
        values = [parse_value(text) for text in texts]
    except UserError as error:
        raise UserError(f"--{name}: {error}", name) from error
    return values if _is_list(model, name) or len(values) > 1 else values[0]


def _words(model: type[Settings], name: str) -> list[Schema]:
    """The schemas of one word of the command line: of the value, or of a list's items."""
    definitions = _schema(model).get("$defs", {})
    return [
        one
        for each in alternatives(_fields(model)[name], definitions)
        for one in alternatives(each.get("items", each), definitions)
    ]


def _is_text(words: Iterable[Schema]) -> bool:
    return all(word.get("type") == "string" for word in words)


def _is_list(model: type[Settings], name: str) -> bool:
    """Whether each word is an item; otherwise one word is the whole value, in YAML."""
    schemas = alternatives(_fields(model)[name], _schema(model).get("$defs", {}))
    words, are_lists = _words(model, name), ["items" in each for each in schemas]
    if _is_text(words):
        return any(are_lists)
    return all(are_lists) and not all(word.get("type") == "array" for word in words)


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
