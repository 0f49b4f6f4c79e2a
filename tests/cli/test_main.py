"""The `domainbed` command itself: what it imports, and what it says of wrong words."""

import json
import platform
import re
import subprocess
import sys

import pytest
import torch

import domainbed
from domainbed.cli import _GROUPS, _RENAMED, COMMANDS, main
from domainbed.sweeps.config import load_config
from domainbed.sweeps.launch import prepare


def said(capsys, *words):
    with pytest.raises(SystemExit) as exit:
        main(list(words))
    return exit.value.code, *capsys.readouterr()


def test_help_lists_all_commands_in_groups_with_their_summaries(capsys):
    status, out, _ = said(capsys, "--help")
    assert status == 0
    lines = [line.split() for line in out.splitlines()]
    for heading, group in _GROUPS.items():
        first = out.splitlines().index(f"{heading}:") + 1
        expected = [[*name.split(), *summary.split()] for name, (_, summary) in group.items()]
        assert lines[first : first + len(group)] == expected
    names = dict.fromkeys(name.split()[0] for name in COMMANDS)
    assert set(names) == {
        *("data", "quickstart", "init", "train", "sweep", "collect", "compare", "report", "plot"),
        *("errors", "top-hparams", "published", "baselines", "reproduce", "model", "list"),
        *("config", "completion", "irm-colored-mnist", "leaderboard", "submit"),
    }


def test_help_of_a_group_lists_its_commands_alone(capsys):
    status, out, _ = said(capsys, "data", "--help")
    assert status == 0
    assert re.findall(r"^  (\w+ \w+)  ", out, re.M) == [
        *("data download", "data verify", "data pack", "data features"),
    ]


