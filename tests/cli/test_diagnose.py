"""`domainbed model diagnose` on a tiny run: tables, JSON, plots, and what users get wrong."""

from __future__ import annotations

import json

import pytest

from domainbed.cli import main
from domainbed.cli import model as cli
from domainbed.cli import run as run_command
from domainbed.cli.common import Parser, guarded
from domainbed.core.flags import read_flags
from domainbed.core.settings import load
from domainbed.diagnostics import CURVATURES, DiagnosisOptions, diagnose, rendering
from domainbed.diagnostics.curvature import DIAGONAL_CURVATURES
from domainbed.spec import RunSpec
from domainbed.training import RunOptions, run


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "erm"
    hparams = {"batch_size": 4}
    spec = RunSpec.create("ColoredDigits", "ERM", [2], steps=2, checkpoint_freq=2, hparams=hparams)
    run(spec, folder, RunOptions(device="cpu"))
    return folder


@pytest.fixture
def command(folder, capsys):
    """The command on the run: what it printed, after a check of its exit status."""

    def command(*words, status=0):
        words = ["--device", "cpu", "--samples", 30, *words]
        found = guarded(lambda: run_command(["model", "diagnose", str(folder), *map(str, words)]))
        out, err = capsys.readouterr()
        assert found == status, err
        return err if status else out

    return command


def parsed(folder, *words):
    parser = Parser()
    cli.diagnose(parser)
    return parser.read([str(folder), *map(str, words)])


def test_table_and_json_are_of_the_same_numbers(folder, command):
    diagnosis = diagnose(folder, DiagnosisOptions(device="cpu", samples=30))
    assert command() == rendering.to_table(diagnosis)
    assert command("--format", "json") == rendering.to_json(diagnosis)


def test_json_has_null_for_what_is_not_finite(folder):
    found = diagnose(folder, DiagnosisOptions(device="cpu", samples=30, epsilon=1e308))
    assert found.after.inconsistency["variance"].score == float("inf")
    assert (
        json.loads(rendering.to_json(found))["after"]["inconsistency"]["variance"]["score"] is None
    )


@pytest.mark.parametrize("text", ["{}", "[]", '{"dataset": "ColoredDigits"}'])
def test_a_run_json_of_nothing(text, tmp_path, capsys):
    for name, content in (("run.json", text), ("done", "done"), ("results.jsonl", "{}\n")):
        (tmp_path / name).write_text(content)
    assert guarded(lambda: run_command(["model", "diagnose", str(tmp_path)])) == 2
    message = capsys.readouterr().err
    assert message.endswith(("train the run again\n", "repair it, or remove its folder\n"))


def test_options_reach_the_diagnosis(command):
    words = ["--format", "json", "--curvature", "hessian", "full_hessian", "--epsilon", "0.5"]
    found = json.loads(command(*words, "--damping", "0.2", "--landscape", "2", "0"))
    assert (found["epsilon"], found["damping"], found["version"]) == (0.5, 0.2, 1)
    assert list(found["after"]["inconsistency"]) == ["hessian", "full_hessian"]
    assert found["landscape"]["domains"] == [2, 0]
    assert [domain["images"] for domain in found["domains"]] == [30, 30, 30]


def test_names_are_those_of_the_package():
    assert (*DIAGONAL_CURVATURES, "full_hessian") == CURVATURES


def test_options_that_are_not_given_have_their_defaults(folder):
    def options(*words):
        return load(DiagnosisOptions, None, read_flags(parsed(folder, *words), DiagnosisOptions))

    assert options() == DiagnosisOptions()
    assert options("--landscape") == DiagnosisOptions(landscape=[])


@pytest.mark.parametrize(
    ("file", "start"), [("a.png", b"\x89PNG"), ("A.PNG", b"\x89PNG"), ("a.svg", b"<?xml")]
)
def test_plots(file, start, command, tmp_path):
    assert command("--plot", tmp_path / file).startswith("ERM on ColoredDigits")
    assert [found.name for found in tmp_path.iterdir() if found.is_file()] == [file]
    content = (tmp_path / file).read_bytes()
    assert content.startswith(start)
    assert len(content) > 10_000


def test_a_plot_shows_the_landscape(command, tmp_path):
    command("--plot", tmp_path / "a.svg")
    without = (tmp_path / "a.svg").read_text().count("<path")
    command("--plot", tmp_path / "a.svg", "--landscape")
    assert (tmp_path / "a.svg").read_text().count("<path") > without + 40  # contours


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--plot", "a.txt"], "--plot 'a.txt': the file must end with .png, .pdf, .svg"),
        (["--plot", "nowhere/a.png"], "--plot 'nowhere/a.png': there is no such folder"),
        (["--landscape", "1"], "--landscape: expected two domains, found [1]"),
        (["--epsilon", "-1"], "--epsilon: expected a number above 0, found -1"),
        (["--plugins", "no_such_module"], "plug-in 'no_such_module' cannot be imported"),
    ],
)
def test_wrong_flags_are_one_line(words, message, command):
    said = command(*words, status=2)
    assert said.startswith(f"error: {message}")
    assert said.count("\n") == 1


def test_the_console_script_knows_the_command(tmp_path, capsys):
    with pytest.raises(SystemExit) as exit:
        main(["model", "diagnose", str(tmp_path)])
    assert exit.value.code == 2
    assert "holds no run.json" in capsys.readouterr().err
