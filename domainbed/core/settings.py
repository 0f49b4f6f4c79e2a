"""Settings, declared once: checks of YAML files, flags and documentation follow from that.

A model is a subclass of `Settings`. A field's type, bounds, default and help are its declaration:

    class Mine(Settings):
        steps: int | None = Field(
            None, ge=1, description="updates", json_schema_extra={"default_text": "the dataset's"}
        )

`json_schema_extra` may hold `default_text`, which help and docs show instead of the default.
"""

import importlib
import reprlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetJsonSchemaHandler,
    ValidationError,
)
from pydantic_core import CoreSchema, PydanticCustomError

from domainbed.core.yaml_file import Where, read_yaml
from domainbed.errors import FEW_NAMES, UserError, did_you_mean

M = TypeVar("M", bound=BaseModel)
T = TypeVar("T")
Schema = Mapping[str, Any]


class Settings(BaseModel):
    """Frozen; refuses unknown fields, and converts no value to another type."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, protected_namespaces=()
    )


# ---- kinds of fields ----

Text = Annotated[str, Field(min_length=1)]


def checked(check: Callable[[Any], Any]) -> AfterValidator:
    """A check of a value, for `Annotated`: `check` returns the value, or raises `UserError`.

    The error's `where` is a place inside the value; the value's own place is prepended.
    """
    return AfterValidator(_placed(check))


def converted(convert: Callable[[Any], Any], accepts: Any) -> BeforeValidator:
    """As `checked`, but before the type is checked; `accepts` is the type of the raw value."""
    return BeforeValidator(_placed(convert), json_schema_input_type=accepts)


def known_to(module: str, registry: str) -> AfterValidator:
    """A check that a registry has a name; its module is imported when the first name is checked.

    Args:
        module: "domainbed.selection"; declaring a field does not import it.
        registry: the name of a mapping in it, which raises `UserError` for unknown names, or of
            a function that does.
    """

    def known(name: str) -> str:
        found = getattr(importlib.import_module(module), registry)
        found(name) if callable(found) else found[name]
        return name

    return checked(known)


class _OneOrMore:
    """Adds to a list's JSON schema that one item may be given without a list."""

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        of_list = handler(schema)
        items = of_list["items"]
        return {"anyOf": [*items.get("anyOf", [items]), of_list]}


Items = Annotated[
    tuple[T, ...],
    AfterValidator(lambda items: tuple(dict.fromkeys(items))),
    BeforeValidator(lambda value: tuple(value if isinstance(value, (list, tuple)) else [value])),
    _OneOrMore(),
]
"""A tuple without repetitions; one item may be given without a list: `Items[Text]`."""

Listed = Annotated[Items[T], Field(min_length=1)]
"""`Items`, of which there is at least one."""


