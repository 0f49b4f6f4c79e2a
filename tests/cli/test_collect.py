"""The commands that print tables and top hyper-parameters, on a sweep whose numbers are set."""

import csv
import importlib.util
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from domainbed.cli import run as run_command
from domainbed.cli.common import tell
from domainbed.cli.tables import show_progress
from domainbed.errors import UserError
from domainbed.reporting import RENDERERS
from domainbed.runs.folder import RunFolder

ROOT = Path(__file__).parents[2]


@pytest.fixture
def sweep(tmp_path):
    """ERM on PACS, two hparams seeds, two trials: test accuracy 0.5 + domain / 10 + seed / 100.

    The validation accuracy is higher for hparams seed 0; trial 1 is 0.02 better in the test.
    """
    for env in range(4):
        for seed in (0, 1):
            for trial in (0, 1):
                write_run(tmp_path / "sweep" / f"{env}{seed}{trial}", env, seed, trial)
    return tmp_path / "sweep"


def write_run(folder, env, seed, trial):
    hparams = {"lr": (1 + seed) / 1000, "batch_size": 32}
    args = {"dataset": "PACS", "algorithm": "ERM", "test_envs": [env], "hparams_seed": seed}
    args |= {"trial_seed": trial, "output_dir": "/elsewhere", "steps": 11}
    lines = []
    for step in (0, 10):
        record = {"step": step, "args": args, "hparams": hparams}
        for i in range(4):
            record[f"env{i}_in_acc"] = 0.5 + env / 10 + seed / 100 + 0.02 * trial
            record[f"env{i}_out_acc"] = 0.9 - seed / 10
        lines.append(json.dumps(record) + "\n")
    folder.mkdir(parents=True)
    (folder / "results.jsonl").write_text("".join(lines))
    RunFolder(folder).mark_done("".join(lines))


def run(command, *words):
    return run_command([command, *map(str, words)])


def test_collect_prints_the_tables(sweep, capsys):
    assert run("collect", sweep, "--selection", "training-domain") == 0
    out, err = capsys.readouterr()
    rows = [line.split() for line in out.splitlines()]
    assert rows[0] == ["Total", "records:", "32"]
    assert rows[1] == ["Protocol:", "not", "recorded"]
    assert rows[4] == ["Algorithm", "A", "C", "P", "S", "Avg"]
    # trials 50 and 52: mean 51, population standard deviation 1, over the root of two: 0.7
    cells = [word for mean in (51, 61, 71, 81) for word in (f"{mean}.0", "+/-", "0.7")]
    assert rows[5] == ["ERM", *cells, "66.0", "+/-", "0.7"]
    assert rows[8] == ["Algorithm", "PACS", "Avg", "Mean", "rank"]
    assert rows[9] == ["ERM", "66.0", "+/-", "0.7", "66.0", "1.0"]
    assert err == ""


def test_wide_tables_are_folded_for_a_terminal(sweep, capsys, monkeypatch, tmp_path):
    words = ("collect", sweep, "--selection", "oracle")
    run(*words)
    piped = capsys.readouterr().out
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    run(*words)
    shown = capsys.readouterr().out.splitlines()
    begin = next(k for k, line in enumerate(shown) if line.startswith("Algorithm"))
    blocks = [re.split("  +", line) for line in shown[begin : begin + 8]]
    assert blocks[::3] == [["Algorithm", "A", "C"], ["Algorithm", "P", "S"], ["Algorithm", "Avg"]]
    assert blocks[2::3] == [[""], [""]]
    whole = next(line for line in piped.splitlines() if line.startswith("ERM"))
    assert re.split("  +", whole) == [*blocks[1], *blocks[4][1:], *blocks[7][1:]]
    assert max(len(line) for line in shown[begin : begin + 8]) <= 40
    run(*words, "--output", tmp_path / "tables.txt")
    assert (tmp_path / "tables.txt").read_text() == piped
    monkeypatch.setenv("COLUMNS", "80")  # narrower columns do
    run(*words)
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.startswith("Algorithm") for line in lines) == 2
    assert max(map(len, lines[4:6])) <= 80 < max(map(len, piped.splitlines()[4:6]))


