"""Reading YAML: the line of each value, and files that would mislead, block or never end."""

import os

import pytest

from domainbed.core.yaml_file import parse_value, read_yaml
from domainbed.errors import UserError


@pytest.fixture
def write(tmp_path):
    def write(content):
        file = tmp_path / "mine.yaml"
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
        return file

    return write


def test_values_and_their_lines(write):
    value, lines = read_yaml(write("a: 1\nb:\n- x\n- {c: 1e-3}\n"))
    assert value == {"a": 1, "b": ["x", {"c": 0.001}]}
    assert lines[("a",)] == 1
    assert lines[("b", 0)] == 3
    assert lines[("b", 1, "c")] == 4
    assert read_yaml(write("")) == (None, {})


def test_aliases_and_merges_that_end(write):
    value, lines = read_yaml(write("a: &a {x: 1}\nb:\n  <<: *a\n  y: 2\nc: *a\n"))
    assert value == {"a": {"x": 1}, "b": {"x": 1, "y": 2}, "c": {"x": 1}}
    assert lines[("b", "y")] == 4


LAUGHS = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 9)
)


@pytest.mark.parametrize(
    ("content", "line", "says"),
    [
        ("steps: 1\ntrials: 010\n", 2, "010 can be read in two ways"),
        ("trials: [1, -0_7]", 1, "-0_7 can be read in two ways"),
        ("trials: 08", 1, "08 can be read in two ways"),
        ("trials: 1:30", 1, "1:30 can be read in two ways"),
        ("a: 1\n? [b, c]\n: 2\n", 2, "a list or mapping as a name: expected a text"),
        ("a: 1\n7: 2\n", 2, "7 as a name: expected a text"),
        ("a: 1\non: 2\n", 2, "on as a name: expected a text"),
        ("a: 1\na: 2\n", 2, "'a' is given twice: remove one"),
        (LAUGHS, 1, "more than 100,000 values, with aliases written out"),
        ("a: 1\nb: &b [*b]\n", 2, "a value that contains itself"),
        ("a: &a\n  <<: *a\n", 1, "a value that contains itself"),
        (b"a: 1\nb: x\x00y\n", 2, "the character #x00 is not allowed"),
        ("a: 1\nb: 2020-13-41\n", 2, "month must be in 1..12"),
        ("a: 1\nb: " + "9" * 5000, 2, "Exceeds the limit"),
        ("a: *b", 1, "found undefined alias"),
        ("a: 1\n---\nb: 2\n", 2, "but found another document"),
    ],
)
def test_what_misleads_or_has_no_end_is_refused_with_its_line(write, content, line, says):
    file = write(content)
    with pytest.raises(UserError) as error:
        read_yaml(file)
    assert str(error.value).startswith(f"{file}, line {line}: no valid YAML (")
    assert says in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["[" * 700, "{a: " * 700, "[" * 700 + "]" * 700])
def test_deep_nesting_is_refused(write, text):
    file = write(text)
    with pytest.raises(UserError, match="nested too deeply"):
        read_yaml(file)
    with pytest.raises(UserError, match=r"is no valid YAML or JSON \(it is nested"):
        parse_value(text)


def test_texts_that_look_like_numbers_stand_in_quotes(write):
    value, _ = read_yaml(write("a: '010'\nb: 0x10\nc: 0.5\nd: 0\ne: -1\nf: 1_000\n"))
    assert value == {"a": "010", "b": 16, "c": 0.5, "d": 0, "e": -1, "f": 1000}


def test_only_a_regular_file_of_some_size_is_read(write, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe", "/dev/zero"):
        with pytest.raises(UserError, match=r"is not a file: name a YAML file$"):
            read_yaml(path)
    with pytest.raises(UserError, match=r"has 10,000,001 bytes: expected at most 10,000,000"):
        read_yaml(write(b"#" * 10_000_001))
    with pytest.raises(UserError, match=r"gone.yaml' cannot be read: No such file"):
        read_yaml(tmp_path / "gone.yaml")
    with pytest.raises(UserError, match=r"cannot be read: 'utf-8' codec"):
        read_yaml(write(b"a: \xff"))
    with pytest.raises(UserError, match=r"cannot be read"):
        read_yaml("a\0b")


def test_a_value_of_a_flag():
    assert parse_value("[[0], [0, 1]]") == [[0], [0, 1]]
    assert parse_value('{"lr": 1e-4}') == {"lr": 0.0001}
    assert parse_value("") is None
    for text in ("{lr: [", "{lr: 1, lr: 2}", "&a [*a]", "010"):
        with pytest.raises(UserError, match="is no valid YAML or JSON"):
            parse_value(text)
