"""One declaration of a field: its checks, flags, documentation and schema."""

from typing import Annotated, Any, Literal

import pytest
from pydantic import Field, ValidationError, model_validator

from domainbed.core.settings import (
    Items,
    Listed,
    Seeds,
    Settings,
    Text,
    checked,
    describe,
    dotted,
    load,
    make,
)
from domainbed.errors import UserError


def known(name):
    if name == "nobody":
        raise UserError("unknown name 'nobody'", "inside")
    return name


class Inner(Settings):
    depth: int = Field(1, ge=0)


class Example(Settings):
    steps: int | None = Field(
        None, ge=1, description="updates", json_schema_extra={"default_text": "the dataset's"}
    )
    share: float = Field(0.2, ge=0, lt=1, description="what 20% is")
    kind: Literal["needed", "all"] = Field("needed", description="of evaluation")
    names: Listed[Annotated[Text, checked(known)]] = Field(("a", "b"), description="of things")
    more: Items[Text] = ()
    domains: tuple[int, ...] = Field((), strict=False)
    trials: Seeds = (0, 1, 2)
    values: dict[str, Any] = Field({}, description="by name")
    verbose: bool = Field(False, description="say more")
    inner: Inner = Inner()

    @model_validator(mode="after")
    def _unlucky(self):
        if self.steps == 13:
            raise UserError("13 brings no luck", "steps")
        return self


@pytest.mark.parametrize(
    ("field", "given", "kept"),
    [
        ("share", 0, 0.0),
        ("names", "x", ("x",)),
        ("names", ["x", "y", "x"], ("x", "y")),
        ("more", [], ()),
        ("domains", [2, 0], (2, 0)),
        ("trials", 2, (0, 1)),
        ("trials", [4, 2], (4, 2)),
        ("inner", {"depth": 0}, Inner(depth=0)),
    ],
)
def test_what_is_taken(field, given, kept):
    value = getattr(make(Example, {field: given}), field)
    assert value == kept
    assert type(value) is type(kept)


WRONG = [
    ("steps", 0, "expected a whole number from 1 on", "0"),
    ("steps", "3", "expected a whole number from 1 on", "'3'"),
    ("steps", True, "expected a whole number from 1 on", "True"),
    ("steps", 2.0, "expected a whole number from 1 on", "2.0"),
    ("share", True, "expected a number from 0 on, below 1", "True"),
    ("share", 1, "expected a number from 0 on, below 1", "1"),
    ("share", float("nan"), "expected a number from 0 on, below 1", "nan"),
    ("kind", "some", "expected one of needed, all", "'some'"),
    ("verbose", 1, "expected true or false", "1"),
    ("values", [1], "expected names with values", "[1]"),
    ("names", [], "expected at least one", "[]"),
    ("names", ["x", 3], "expected a text", "3"),
    ("names", [""], "expected a text", "''"),
    ("domains", 3, "expected a list", "3"),
    ("domains", [0, "x"], "expected a whole number", "'x'"),
    ("trials", [0, -1], "expected a whole number from 0 on", "-1"),
    ("inner", {"depth": -1}, "expected a whole number from 0 on", "-1"),
    ("inner", 3, "expected names with values", "3"),
]


@pytest.mark.parametrize(("field", "value", "expected", "found"), WRONG)
def test_what_is_wrong_is_said_with_its_place(field, value, expected, found):
    with pytest.raises(UserError) as error:
        make(Example, {field: value})
    where = error.value.where
    assert where[0] == field
    assert str(error.value) == f"{dotted(where)} is {found}: {expected}"
    places = {(field,): "my.yaml, line 4"}
    with pytest.raises(UserError) as error:
        make(Example, {field: value}, places)
    place = f"my.yaml, line 4, field {dotted(where)!r}"
    assert str(error.value) == f"{place}: {expected}, found {found}"


def test_the_place_is_where_the_fault_lies():
    for value, where in [(["x", 3], ("names", 1)), (["x", "nobody"], ("names", 1, "inside"))]:
        with pytest.raises(UserError) as error:
            make(Example, {"names": value})
        assert error.value.where == where
    assert str(error.value) == "names[1].inside: unknown name 'nobody'"
    with pytest.raises(UserError) as error:
        make(Example, {"inner": {"dept": 1}})
    assert error.value.where == ("inner", "dept")
    assert str(error.value) == "inner.dept: unknown field. Did you mean 'depth'? Known: depth"


def test_a_check_of_the_whole_names_its_field():
    with pytest.raises(UserError, match=r"^mine, field 'steps': 13 brings no luck$") as error:
        make(Example, {"steps": 13}, {(): "mine"})
    assert error.value.where == ("steps",)
    with pytest.raises(UserError, match=r"^--steps: 13 brings no luck$"):
        make(Example, {"steps": 13}, {(): "mine", ("steps",): "--steps"})


def test_seeds_are_a_count_or_a_list():
    for value in (0, True, "x", None):
        with pytest.raises(UserError, match=r"^trials: expected a count from 1 on or a list of"):
            make(Example, {"trials": value})
    with pytest.raises(UserError, match=r"^trials: expected at most 1,000,000 seeds, found 10000"):
        make(Example, {"trials": 10**12})


def test_an_unknown_name_explains_what_is_missing():
    class Named(Settings):
        datasets: Text

    with pytest.raises(UserError, match=r"^dataset: unknown field\. Did you mean 'datasets'"):
        make(Named, {"dataset": "PACS"})
    with pytest.raises(UserError, match=r"^datasets: is missing: give it in a config file"):
        make(Named, {})


def test_what_was_found_stays_on_one_short_line():
    with pytest.raises(UserError) as error:
        make(Example, {"steps": "several\nlines" * 100})
    assert len(str(error.value)) < 200
    assert "\n" not in str(error.value)


def test_models_are_frozen_and_strict_for_programs_too():
    with pytest.raises(ValidationError):
        Example().steps = 3
    with pytest.raises(ValidationError):
        Example(steps="3")


def test_flags_win_over_the_file(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("steps: 7\nshare: 0.5\nkind:\n")
    example = load(Example, file, {"steps": 9})
    assert (example.steps, example.share, example.kind) == (9, 0.5, "needed")
    assert example.model_fields_set == {"steps", "share"}  # null is not given
    with pytest.raises(UserError, match=r"^--share: expected a number from 0 on, below 1, found 2"):
        load(Example, file, {"share": 2})
    file.write_text("- 1")
    with pytest.raises(UserError, match=r"mine.yaml, line 1: expected fields with values"):
        load(Example, file)


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ({"type": "integer", "minimum": 1, "maximum": 8}, "a whole number from 1 on, up to 8"),
        ({"type": "number", "exclusiveMinimum": 0.0}, "a number above 0"),
        ({"type": "integer", "maximum": 1000000}, "a whole number, up to 1000000"),
        ({"const": "x"}, "one of x"),
        ({"anyOf": [{"type": "null"}, {"type": "boolean"}]}, "true or false"),
        ({}, ""),
    ],
)
def test_schemas_in_words(schema, words):
    assert describe(schema) == words