def test_progress_leaves_no_remains(monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("NO_COLOR", "1")
    show_progress(100, 200)
    tell("warning: x")
    show_progress(200, 200)
    lines = capsys.readouterr().err.split("\n")
    # What a terminal shows: a return goes to the line's beginning, and \x1b[K clears the rest.
    assert [line.rpartition("\r\x1b[K")[2] for line in lines] == ["warning: x", ""]
    monkeypatch.delenv("NO_COLOR")
    monkeypatch.setenv("TERM", "xterm")
    tell("warning: x")
    assert capsys.readouterr().err == "\r\x1b[K\x1b[33mwarning\x1b[0m: x\n"


def test_all_methods_by_default(sweep, capsys):
    run("collect", sweep)
    headings = [line for line in capsys.readouterr().out.splitlines() if line.startswith("---")]
    assert len(headings) == 6
    assert [heading.split("method: ")[1] for heading in headings[::2]] == [
        "training-domain validation set",
        "leave-one-domain-out cross-validation",
        "test-domain validation set (oracle)",
    ]


@pytest.mark.parametrize("name", RENDERERS)
def test_output_file(sweep, tmp_path, capsys, name):
    run("collect", sweep, "--format", name)
    printed = capsys.readouterr().out
    run("collect", sweep, "--format", name, "--output", tmp_path / "tables")
    assert capsys.readouterr().out == ""
    assert (tmp_path / "tables").read_text() == printed
    assert printed.endswith("\n")
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["tables"]


def test_output_that_cannot_be_written(sweep, tmp_path):
    with pytest.raises(UserError, match="cannot write --output"):
        run("collect", sweep, "--output", tmp_path / "no" / "tables")


def test_every_format_is_in_the_help(capsys):
    with pytest.raises(SystemExit):
        run("collect", "--help")
    help_text = capsys.readouterr().out
    assert all(name in help_text for name in RENDERERS)


def test_an_unknown_format(sweep):
    with pytest.raises(UserError, match="unknown format 'markdwon'"):
        run("collect", sweep, "--format", "markdwon")


@pytest.mark.parametrize("name", RENDERERS)
def test_explain_below_the_tables_or_beside(sweep, capsys, name):
    (sweep / "200" / "done").unlink()
    run("collect", sweep, "--format", name, "--explain", "--selection", "oracle")
    out, err = capsys.readouterr()
    where, other = (err, out) if name in ("csv", "json") else (out, err)
    assert "interrupted: test_envs [2], trial 0, hparams seed 0: last record at step 10" in where
    assert "interrupted" not in other
    if name == "json":
        json.loads(out)
    if name == "latex":
        told = out.rpartition(r"\end{table}")[2].split("\n")[1:-1]
        assert all(line.startswith("%") for line in told)


def test_top_hparams(sweep, capsys):
    words = ["--input_dir", sweep, "--dataset", "PACS", "--algorithm", "ERM", "--test-env", 3]
    assert run("top-hparams", *words, "--selection", "oracle") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:3] == [
        "Total records: 32",
        "",
        "-------- Model selection: test-domain validation set (oracle)",
    ]
    assert [re.split("  +", line) for line in lines[3:8]] == [
        [
            *("trial_seed", "rank", "hparams_seed", "step"),
            *("val_acc", "test_acc", "hparams", "output_dirs"),
        ],
        *(
            [
                *(trial, rank, draw, "10", f"0.{val}00000", f"0.{test}0000"),
                f'{{"batch_size": 32, "lr": 0.00{rank}}}',
                f'["{sweep / f"3{draw}{trial}"}"]',
            ]
            for trial, rank, draw, val, test in (
                ("0", "1", "0", 9, 80),
                ("0", "2", "1", 8, 81),
                ("1", "1", "0", 9, 82),
                ("1", "2", "1", 8, 83),
            )
        ),
    ]
    assert lines[8:] == ["  validations compare within a trial only"]
    run("top-hparams", *words, "--top", 1)
    out = capsys.readouterr().out
    assert len(re.findall(r"^[01] +1 +0 +\d+ ", out, re.MULTILINE)) == 4  # two methods, two trials
    assert not re.findall(r"^[01] +2 ", out, re.MULTILINE)
    assert "cross-validation\ntrial_seed" not in out
    assert "cross-validation\n  no result" in out