def test_help_imports_nothing_that_it_does_not_need():
    program = (
        "import sys\nfrom domainbed.cli import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit:\n    pass\n"
        "slow = {'pydantic', 'torch', 'numpy', 'yaml', 'domainbed.cli.sweep'} & set(sys.modules)\n"
        "sys.exit(f'imported: {slow}' if slow else 0)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_every_command_explains_itself(capsys):
    for name in COMMANDS:
        status, out, _ = said(capsys, *name.split(), "--help")
        assert status == 0
        assert out.startswith(f"usage: domainbed {name} ")
        summary = re.search(r"\n\n(\w+) ", out).group(1)
        assert summary[0].isupper()
        for flag in re.findall(r"^  (--\S+)", out, re.M):  # one spelling of each is shown
            assert "-" not in flag.removeprefix("--no-").strip("-"), flag


def test_every_command_that_looks_names_up_takes_plugins(capsys):
    helps = {name: said(capsys, *name.split(), "--help")[1] for name in COMMANDS}
    without = {name for name, text in helps.items() if "--plugins" not in text}
    assert without == {
        *("quickstart", "init", "sweep export", "sweep import", "sweep pack"),
        *("sweep unpack", "list plugin"),
        *("config", "completion", "irm-colored-mnist"),
    }


def test_train_begins_with_what_a_run_is(capsys):
    _, out, _ = said(capsys, "train", "--help")
    flags = re.findall(r"^  --(\w+)", out, re.M)
    assert flags[:5] == ["dataset", "algorithm", "test_envs", "hparams", "output_dir"]
    assert re.findall(r"^(\w.*):$", out, re.M) == [
        *("options", "training and evaluation", "averages of the weights"),
        *("where runs are trained, and what is kept", "of every command"),
    ]


def test_flags_are_taken_in_both_spellings(capsys):
    words = ("train", "--algorithm", "ERM", "--hparams={}")
    for flag in ("--checkpoint_freq", "--checkpoint-freq"):
        assert said(capsys, *words, flag, "0") == (
            *(2, ""),
            "error: --checkpoint_freq: expected a whole number from 1 on, found 0\n",
        )
        assert "found 0" in said(capsys, *words, f"{flag}=0")[2]
    words = ("train", "--no-skip-model-save", "--wrong")
    assert "arguments: --wrong." in said(capsys, *words)[2]


def test_the_names_of_before_still_work_and_say_the_new_one(capsys):
    for name, new in _RENAMED.items():
        status, out, err = said(capsys, *name.split(), "--help")
        assert (status, err) == (0, f"`domainbed {name}` is now called `domainbed {new}`\n")
        assert out.startswith(f"usage: domainbed {new} ")
        assert new in COMMANDS


def test_debug_is_taken_anywhere(capsys, tmp_path):
    for words in (["--debug", "collect"], ["collect", "--debug"]):
        status, _, err = said(capsys, *words, str(tmp_path))
        assert status == 2
        assert "Traceback" in err


def test_commands_that_train_nothing_import_no_pytorch(tmp_path):
    sweep = tmp_path / "sweep"
    config = {"datasets": ["ColoredDigits"], "algorithms": ["ERM", "IRM"], "trials": 2}
    config |= {"hparams_seeds": 1, "steps": 2, "hparams": {"batch_size": 2}, "launcher": "debug"}
    config |= {"selection": ["training-domain"], "keep": "none", "output_dir": str(sweep)}
    prepare(load_config(None, config)).execute()
    commands = [
        ["sweep", "status", str(sweep)],
        ["sweep", "export", str(sweep), str(tmp_path / "sweep.parquet")],
        ["published", "fishr-2022"],
        ["collect", str(sweep)],
        ["compare", str(sweep)],
        ["list", "protocols"],
        ["config", "table"],
        ["plot", str(sweep), "curves", "-o", str(tmp_path / "curves.svg")],
    ]
    program = (
        "import sys\nfrom domainbed.cli import run\n"
        f"for words in {commands!r}:\n"
        "    assert run(words) == 0, words\n"
        "    assert not {'torch', 'ray'} & set(sys.modules), words\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("words", "command", "says"),
    [
        (["swep"], "domainbed", "unknown command 'swep'. Did you mean 'sweep'? Known: data,"),
        (["--vers"], "domainbed", "unrecognized arguments: --vers"),
        (["train", "--step", "1"], "domainbed train", "--step 1. Did you mean '--steps'? See"),
        (["sweep", "launch", "--step", "3"], "domainbed sweep launch", "Did you mean '--steps'?"),
        (["sweep", "lunch"], "domainbed sweep", "Did you mean 'sweep launch'? Known: sweep plan,"),
        (["launch"], "domainbed", "Did you mean 'sweep launch'?"),
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
    found = f"PyTorch {torch.__version__.partition('+')[0]}, Python {platform.python_version()}"
    assert said(capsys, "--version")[:2] == (0, f"domainbed {domainbed.__version__} ({found})\n")


def test_no_words_show_the_help(capsys):
    assert said(capsys) == said(capsys, "--help")
    assert said(capsys, "data") == said(capsys, "data", "--help")


def test_bash_completes_commands_and_flags(capsys, tmp_path):
    script = tmp_path / "completion.bash"
    script.write_text(said(capsys, "completion", "bash")[1])
    for words, completed in (
        ("quick", "quickstart"),
        ("sweep stat", "status"),
        ("train --dataset_", ""),
        ("train --algorit", "--algorithm"),
        ("sweep launch --hparams_s", "--hparams_seeds"),
    ):
        line = ["domainbed", *words.split()]
        program = (
            f"shopt -s progcomp; source {script}; COMP_WORDS=({' '.join(line)}); "
            f"COMP_CWORD={len(line) - 1}; _shtab_domainbed; echo ${{COMPREPLY[*]}}"
        )
        found = subprocess.run(["bash", "-c", program], capture_output=True, text=True)
        assert found.stdout.split() == completed.split(), (words, found.stderr)


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
            "Waterbirds", "CelebA", "MetaShift", "NICOpp", *spawrious} <= set(rows)  # fmt: skip
    assert all(re.search(r"SC_group_2 +Test +4 +50,688", rows[name]) for name in spawrious)
    assert re.search(r"zoe +each +7 +not stated", rows["SVIRO"])
    assert re.search(r"hospital_4 +each +2 +455,954", rows["WILDSCamelyon"])


def test_list_shows_kind_year_and_readings_of_algorithms(capsys):
    listed = said(capsys, "list", "algorithms")[1]
    assert re.search(r"^risks of domains +TRM +2021 +paper, domainbed +Xu", listed, re.M)
    assert re.search(r"^gradients +SAM +2021 +Foret", listed, re.M)
