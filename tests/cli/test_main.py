"""The `domainbed` command itself: what it imports, and what it says of wrong words."""

import importlib
import json
import re
import subprocess
import sys

import pytest

import domainbed
from domainbed.cli import _COMMANDS, main


def said(capsys, *words):
    with pytest.raises(SystemExit) as exit:
        main(list(words))
    return exit.value.code, *capsys.readouterr()


def test_help_lists_all_commands_with_their_summaries(capsys):
    status, out, _ = said(capsys, "--help")
    assert status == 0
    for name, (_, summary) in _COMMANDS.items():
        assert [*name.split(), *summary.split()] in [line.split() for line in out.splitlines()]


def test_help_imports_nothing_that_it_does_not_need():
    program = (
        "import sys\nfrom domainbed.cli import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit:\n    pass\n"
        "slow = {'pydantic', 'torch', 'numpy', 'yaml', 'domainbed.cli.sweep'} & set(sys.modules)\n"
        "sys.exit(f'imported: {slow}' if slow else 0)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", list(_COMMANDS))
def test_every_command_explains_itself(name, capsys):
    status, out, _ = said(capsys, name, "--help")
    assert status == 0
    assert out.startswith(f"usage: domainbed {name} ")
    summary = importlib.import_module(f"domainbed.cli.{_COMMANDS[name][0]}").__doc__.split()[0]
    assert f"\n\n{summary} " in out
    assert summary.isalpha()  # not the name of the command, which the usage has already


def test_actions_of_a_command_explain_themselves(capsys):
    status, out, _ = said(capsys, "sweep", "launch", "--help")
    assert status == 0
    assert out.startswith("usage: domainbed sweep launch ")
    assert "--n_trials" not in out
    assert "--checkpoint-freq" in out


@pytest.mark.parametrize(
    ("action", "description"),
    [
        ("status", "Count the runs by their state."),
        ("cancel", "Stop the runs that are queued or running."),
        ("delete_incomplete", "Remove the folders of runs that are neither done nor running."),
    ],
)
def test_actions_have_a_description(action, description, capsys):
    _, out, _ = said(capsys, "sweep", action, "--help")
    assert f"\n\n{description}\n\n" in out


@pytest.mark.parametrize(
    ("words", "command", "says"),
    [
        (["swep"], "domainbed", "unknown command 'swep'. Did you mean 'sweep'? Known: download,"),
        ([], "domainbed", "a COMMAND is missing"),
        (["--vers"], "domainbed", "unrecognized arguments: --vers"),
        (["train", "--step", "1"], "domainbed train", "--step 1. Did you mean '--steps'? See"),
        (["sweep", "launch", "--step", "3"], "domainbed sweep", "unrecognized arguments: --step"),
        (["sweep", "launch", "--steps"], "domainbed sweep launch", "--steps"),
        (["list", "x\ny"], "domainbed list", "x"),
    ],
)
def test_wrong_words_exit_with_2_and_one_line(words, command, says, capsys):
    status, out, err = said(capsys, *words)
    assert (status, out) == (2, "")
    assert says in err
    assert err.startswith("error: ")
    assert re.search(rf"(: s|\? S)ee `{command} --help`\n$", err)
    assert err.count("\n") == 1


def test_version(capsys):
    assert said(capsys, "--version")[:2] == (0, f"{domainbed.__version__}\n")


def test_the_schema_of_a_sweeps_config(capsys):
    status, out, _ = said(capsys, "config", "schema")
    assert status == 0
    fields = json.loads(out)["properties"]
    assert {"datasets", "algorithms", "steps", "data_dir", "launcher", "hparams"} <= set(fields)
    assert all("description" in field for field in fields.values())
    assert said(capsys, "config", "table")[1].count("\n") == 2 + len(fields)


def test_all_datasets_of_domainbed_are_listed(capsys):
    code, out, _ = said(capsys, "list", "datasets")
    assert code == 0
    rows = {line.split()[0]: line for line in out.splitlines()[1:]}
    spawrious = {f"Spawrious{k}_{d}" for k in ("O2O", "M2M") for d in ("easy", "medium", "hard")}
    assert {"Debug28", "Debug224", "ColoredMNIST", "RotatedMNIST", "VLCS", "PACS", "OfficeHome",
            "TerraIncognita", "DomainNet", "SVIRO", "WILDSCamelyon", "WILDSFMoW",
            *spawrious} <= set(rows)  # fmt: skip
    assert all(re.search(r"SC_group_2 +Test +4 +50,688", rows[name]) for name in spawrious)
    assert re.search(r"zoe +each +7 +not stated", rows["SVIRO"])
    assert re.search(r"hospital_4 +each +2 +455,954", rows["WILDSCamelyon"])