def _placed(check: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def placed(value: Any) -> Any:
        try:
            return check(value)
        except UserError as error:  # Pydantic knows the place of its own errors only
            raise PydanticCustomError("user_error", "wrong", {"error": error}) from error

    return placed


def _counted(value: Any) -> Any:
    """Replaces a count n by the seeds 0 … n-1."""
    if isinstance(value, (list, tuple)):
        repeated = [seed for place, seed in enumerate(value) if seed in value[:place]]
        if repeated:
            raise UserError(f"{found(repeated[0])} is listed twice: name each seed once")
        return tuple(value)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise UserError(f"expected a count from 1 on or a list of seeds, found {found(value)}")
    if value > MOST_SEEDS:
        raise UserError(f"expected at most {MOST_SEEDS:,} seeds, found {found(value)}")
    return tuple(range(value))


MOST_SEEDS = 1_000_000

_Seed = Annotated[int, Field(ge=0)]
Seeds = Annotated[
    tuple[_Seed, ...],
    Field(min_length=1),
    converted(_counted, accepts=Annotated[int, Field(ge=1)] | list[_Seed]),
]
"""A tuple of different seeds, given as their number or as a list."""


# ---- from values to a model ----


Places = Mapping[Where, str]
"""The names of places in errors: of ("steps",) "mine.yaml, line 4" or "--steps", of () the file."""


def _place(where: Where, places: Places) -> str:
    """The name of a place: that of a flag, or else of the innermost value around it."""
    around = [where[:end] for end in range(len(where), -1, -1)]
    names = [places[part] for part in around if part in places]
    name = next((each for each in names if each.startswith("--")), "".join(names[:1]))
    if not where or name.startswith("--"):
        return name
    return f"{name}, field {dotted(where)!r}".removeprefix(", ")


def dotted(where: Where) -> str:
    """("algorithms", 1) as "algorithms[1]"."""
    parts = [f"[{part}]" if isinstance(part, int) else f".{part}" for part in where]
    return "".join(parts).removeprefix(".")


def make(model: type[M], values: Mapping[str, Any], places: Places | None = None) -> M:
    """The model with these values.

    Raises:
        UserError: one line: the place of the first wrong value, what was expected there, and what
            was found. Without `places` the place is the field's name.
    """
    try:
        return model.model_validate(dict(values))
    except (ValidationError, UserError) as error:
        where, said, shown = _first(model, error)
        message = f"{dotted(where)}{f' is {shown}' if shown else ''}: {said}"
        if places is not None:
            message = f"{_place(where, places)}: {said}{f', found {shown}' if shown else ''}"
        raise UserError(message.removeprefix(": "), *where) from error


def load(model: type[M], file: str | Path | None, overrides: Mapping[str, Any] | None = None) -> M:
    """The model with the values of a YAML file, and `overrides`, from flags, over them.

    None leaves a field at its default.

    Raises:
        UserError: see `make`; or the file cannot be read, see `read_yaml`.
    """
    overrides = overrides or {}
    values, places = read_fields(file)
    places |= {(name,): f"--{name}" for name in overrides}
    return make(model, given(model, {**values, **overrides}), places)


def read_fields(file: str | Path | None) -> tuple[dict[str, Any], dict[Where, str]]:
    """The fields in a YAML file, and the places of their values; without a file there are none.

    Raises:
        UserError: the file does not hold fields with values.
    """
    if file is None:
        return {}, {}
    values, lines = read_yaml(file)
    if not isinstance(values, dict | None):
        raise UserError(f"{file}, line 1: expected fields with values, found {found(values)}")
    places = {where: f"{file}, line {line}" for where, line in lines.items()}
    return values or {}, {**places, (): str(file)}


def given(model: type[BaseModel], values: Mapping[str, Any]) -> dict[str, Any]:
    """The values without None, which leaves a field at its default."""
    known = model.model_fields
    return {name: value for name, value in values.items() if value is not None or name not in known}


def found(value: Any) -> str:
    """A value as errors show it, on one short line."""
    shown = reprlib.Repr()
    shown.maxstring = shown.maxother = 80
    return shown.repr(list(value) if isinstance(value, tuple) else value)


def _first(model: type[BaseModel], error: Any) -> tuple[Where, str, str]:
    """Pydantic's first error: its place, what was expected there, and what was found."""
    if isinstance(error, UserError):  # of a check of the whole model
        return error.where, str(error), ""
    errors = error.errors(include_url=False)
    one = min(errors, key=lambda one: one["type"] != "extra_forbidden")  # it explains others
    where, context = one["loc"], one.get("ctx", {})
    if one["type"] == "user_error":
        return (*where, *context["error"].where), str(context["error"]), ""
    schema = model.model_json_schema()
    if one["type"] == "extra_forbidden":
        around = alternatives(_schema_at(schema, where[:-1]), schema.get("$defs", {}))
        known = [name for each in around for name in each.get("properties", {})]
        hint = did_you_mean(where[-1], known)
        listed = "" if hint and len(known) > FEW_NAMES else f" Known: {', '.join(known)}"
        return where, f"unknown field.{hint}{listed}", ""
    if one["type"] == "missing":
        return where, f"is missing: give it in a config file or as --{dotted(where)}", ""
    if one["type"] == "too_short" and context["min_length"] == 1:
        return where, "expected at least one", found(one["input"])
    expected = describe(_schema_at(schema, where), schema.get("$defs", {}))
    # If the schema does not describe the value, Pydantic's own message is used.
    return where, f"expected {expected}" if expected else one["msg"], found(one["input"])


# ---- what a schema says ----


def describe(schema: Schema, definitions: Schema | None = None) -> str:
    """Describes what a JSON schema expects: "a whole number from 1 on"."""
    kinds = [_kind(each) for each in alternatives(schema, definitions or {})]
    return " or ".join(dict.fromkeys(kind for kind in kinds if kind))


def _kind(schema: Schema) -> str:
    if "enum" in schema or "const" in schema:
        return "one of " + ", ".join(map(str, schema.get("enum") or [schema["const"]]))
    kinds = {
        "integer": "a whole number",
        "number": "a number",
        "string": "a text",
        "boolean": "true or false",
        "array": "a list",
        "object": "names with values",
    }
    bounds = (
        ("minimum", " from {} on"),
        ("exclusiveMinimum", " above {}"),
        ("maximum", ", up to {}"),
        ("exclusiveMaximum", ", below {}"),
    )
    limits = [words.format(f"{schema[key]:.15g}") for key, words in bounds if key in schema]
    return kinds.get(schema.get("type", ""), "") + "".join(limits)


def alternatives(schema: Schema, definitions: Schema) -> list[Schema]:
    """The schemas of which a value must match one, without null, which means "not given"."""
    if "$ref" in schema:
        return alternatives(definitions[schema["$ref"].rpartition("/")[2]], definitions)
    several = schema.get("anyOf", schema.get("oneOf"))
    if several is not None:
        return [one for each in several for one in alternatives(each, definitions)]
    return [] if schema.get("type") == "null" else [schema]


def _schema_at(schema: Schema, where: Where) -> Schema:
    """The schema of a nested value; without alternatives if the schema does not describe it."""
    definitions = schema.get("$defs", {})
    schemas = [schema]
    for part in where:
        outer = [each for one in schemas for each in alternatives(one, definitions)]
        if isinstance(part, int):
            inner = [each.get("items") for each in outer]
        else:
            named = [each.get("properties", {}).get(part) for each in outer]
            inner = [own or each.get("additionalProperties") for own, each in zip(named, outer)]
        schemas = [each for each in inner if isinstance(each, dict)]
    return {"anyOf": schemas}
