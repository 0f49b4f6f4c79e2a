"""Flags, documentation and a schema from the declarations of settings."""

import argparse
import json

import pytest
from test_settings import Example

from domainbed.cli.train import TrainSettings
from domainbed.config.run_fields import RunFields, RunOptions
from domainbed.core.flags import add_flags, docs_table, json_schema, read_flags
from domainbed.core.names import AVERAGES
from domainbed.core.settings import Settings, Text
from domainbed.errors import UserError


@pytest.fixture
def parser():
    parser = argparse.ArgumentParser(allow_abbrev=False)
    add_flags(parser, Example)
    return parser


def test_flags_mean_what_yaml_means(parser):
    words = "--steps 3 --share 1e-1 --names 1 2 --domains 3 4 --trials [0,2] --no-verbose"
    words += " --kind all --values {a:\\ 1}"
    arguments = parser.parse_args(words.replace("\\ ", "~").split())
    arguments.values = arguments.values.replace("~", " ")
    assert read_flags(arguments, Example) == {
        "steps": 3,
        "share": 0.1,
        "names": ["1", "2"],
        "domains": [3, 4],
        "trials": [0, 2],
        "verbose": False,
        "kind": "all",
        "values": {"a": 1},
    }
    assert read_flags(parser.parse_args([]), Example) == {}
    assert read_flags(parser.parse_args(["--trials", "3"]), Example) == {"trials": 3}
    with pytest.raises(UserError, match=r"^--values: '\{' is no valid YAML or JSON") as error:
        read_flags(parser.parse_args(["--values", "{"]), Example)
    assert error.value.where == ("values",)


def test_no_flag_for_what_is_not_asked_for():
    class Two(Settings):
        data_dir: Text = "data"
        other: int = 1

    parser = argparse.ArgumentParser(allow_abbrev=False)
    add_flags(parser, Two, only=["data_dir"])
    assert read_flags(parser.parse_args(["--data_dir", "x"]), Two) == {"data_dir": "x"}
    for flag in ("--other", "--data"):
        with pytest.raises(SystemExit):
            parser.parse_args([flag, "1"])


def test_help_ends_with_the_default(parser):
    text = " ".join(parser.format_help().split())
    assert "--steps VALUE updates (default: the dataset's)" in text
    assert "--share VALUE what 20% is (default: 0.2)" in text
    assert "--kind {needed,all} of evaluation (default: needed)" in text
    assert "--names NAME [NAME ...] of things (default: a, b)" in text
    assert "--verbose, --no-verbose say more (default: false)" in text
    assert "--values VALUE by name" in text


def test_help_names_the_values_of_what_may_be_left_out_and_of_items():
    parser = argparse.ArgumentParser(allow_abbrev=False)
    add_flags(parser, RunOptions, only=["keep"])
    add_flags(parser, RunFields, only=["averages", "metrics"])
    text = " ".join(parser.format_help().split())
    assert (
        "--keep {all,last,selected,none} weights to keep: all (of each record), last, selected "
        in text
    )
    items = "{" + ",".join(AVERAGES) + "}"
    assert f"--averages {items} [{items} ...] averages of the weights" in text
    assert "--metrics NAME [NAME ...]" in text


def test_docs_table():
    lines = docs_table(Example).splitlines()
    assert lines[0] == "| field | value | default | meaning |"
    assert lines[2] == "| `steps` | a whole number from 1 on | the dataset's | updates |"
    assert lines[3] == "| `share` | a number from 0 on, below 1 | 0.2 | what 20% is |"
    assert len(lines) == 2 + len(Example.model_fields)


def test_the_schema_is_json_and_says_what_a_file_may_hold():
    schema = json.loads(json.dumps(json_schema(Example)))
    assert schema["additionalProperties"] is False
    fields = schema["properties"]
    assert {one["type"] for one in fields["names"]["anyOf"]} == {"string", "array"}
    assert fields["kind"]["enum"] == ["needed", "all"]
    assert fields["share"]["exclusiveMaximum"] == 1
    assert not any("default_text" in field for field in fields.values())


@pytest.mark.parametrize(
    ("words", "envs"), [(["0", "2"], [0, 2]), (["[0, 2]"], [0, 2]), (["1"], 1)], ids=str
)
def test_test_domains_as_one_word_or_several(words, envs):
    """As DomainBed's flag takes them, and as YAML."""
    parser = argparse.ArgumentParser()
    add_flags(parser, TrainSettings)
    given = read_flags(parser.parse_args(["--test_envs", *words]), TrainSettings)
    assert given["test_envs"] == envs


def test_a_list_broken_into_words_is_refused():
    parser = argparse.ArgumentParser()
    add_flags(parser, TrainSettings)
    with pytest.raises(UserError, match="test_envs"):
        read_flags(parser.parse_args(["--test_envs", "[0,", "2]"]), TrainSettings)