def test_top_hparams_for_programs(sweep, capsys):
    words = ["--input_dir", sweep, "--dataset", "PACS", "--algorithm", "ERM", "--test-env", 3]
    words += ["--top", 1, "--selection", "oracle", "leave-one-domain-out"]
    run("top-hparams", *words, "--format", "json")
    choices = json.loads(capsys.readouterr().out)
    first, second = choices
    assert first == {
        "selection": "oracle",
        "trial_seed": 0,
        "rank": 1,
        "hparams_seed": 0,
        "step": 10,
        "val_acc": 0.9,
        "test_acc": 0.8,
        "hparams": {"batch_size": 32, "lr": 0.001},
        "output_dirs": [str(sweep / "300")],
    }
    assert (second["trial_seed"], second["test_acc"]) == (1, pytest.approx(0.82))
    run("top-hparams", *words, "--format", "csv")
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    for row in rows:
        row |= {name: json.loads(row[name]) for name in row if name != "selection"}
    assert rows == choices


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"--dataset": "VLCS"}, r"no records of dataset 'VLCS'\. There are: PACS"),
        (
            {"--algorithm": "erm"},
            r"no records of algorithm 'erm'\. Did you mean 'ERM'\? There are: ERM",
        ),
        ({"--test_env": "7"}, r"no records with --test_env 7: there are \[0, 1, 2, 3\]"),
        ({"--top": "0"}, "--top 0 lists nothing"),
        ({"--selection": "best"}, "unknown selection method 'best'"),
    ],
)
def test_top_hparams_of_what_is_not_there(sweep, changed, message):
    words = {"--input_dir": sweep, "--dataset": "PACS", "--algorithm": "ERM", "--test_env": "1"}
    with pytest.raises(UserError, match=message):
        run("top-hparams", *(word for pair in (words | changed).items() for word in pair))


def script(name, *words):
    """Runs a script as a user does."""
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, str(ROOT / "scripts" / name), *map(str, words)]
    return subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": path}
    )


@pytest.mark.parametrize("flag", ["--input_dir", "--input-dir"])
def test_collect_script(sweep, capsys, flag):
    with pytest.raises(UserError, match="--document is for --format latex"):
        run("collect", sweep, "--document")
    capsys.readouterr()
    run("collect", sweep, "--format", "latex", "--document")
    expected = capsys.readouterr().out
    result = script("collect_results.py", flag, sweep, "--latex")
    assert (result.returncode, result.stdout) == (0, expected)
    assert "cells 4 have no result" in result.stderr  # leave-one-domain-out has no pairs


def test_collect_script_selects_for_runs_of_two_stages(sweep, capsys):
    run("collect", sweep, "--selection", "training-domain")
    expected = capsys.readouterr().out
    assert script("collect_results.py", "--input_dir", sweep, "--auto_lr").stdout == expected


def test_scripts_run_under_domainbeds_module_names(sweep, capsys):
    if importlib.util.find_spec("domainbed.scripts") is None:
        pytest.skip("the package is on the path but not installed")
    run("collect", sweep)
    expected = capsys.readouterr().out
    words = ("-m", "domainbed.scripts.collect_results", f"--input_dir={sweep}")
    found = subprocess.run([sys.executable, *words], capture_output=True, text=True, check=False)
    assert (found.returncode, found.stdout) == (0, expected)


def test_scripts_print_errors_as_one_line(sweep):
    for name in ("collect_results.py", "list_top_hparams.py"):
        words = ["--dataset", "PACS", "--algorithm", "ERM", "--test_env", 0] * name.startswith("l")
        result = script(name, "--input_dir", sweep / "nowhere", *words)
        assert result.returncode == 2
        assert result.stderr.startswith("error: ")
        assert result.stderr.count("\n") == 1
